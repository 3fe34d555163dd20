"""Tables as CSV, https://www.rfc-editor.org/rfc/rfc4180, for people who open them in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class _Quoted(csv.excel):
    """Every cell is in quotes."""

    quoting = csv.QUOTE_ALL


def csv_text(
    columns: Sequence[str], lines: Iterable[Sequence[object]], *, quoted: bool = False
) -> str:
    """The table under its head; a cell of None is empty, text that looks like a formula is marked as text.

    `quoted`: each cell is in quotes, as the audit looks for the patients of an answer.
    """
    text = io.StringIO()
    dialect = _Quoted if quoted else csv.excel
    writer = csv.writer(text, dialect)
    writer.writerow(columns)
    writer.writerows([_cell(each) for each in line] for line in lines)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str) and value[:1] in _FORMULA:
        return f"'{value}"
    return "" if value is None else value
