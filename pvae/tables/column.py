"""`Column`, a column of a table, and its types: each fits texts, parses them, and writes values as the file does."""

from __future__ import annotations

import math
import re
import shlex
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from pvae.core.errors import InputError, listed, shown
from pvae.models.columns import LIMITED
from pvae.models.features import steps_of

if TYPE_CHECKING:
    from pandas import Series

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MOST_DECIMALS = 8  # of numbers that a person wrote
_MOST_WHOLE = 2.0**53  # float64 does not hold all whole numbers beyond
_MOST_TEXTS = 100  # of a category, unless --columns names its kind, or there are as many rows for each as
_ROWS_OF_TEXT = 20
_FEW_ROWS = 10  # fewer may all differ by chance
_FEW_TEXTS = 5  # that say how dates are written
_MILLISECONDS = 86_400_000  # of a day
_MOST_DAYS = 366 * 200  # between a date and 1970
_DATES = (  # formats that pandas does not guess
    "%m/%d/%y", "%d/%m/%y", "%d.%m.%y", "%d-%b-%y", "%b-%y", "%m/%d/%Y %I:%M %p", "%m/%d/%Y %I:%M:%S %p",
)  # fmt: skip
_WITH_MARKS = r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?"  # between thousands
_SWAPPED = str.maketrans(",.", ".,")
_ID = r"(?:^|[^A-Za-z])(?i:(?:id|ids|uuid|guid|index|idx)(?:[^A-Za-z]|$)|(?:key|nr|no)\W*$)|[a-z]I[Dd]$"


