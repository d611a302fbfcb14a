"""`Measure`, the base of the records of `pvae evaluate`: each is a file that says all of one measure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pvae.evaluation.context import Context
    from pvae.runs.run import Run

__all__ = ["Measure", "Request"]


@dataclass(frozen=True)
class Request:
    """An option of `pvae evaluate`, and a keyword argument of `evaluate`, that asks for a measure.

    Args:
        name: of the argument; the option is --NAME.
        help: of the option.
        metavar: of its value; "" for an option without one.
        least: the least value of a whole number; None for a text.
    """

    name: str
    help: str
    metavar: str = ""
    least: int | None = None


class Measure:
    """What one measure says of a run on its test data.

    A subclass is a frozen dataclass, in a file of its own and in `MEASURES`. The metadata of a field are its label and
    its note in the text, and a field without them is in `evaluation.json` alone, where its name is its key.

    Attributes:
        title: the line above it in the text; "" for none.
        absent: what stands there where it does not apply; "" for nothing.
        request: the option that asks for it; None for a measure that is always computed where it applies.
    """

    title: ClassVar[str] = ""
    absent: ClassVar[str] = ""
    request: ClassVar[Request | None] = None

    @classmethod
    def check(cls, context: Context) -> None:
        """Raise an `InputError` if it was asked for and cannot be computed; called before anything is computed."""

    @classmethod
    def asked_for(cls, run: Run, value: Any) -> Any:
        """Return what the value of its option means for a run; called once."""
        return value

    @classmethod
    def of(cls, context: Context) -> Measure | None:
        """Return the measure of a run; None where it does not apply, or was not asked for."""
        raise NotImplementedError

    def lines(self) -> Iterator[str]:
        """Yield its lines in the text."""
        yield from lines_of(self)

    def warnings(self) -> Iterator[str]:
        """Yield lines for the end of the text."""
        yield from ()


def lines_of(record: Any, **special: tuple[str, str]) -> Iterator[str]:
    """Yield a line for each field that has a label and a value; `special` has other labels and notes of fields."""
    for one in fields(record):
        value = getattr(record, one.name)
        if one.metadata and value is not None and value is not False and value != () and value != "":
            label, note = special.get(one.name, *one.metadata.items())
            values = value if isinstance(value, tuple) else (value,)
            shown = ", ".join(f"{one:.4g}" if isinstance(one, float) else str(one) for one in values)
            yield f"{label:26}{shown:22}  {note}".rstrip()
