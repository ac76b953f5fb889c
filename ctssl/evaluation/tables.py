"""Read a user's table by case."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ctssl.datasets.manifest import check_spelling
from ctssl.datasets.scans import stem
from ctssl.evaluation.scores import RESERVED
from ctssl.files.text import read_table


def read_facts(path: Path, by: tuple[str, ...], names: list[str]) -> dict[str, dict[str, str]]:
    """Read for each case the columns `by` of a CSV, and its patient.

    Args:
        path: the CSV, with a column `id`, `case` or `image`.
        by: columns to read.
        names: cases that must have a row.

    Raises:
        ValueError: a column or row is missing, a case has several rows, or a column has a reserved name.
    """
    columns, listed = read_table(path)
    check_spelling(columns, path, ("patient",))
    key = next((c for c in ("id", "case", "image") if c in columns), None)
    missing = [c for c in by if c not in columns]
    if key is None or missing:
        raise ValueError(
            f"{path} has the columns {columns}; needed: id, case or image"
            + (f", and {missing}" if missing else "")
        )
    taken = [c for c in by if c in RESERVED]
    if taken:
        raise ValueError(
            f"{path}: reserved column name {', '.join(taken)}; the results have a column of that name, "
            "so rename the column of the table"
        )

    def name_of(row: dict[str, str]) -> str:
        return row[key] if key != "image" else stem(Path(row[key])).removesuffix("_0000")

    rows = {name_of(row): row for _, row in listed}
    doubled = [name for name, count in Counter(name_of(row) for _, row in listed).items() if count > 1]
    if doubled:
        raise ValueError(f"{path} has more than one row for {', '.join(doubled[:5])}; keep one of each")
    absent = [name for name in names if name not in rows]
    if absent:
        raise ValueError(f"{path} has no row for {', '.join(absent[:5])} ({len(absent)} cases); add them")
    return {
        name: {
            column: rows[name][column]
            for column in (*by, *(["patient"] if rows[name].get("patient") else []))
        }
        for name in names
    }