@dataclass(frozen=True)
class Column:
    """A column of a table: how its fields become values of x, and values become fields again.

    Args:
        name: its name.
        categories: the texts whose codes 0, 1, ... are the values of x, of an ordinal column in their order; () for
            numbers and dates.
        kind: "real", "count", "binary", "categorical" or "ordinal", if `--columns` names one for it; or ""; or "below",
            if its missing fields are those below its limit.
        decimals: digits behind the point of its numbers, 0 if they are whole; None if that is not known.
        least: the least value in the file.
        greatest: the greatest value in the file.
        origin: what is added to a value of x to give the number in the file, or for dates the days since 1970-01-01.
        unit: the unit of the values of x, for instance "days from 2020-03-01", or "".
        date_format: how dates are written, as `datetime.strftime` takes it, %z in UTC; "" for a column of other values.
        suffix: "%" behind each number, or "".
        point: "." or the decimal comma.
        step: of which the differences of its numbers are multiples, such as 500, if it is above a unit of the last
            digit; of dates those of times of the day, in days, such as of whole minutes; or 0.
        least_decimals: the fewest digits behind the point of a number in the file, up to which zeros at the end are not
            written; None if all have `decimals`.
        limit: L, below which values are known only to be below it; or None. `origin` is then 0.
        limit_text: how a field below L is written, such as "<0.5".
    """

    name: str
    categories: tuple[str, ...] = ()
    kind: str = ""
    decimals: int | None = None
    least: float | None = None
    greatest: float | None = None
    origin: float = 0.0
    unit: str = ""
    date_format: str = ""
    suffix: str = ""
    point: str = "."
    step: float = 0.0
    least_decimals: int | None = None
    limit: float | None = None
    limit_text: str = ""

    @property
    def type(self) -> type[ColumnType]:
        """The type that parses and writes it."""
        if self.categories:
            return Text
        if self.date_format:
            return Date
        if self.limit is not None:
            return Limited
        return Number

    @property
    def spacing(self) -> float:
        """The distance of neighbouring values in the unit of x; 1 of categories, and of numbers of any digits."""
        if self.categories:
            return 1.0
        if self.step:
            return self.step
        if self.date_format:
            return self.date_unit / timedelta(days=1)
        if self.decimals is None or self.decimals > _MOST_DECIMALS:
            return 1.0
        return float(10.0**-self.decimals)

    @property
    def natural_range(self) -> tuple[float, float]:
        """The least and the greatest value that its numbers have by themselves: 0, or the first above it, and 1."""
        if self.least is None or self.greatest is None or self.date_format or not math.isfinite(self.least):
            return -math.inf, math.inf
        first = self.origin + self.least
        if first < 0 or self.categories:
            return -math.inf, math.inf
        if self.decimals is None:
            return -self.origin, math.inf
        greatest = math.inf
        if self.origin + self.greatest <= 1:  # a share
            greatest = 1 - self.origin
        if self.decimals > _MOST_DECIMALS and not self.step:
            return -self.origin, greatest
        least = first - self.spacing * math.floor(first / self.spacing + 1e-6)
        if first > 0 and least < 1e-3 * self.spacing:  # none is 0
            least += self.spacing
        return least - self.origin, greatest

    @property
    def date_unit(self) -> timedelta:
        """The unit in which dates are written."""
        parts = ("days", "%d"), ("hours", "%H"), ("minutes", "%M"), ("seconds", "%S"), ("microseconds", "%f")
        return timedelta(**{[name for name, code in parts if code in self.date_format or code == "%d"][-1]: 1})

    @property
    def below(self) -> float:
        """The value of x of a field below the limit."""
        limit = self.limit or 0.0
        return limit - (abs(limit) / 2 or 1.0)

    def is_below(self, value: float) -> bool:
        """Return whether a value lies below the limit."""
        return self.limit is not None and value < self.limit

    def rounded(self, value: float) -> float:
        """Return a value that was drawn or computed as one of the file: in its steps and decimals, or `below`.

        A number of a column of which none is below 0, or none is 0, is not below 0 either, or not 0; and one of a
        column of shares is at most 1. It may lie beyond the values of the file.
        """
        value = self._in_steps(value)
        if self.is_below(value):
            return self.below
        return value

    def _in_steps(self, value: float) -> float:
        if math.isnan(value):
            return value
        if self.date_format:
            return round((self.origin + value) / self.spacing) * self.spacing - self.origin
        is_in_digits = self.decimals is not None and self.decimals <= _MOST_DECIMALS
        if self.step and self.least is not None:
            value = self.least + self.step * round((value - self.least) / self.step)
        elif not is_in_digits:
            return value
        least, greatest = self.natural_range
        value = min(max(value, least), greatest)
        if is_in_digits:
            return round(self.origin + value, self.decimals) - self.origin
        return value

    def text(self, value: float, is_given: bool = False, is_filled: bool = False) -> str:
        """Return a value as the file has it: the text of a category, a date, or a number with the file's decimals.

        Numbers and dates that were drawn or computed are rounded, as `rounded` says.

        Args:
            value: a value of x; NaN becomes "".
            is_given: the value is from a file, and keeps all of its digits.
            is_filled: the value is imputed; it is a number below the limit, too.
        """
        if math.isnan(value):
            return ""
        if is_filled and self.is_below(value):
            return f"{value:.6g}".replace(".", self.point) + self.suffix
        if not (is_given or self.categories):
            value = self.rounded(value)
        return self.type.text(self, value, is_given)


class ColumnType(ABC):
    """A type of column: how it is recognised by its texts, and how fields become values and values become texts.

    Attributes:
        parsed: the kinds of dtypes beside texts, such as "f", that `values` takes.
    """

    parsed = ""

    @classmethod
    @abstractmethod
    def fits(cls, draft: Column, texts: Series, numbers: Series) -> Column | str | None:
        """Return the column with these texts; why it is left out; or None, if it is of another type.

        Args:
            draft: its name, its decimal point, and its kind, categories or limit where they are named.
            texts: its fields, NaN where one is missing.
            numbers: the numbers in them, NaN for other texts.

        Raises:
            InputError: the texts contradict what is named.
        """

    @classmethod
    @abstractmethod
    def values(cls, column: Column, fields: Series) -> Series:
        """Return the values of x, float64, NaN for fields of another type.

        Args:
            column: the column.
            fields: texts, numbers or dates, NaN where one is missing.
        """

    @classmethod
    @abstractmethod
    def text(cls, column: Column, value: float, is_given: bool) -> str:
        """Return the text of a value that is not NaN; one that is not from a file is rounded."""

    @classmethod
    def wanted(cls, column: Column) -> str:
        """Return what a field of the column must be."""
        return "a number that float64 holds, or missing: --missing-values of a training names other texts"


