"""A Parquet file that is too large for the memory, as an iterable of data frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pvae.core.errors import total_memory

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["ParquetParts", "large_parquet"]

_AT_ONCE = 2**16  # rows
_FIELD = 64  # bytes of a field in memory, while a table is read


@dataclass(frozen=True)
class ParquetParts:
    """The rows of a Parquet file in parts.

    Args:
        file: the file.
        num_rows: the number of its rows.
    """

    file: Path
    num_rows: int

    def __iter__(self) -> Iterator[DataFrame]:
        """Yield the rows, 65,536 at a time."""
        from pyarrow.parquet import ParquetFile

        with ParquetFile(self.file) as content:
            for part in content.iter_batches(_AT_ONCE):
                frame = part.to_pandas()
                yield frame if frame.index.name is None else frame.reset_index()

    def __len__(self) -> int:
        """Return the number of parts."""
        return -(-self.num_rows // _AT_ONCE)

    @classmethod
    def of(cls, file: Path) -> ParquetParts:
        """Return the rows of a file."""
        from pyarrow.parquet import read_metadata

        return cls(file, read_metadata(file).num_rows)


def large_parquet(file: Path) -> ParquetParts | None:
    """Return a Parquet file whose table would take more than a quarter of the memory while it is read; else None."""
    if file.suffix.lower() != ".parquet":
        return None
    try:
        from pyarrow.parquet import read_metadata

        found = read_metadata(file)
    except Exception:  # of many types: `read_values` says what is wrong
        return None
    is_large = found.num_rows * found.num_columns * _FIELD > total_memory() / 4
    return ParquetParts(file, found.num_rows) if is_large else None
