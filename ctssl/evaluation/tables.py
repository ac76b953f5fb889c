"""Tables: columns of a user's CSV by case, Markdown and JSON out."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from ctssl.datasets.scans import stem
from ctssl.evaluation.scores import RESERVED
from ctssl.files.text import read_table


def facts_of(path: Path, by: tuple[str, ...], names: list[str]) -> dict[str, dict[str, str]]:
    """For each case what the table says in the columns `by`, and its patient."""
    columns, listed = read_table(path)
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
            f"{path}: a stratum cannot be called {', '.join(taken)}, as the results have such a column of their "
            "own; rename the column of the table"
        )

    def name_of(row: dict[str, str]) -> str:
        return row[key] if key != "image" else stem(Path(row[key])).removesuffix("_0000")

    rows = {name_of(row): row for _, row in listed}
    doubled = [name for name, count in Counter(name_of(row) for _, row in listed).items() if count > 1]
    if doubled:
        raise ValueError(f"{path} has more than one row for {', '.join(doubled[:5])}; keep one of each")
    absent = [name for name in names if name not in rows]
    if absent:
        raise ValueError(f"{path} has no row for {', '.join(absent[:5])} ({len(absent)} cases)")
    return {
        name: {
            column: rows[name][column]
            for column in (*by, *(["patient"] if rows[name].get("patient") else []))
        }
        for name in names
    }


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys; NaN is a dash."""

    def cell(value: Any) -> str:
        return (
            "-"
            if isinstance(value, float) and math.isnan(value)
            else f"{value:.3g}"
            if isinstance(value, float)
            else str(value)
        )

    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return (
        "\n".join(lines + ["| " + " | ".join(cell(row.get(c, "")) for c in columns) + " |" for row in rows])
        + "\n"
    )


def as_plain(value: Any) -> Any:
    """NaN as null: JSON has no word for it."""
    if isinstance(value, dict):
        return {key: as_plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [as_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