class Number(ColumnType):
    """Numbers, with a decimal point or comma, marks between their thousands, or %."""

    parsed = "iuf"

    @classmethod
    def fits(cls, draft: Column, texts: Series, numbers: Series) -> Column | str | None:
        """Return the column; whole numbers that only identify rows are left out."""
        x = numbers.dropna().to_numpy()
        if not len(x):
            return replace(draft, point=".")
        distinct = [*texts.dropna().unique()]
        least, greatest = float(x.min()), float(x.max())
        decimals = fewest = None
        if not any("e" in text.lower() for text in distinct):
            counts = {len(text.rstrip(" %").partition(draft.point)[2]) for text in distinct}
            fewest, decimals = min(counts), max(counts)
        if (x == x.round()).all():
            decimals = 0
        if not draft.kind and decimals == 0 and len(distinct) == len(texts.dropna()):
            is_sequence = greatest - least + 1 == len(x) >= _FEW_ROWS and (least in (0, 1) or len(x) > _MOST_TEXTS)
            if is_sequence or re.search(_ID, draft.name):
                how = f"--name-column {shlex.quote(draft.name)} takes it as the names of rows"
                how += f", --columns {shlex.quote(f'{draft.name}=real')} as values"
                return f"whole numbers, of which each row has its own: {how}"
        origin, step, unit, suffix = 0.0, 0.0, "", ""
        times = min(abs(least), abs(greatest)) / (greatest - least or math.inf)
        is_lost = 2.0**-23 * max(abs(least), abs(greatest)) > 10.0 ** -(decimals or 0)  # as of the seconds of a year
        is_far = times > 100 or (times > 4 and is_lost)  # in float32 too few digits differ
        if is_far and draft.kind in ("", "real"):
            origin = float(math.floor(least))
            unit = f"less {origin:,.0f}"
        if any(text.endswith("%") for text in distinct):
            suffix = "%"
        if decimals is not None:
            step = steps_of(torch.tensor(x[:, None])).item()
            if step < 1.5 * 10.0**-decimals:  # a unit of the last digit
                step = 0.0
        return replace(
            draft,
            decimals=decimals,
            least=least - origin,
            greatest=greatest - origin,
            origin=origin,
            unit=unit,
            suffix=suffix,
            step=step,
            least_decimals=fewest,
        )

    @classmethod
    def values(cls, column: Column, fields: Series) -> Series:
        """Return the numbers, less the origin; NaN for whole numbers of more digits than float64 holds."""
        if fields.dtype.kind in "iuf":
            return fields.astype("Float64").astype(float) - column.origin
        numbers = numbers_in(fields, column.point)
        large = fields[numbers.abs() >= _MOST_WHOLE]
        is_lost = [text.lstrip("+-").isdecimal() and int(text) != int(float(text)) for text in large]
        numbers[large.index[is_lost]] = np.nan
        return numbers - column.origin

    @classmethod
    def text(cls, column: Column, value: float, is_given: bool) -> str:
        """Return a number with the decimals of the file, or as many as it has."""
        number = column.origin + value
        if column.decimals is None:
            digits = 15 if is_given else 6
            text = f"{number:.{digits}g}"
        elif column.decimals > _MOST_DECIMALS:  # written from doubles: the shortest text of this number
            single = np.float32(number)
            text = repr(number)
            if float(single) == number:
                text = str(single)
        else:
            text = f"{round(number, column.decimals) + 0.0:.{column.decimals}f}"  # 0.0 makes -0 a 0
            if is_given and float(text) != number:
                text = f"{number:.15g}"
            elif column.least_decimals is not None:
                whole, _, fraction = text.partition(".")
                text = f"{whole}.{fraction.rstrip('0').ljust(column.least_decimals, '0')}".rstrip(".")
        return text.replace(".", column.point) + column.suffix


