"""Read CSV tables and JSON files from untrusted sources and explain every fault."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LARGEST = 64 << 20  # most bytes of a file; a hundred thousand cases take a tenth of that


def read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a CSV: its columns, and its rows with their line numbers; a missing cell is "". Columns may be separated by
    semicolons or tabs instead; empty rows are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another encoding than UTF-8, NUL bytes, a duplicate column, a row with more cells than
            columns, or cells without end.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no table {path}; give a CSV file")
    text = _text(path)
    header = text.partition("\n")[0]
    outside = re.sub('"[^"]*"', "", header)
    delimiter = max(",;\t", key=outside.count)  # of a spreadsheet in any language
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = [(column or "").strip() for column in reader.fieldnames or []]
        reader.fieldnames = columns
        doubled = sorted({column for column in columns if columns.count(column) > 1})
        if doubled:
            raise ValueError(f"{path} has the column {doubled[0]!r} more than once; keep one of them")
        rows = []
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{path}, line {reader.line_num}: more cells than the {len(columns)} columns; put a "
                    "cell with a comma into quotes"
                )
            cells = {key: (value or "").strip() for key, value in row.items()}
            if any(cells.values()):  # a spreadsheet leaves rows of nothing but commas
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: invalid CSV ({error}); save the table again as CSV, UTF-8"
        ) from error
    return columns, rows


def read_json(path: Path, *, cure: str = "repair or remove it") -> Any:
    """Read a JSON file.

    Raises `ValueError`, with the `cure`, if it is not JSON, nests too deeply, or is too large.
    """
    text = _text(path)
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{path} is not readable JSON (it nests too deeply); {cure}") from error
    except ValueError as error:  # also raised for a number of thousands of digits
        raise ValueError(f"{path} is not readable JSON ({error}); {cure}") from error


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{path} has {size} bytes; ctssl reads tables and JSON of up to {LARGEST} bytes")
    content = path.read_bytes()
    if b"\0" in content:
        raise ValueError(f"{path} contains NUL bytes, so it is damaged or UTF-16; save it again as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); save it again as UTF-8") from error


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of columns and rows of text.

    >>> print(markdown(["a", "b"], [["1", "2"]]), end="")
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Return rows with the same keys as a Markdown table; NaN is a dash, "" for no rows."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return "-" if math.isnan(value) else f"{value:.3g}"
        return str(value)

    return markdown(list(rows[0]), [[cell(row.get(c, "")) for c in rows[0]] for row in rows]) if rows else ""


def csv_cell(value: Any) -> Any:
    """Return a value for a CSV: text that a spreadsheet would take for a formula gets a quote in front.

    >>> csv_cell("=1+1")
    "'=1+1"
    """
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Return rows as CSV, with a column for every key; no cell is a formula to a spreadsheet.

    >>> csv_text([{"case": "=1+1", "dsc": 0.5}])
    "case,dsc\\n'=1+1,0.5\\n"
    """
    columns, text = list(dict.fromkeys(key for row in rows for key in row)), io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(csv_cell, columns))
    writer.writerows([csv_cell(row.get(column, "")) for column in columns] for row in rows)
    return text.getvalue()


def as_plain(value: Any) -> Any:
    """Replace NaN by None, recursively: JSON has no NaN.

    >>> as_plain({"dsc": [0.5, math.nan]})
    {'dsc': [0.5, None]}
    """
    if isinstance(value, dict):
        return {key: as_plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [as_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
