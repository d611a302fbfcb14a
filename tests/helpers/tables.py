"""What the tests of tables share."""

from pandas import DataFrame

from pvae.trained.frames import texts_of


def table_text(columns, values):
    """Rows (N, D) of columns as a file of texts, with semicolons where a number has a decimal comma."""
    sep = ";" if any(column.point == "," for column in columns) else ","
    return DataFrame(texts_of(columns, values)).to_csv(index=False, sep=sep, lineterminator="\n")