class Limited(Number):
    """Numbers of which some are known only to be below a limit.

    `--columns` names the limit, or texts such as "<0.5" do. Where there are no such texts, what is missing lies below.
    """

    @classmethod
    def fits(cls, draft: Column, texts: Series, numbers: Series) -> Column | str | None:
        """Return the column if there is a limit."""
        name, x = draft.name, numbers.dropna()
        if draft.kind not in ("", "below", *LIMITED) or (draft.limit is None and len(x) == texts.count()):
            return None
        limits = limits_in(texts, draft.point)
        below = limits.dropna()
        if draft.limit is not None and x.empty:
            raise InputError(f"{name} holds no numbers, and can have no limit: name another kind in --columns")
        is_seldom = x.empty or 2 * (len(x) + len(below)) < texts.count()
        if is_seldom or (below.empty and draft.limit is None):
            return None
        limit, least = draft.limit, float(x.min())
        if limit is None:
            limit = float(below.min())
        if below.max() > limit:
            some = listed([*texts[below.index].unique()])
            largest = f"{name}=below:{below.max():.15g}"
            how = f"give --columns {shlex.quote(largest)}, by which all values below it count so"
            raise InputError(f"{name} has several limits ({some}): {how}")
        if least < limit and below.nunique() < 2:
            raise InputError(f"{name} has the value {least:g} below its limit {limit:g}: give a smaller limit")
        column = super().fits(replace(draft, kind="positive", categories=()), texts[limits.isna()], numbers)
        assert isinstance(column, Column)
        kind, step = draft.kind.replace("below", ""), replace(column, limit=None).spacing
        if below.empty:
            kind = "below"
        text = f"<{limit:.15g}".replace(".", draft.point) + column.suffix
        return replace(
            column,
            kind=kind,
            least=least - step * (math.floor((least - limit) / step + 1e-6) + 1),  # the first value below the limit
            limit=limit,
            limit_text=next(iter(texts[limits == limit]), text),
        )

    @classmethod
    def values(cls, column: Column, fields: Series) -> Series:
        """Return the numbers, and `Column.below` for what lies below the limit."""
        x = super().values(column, fields)
        is_low = x < column.limit
        if fields.dtype.kind not in "iuf":
            is_low |= limits_in(fields, column.point) <= column.limit
        if column.kind == "below":
            is_low |= fields.isna()
        return x.mask(is_low, column.below)

    @classmethod
    def text(cls, column: Column, value: float, is_given: bool) -> str:
        """Return a number, or the text of the limit."""
        if column.is_below(value):
            return column.limit_text
        return super().text(column, value, is_given)


class Date(ColumnType):
    """Dates, with or without a time."""

    parsed = "M"

    @classmethod
    def fits(cls, draft: Column, texts: Series, numbers: Series) -> Column | str | None:
        """Return the column if most texts are dates of one format."""
        is_numeric = numbers.count() == texts.count() and not (texts.dropna().str.len() == 8).all()
        if is_numeric or draft.categories or draft.kind not in ("", "real"):
            return None
        date_format = date_format_of(texts)
        if not date_format:
            return None
        days = days_in(texts, date_format)
        origin, least, greatest = float(math.floor(days.min())), float(days.min()), float(days.max())
        unit = f"days from {EPOCH + timedelta(days=origin):%Y-%m-%d}"
        if "%z" in date_format:
            unit += " UTC"
        column = replace(
            Column(draft.name, kind=draft.kind, origin=origin, unit=unit, date_format=date_format),
            least=least - origin,
            greatest=greatest - origin,
        )
        times = (_MILLISECONDS * (days % 1)).round().dropna().to_numpy(int)
        step = np.gcd.reduce(times, initial=_MILLISECONDS) / _MILLISECONDS  # from midnight
        if 1.5 * column.spacing < step < 1:
            return replace(column, step=step)
        return column

    @classmethod
    def values(cls, column: Column, fields: Series) -> Series:
        """Return the days from the origin."""
        return days_in(fields, column.date_format) - column.origin

    @classmethod
    def text(cls, column: Column, value: float, is_given: bool) -> str:
        """Return a date in the format of the file, in UTC."""
        units = round(timedelta(days=column.origin + value) / column.date_unit)
        return f"{EPOCH + units * column.date_unit:{column.date_format.replace('%z', '+00:00')}}"

    @classmethod
    def wanted(cls, column: Column) -> str:
        """Return what a field of the column must be."""
        return f"a date, such as {column.text(0.0)}"


