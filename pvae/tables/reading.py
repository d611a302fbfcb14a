"""How data are read, declared once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pvae.core.options import Option
from pvae.models.columns import ColumnsText

MISSING_VALUES = "NA,N/A,n/a,#N/A,<NA>,NaN,nan,null,NULL,None,?,-"
_IMAGE_FILES = "dataset=folder:PATH,celeba"
_TABLES = "dataset=table:FILE"


@dataclass(frozen=True)
class Reading:
    """How data are read: image files, by the first three, and tables, by the others.

    Args:
        image_size: height and width of images.
        grey: read colour images as grey ones.
        skip_broken: leave out image files that cannot be decoded.
        label_column: the column of the labels, or "".
        name_column: the column of the names of rows, or "".
        ignore: names of columns that are no part of x, with commas in between.
        missing_values: the texts that stand for a missing value, with commas in between.
        columns: the kinds of columns, as `models.columns.ColumnsText` says.
        rules: "auto", "none", which rules of a table are left out, and rules that are said, with ; in between.
    """

    image_size: Annotated[
        str,
        Option(
            help="height and width to which image files are resized: 28x20, or 64 for 64x64. auto: their median size, "
            "reduced to a longer side of 64 if it is larger; what does not fit its shape is cut off at both ends",
            pattern=r"auto|[1-9]\d{0,3}(x[1-9]\d{0,3})?",
            described="auto, a size such as 28x20 (height x width), or 64 for 64x64",
            needs=_IMAGE_FILES,
        ),
    ] = "auto"
    grey: Annotated[
        bool,
        Option(
            help="read colour images as grey ones; images that are all grey have one channel anyway",
            needs=_IMAGE_FILES,
        ),
    ] = False
    skip_broken: Annotated[bool, Option(help="leave out image files that cannot be decoded", needs=_IMAGE_FILES)] = (
        False
    )
    label_column: Annotated[
        str,
        Option(
            help="the column of a table that holds the labels, and is no part of x; an empty field is a label that is "
            "not known",
            pattern=r"[^\n]{0,200}",
            described="the name of a column",
            needs=_TABLES,
        ),
    ] = ""
    name_column: Annotated[
        str,
        Option(
            help="the column of a table that names its rows, and is no part of x: encode, score and sample --impute "
            "write the names",
            pattern=r"[^\n]{0,200}",
            described="the name of a column",
            needs=_TABLES,
        ),
    ] = ""
    ignore: Annotated[
        str,
        Option(
            help="columns of a table that are no part of x: their names, with commas in between",
            pattern=r"[^\n]{0,10000}",
            described="names of columns, with commas in between",
            needs=_TABLES,
        ),
    ] = ""
    missing_values: Annotated[
        str,
        Option(
            help="the texts that stand for a missing value in a table, beside an empty field, with commas in between; "
            "they replace the default ones",
            pattern=r"[^\n]{0,1000}",
            described="texts, with commas in between",
            needs=_TABLES,
        ),
    ] = MISSING_VALUES
    columns: ColumnsText = ""
    rules: Annotated[
        str,
        Option(
            help="auto: find laws in the training rows of a table, which then hold in every drawn row; or rules with ; "
            "in between, beside those that are found: 'total = a + b; refund <= price; currency by country; at most "
            "one of a, b'; 'not NAME', with commas in between, finds none of a column, or of a kind; none finds "
            "nothing. A column whose kind --columns names is not rewritten",
            pattern=r"[^\n]{1,10000}",
            described="auto, none, 'not NAME' with the name of a column or of a kind of rules, or rules",
            needs=_TABLES,
        ),
    ] = "auto"

    @property
    def missing_texts(self) -> set[str]:
        """The texts of fields that are missing."""
        return {text.strip() for text in self.missing_values.split(",")} | {""}