class Text(ColumnType):
    """Texts, whose codes are the values; digits of which some begin with 0 are texts, as zip codes."""

    @classmethod
    def fits(cls, draft: Column, texts: Series, numbers: Series) -> Column | str | None:
        """Return the column if a kind or categories are named, or few of its texts are numbers."""
        if draft.kind in ("categorical", "ordinal"):
            return Column(draft.name, cls._named(draft, texts, numbers), draft.kind)
        if draft.categories:
            return Column(draft.name, draft.categories)
        distinct, count, quoted = texts.dropna().unique(), texts.count(), shlex.quote(draft.name)
        are_digits = all(map(str.isdecimal, distinct))
        are_names = any(re.match("0.", text) for text in distinct) or numbers.abs().max() >= _MOST_WHOLE
        if draft.kind or not ((are_digits and are_names) or 2 * numbers.count() < count):
            return None
        if len(distinct) == count >= _FEW_ROWS or len(distinct) > max(_MOST_TEXTS, len(texts)) / 2:
            return f"texts, of which each row has its own: --name-column {quoted} takes it as the names of rows"
        if len(distinct) > max(_MOST_TEXTS, count / _ROWS_OF_TEXT):
            kept = shlex.quote(f"{draft.name}=categorical")
            how = f"give --ignore {quoted}, --name-column {quoted} or --columns {kept}"
            raise InputError(f"column {draft.name} has {len(distinct):,} different texts: {how}")
        return Column(draft.name, tuple(sorted(distinct)))

    @classmethod
    def _named(cls, draft: Column, texts: Series, numbers: Series) -> tuple[str, ...]:
        """Return the categories of a column that is named categorical or ordinal, perhaps with them or their number."""
        name, categories, distinct = draft.name, draft.categories, sorted({*texts.dropna()})
        is_numeric = numbers.count() == texts.count()
        if categories and (is_numeric or {*distinct} & {*categories}):
            return categories
        if draft.kind == "ordinal" and not is_numeric:
            raise InputError(f"name the levels of {name} in their order: --columns {name}=ordinal:small<medium<large")
        if categories and len(categories) != len(distinct):
            what = f"{name} has {len(distinct):,} different texts ({listed(distinct)}), and not {len(categories)}"
            raise InputError(f"{what}: --columns {shlex.quote(f'{name}={draft.kind}:{len(distinct)}')}")
        if is_numeric:
            number_of = dict(zip(texts, numbers))
            distinct.sort(key=lambda text: number_of[text])
        return tuple(distinct)

    @classmethod
    def values(cls, column: Column, fields: Series) -> Series:
        """Return the codes."""
        codes = {text: float(code) for code, text in enumerate(column.categories)}
        values = fields.map(codes)
        others = fields[values.isna()].str.replace(r"\.0*$", "", regex=True)  # "3.0" is "3" too
        return values.fillna(others.map(codes))

    @classmethod
    def text(cls, column: Column, value: float, is_given: bool) -> str:
        """Return the text of the nearest code."""
        return column.categories[min(max(round(value), 0), len(column.categories) - 1)]

    @classmethod
    def wanted(cls, column: Column) -> str:
        """Return what a field of the column must be."""
        return f"one of {listed(column.categories)}"


def fitted(draft: Column, texts: Series, numbers: Series) -> Column | str:
    """Return the column of the first type that fits, or why it is left out; arguments as for `ColumnType.fits`."""
    if not (draft.kind or draft.categories) and texts.nunique() < 2:
        return f"all are {shown(texts.dropna().iloc[0])}" if texts.count() else "empty"
    fits = (column_type.fits(draft, texts, numbers) for column_type in (Limited, Date, Text, Number))
    return next(found for found in fits if found is not None)


def parse(column: Column, fields: Series) -> tuple[NDArray[np.float64], dict[int, str]]:
    """Return the values of x in fields of a column, and why others are none, by their index.

    Args:
        column: the column.
        fields: texts, or numbers or dates of a data frame; NaN where one is missing.
    """
    if fields.dtype.kind not in f"O{column.type.parsed}":
        fields = field_texts(fields).where(fields.notna())
    values = column.type.values(column, fields)
    wanted = column.type.wanted(column)
    wrong = fields[fields.notna() & values.isna()]
    return values.to_numpy(), {row: f"{column.name} is {shown(text)}, and not {wanted}" for row, text in wrong.items()}


def field_texts(column: Series) -> Series:
    """Return the fields of a column of a data frame as texts, "" where one is missing; days without their hour."""
    texts = column.astype(object).where(column.notna(), "").map(str).str.strip()
    are_days = (texts.str.endswith(" 00:00:00") | ~texts.str.contains(":")).all()
    return texts.str.removesuffix(" 00:00:00") if are_days else texts


def numbers_in(texts: Series, point: str) -> Series:
    """Return the numbers in texts, float64, NaN for other texts.

    Args:
        texts: numbers, perhaps with marks between thousands or % behind them; NaN where one is missing.
        point: "." or the decimal comma.
    """
    from pandas import to_numeric

    plain = texts.astype(object)
    if point == ",":
        plain = plain.str.translate(_SWAPPED)
    numbers = to_numeric(plain, errors="coerce").astype(float)
    others = plain[numbers.isna()].dropna().str.removesuffix("%")
    has_marks = others.str.fullmatch(_WITH_MARKS)
    others = others.mask(has_marks, others.str.replace(",", ""))
    return numbers.fillna(to_numeric(others, errors="coerce"))


def limits_in(texts: Series, point: str) -> Series:
    """Return the limits in texts such as "<0.5", NaN for other texts."""
    return numbers_in(texts.str.extract(r"^<\s*(.+)$")[0], point)


def date_format_of(texts: Series) -> str:
    """Return the format of dates, or "" if most texts are no dates.

    The first few texts that differ say which formats are possible; that is taken which reads the most texts. Of formats
    with slashes in which day or month may come first and which read equally many, it is that of the month.
    """
    from pandas.tseries.api import guess_datetime_format

    few = texts.dropna().drop_duplicates().iloc[:_FEW_TEXTS]
    with warnings.catch_warnings():  # where the day comes first in spite of dayfirst=False
        warnings.simplefilter("ignore")
        guesses = [guess_datetime_format(text, dayfirst=("." in text) != swaps) for swaps in (0, 1) for text in few]
    formats = [text for guess in guesses if guess for text in (guess.replace("%z", "Z"), guess)]
    counts = {"": texts.count() / 2}
    for text in dict.fromkeys((*formats, *_DATES)):
        if days_in(few, text).count():
            counts[text] = days_in(texts, text).count()
    return max(counts, key=lambda text: counts[text])


def days_in(dates: Series, date_format: str) -> Series:
    """Return the days since 1970 in UTC of dates, or of texts in a format; NaN for other texts."""
    from pandas import to_datetime

    days = (to_datetime(dates, format=date_format, errors="coerce", utc=True) - EPOCH) / timedelta(days=1)
    return days.where(days.abs() < _MOST_DAYS)
