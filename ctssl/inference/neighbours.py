"""Find similar scans or lesions: the nearest rows of a table of `ctssl embed`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctssl.files.text import read_table

FEATURE = re.compile(r"f\d+")


@dataclass(frozen=True)
class Embeddings:
    """A table of `ctssl embed`: names `(n,)`, the scan of each row, features `(n, d)` and their columns, and the models that
    made them (none in tables of earlier versions)."""

    names: list[str]
    scans: list[str]
    features: np.ndarray
    columns: tuple[str, ...]
    models: frozenset[str] = frozenset()

    @classmethod
    def read(cls, path: Path) -> Embeddings:
        """Read a table. Raises `ValueError` for a table without features, or with cells that are no numbers."""
        columns, lines = read_table(path)
        wanted = sorted(filter(FEATURE.fullmatch, columns), key=lambda column: int(column[1:]))
        if "scan" not in columns or not wanted:
            raise ValueError(
                f"{path} has no columns scan, f0, f1, ...; make it with `ctssl embed SCANS {path.name}`"
            )
        if not lines:
            raise ValueError(f"{path} has no rows; make it with `ctssl embed SCANS {path.name}`")
        rows, names = [], []
        for line, row in lines:
            try:
                rows.append([float(row[column]) for column in wanted])
            except ValueError as error:
                raise ValueError(f"{path}, line {line}: {error}; every feature must be a number") from error
            parts = [row["scan"], *(f"{key} {row[key]}" for key in ("label", "lesion") if row.get(key))]
            names.append(", ".join(parts))
        features = np.array(rows)
        if not np.isfinite(features).all():
            raise ValueError(f"{path} holds features that are not finite; embed the scans again")
        models = frozenset(row["model"] for _, row in lines if row.get("model"))
        if len(models) > 1:
            raise ValueError(
                f"{path} holds features of several models ({', '.join(sorted(models))}); embed with one"
            )
        return cls(names, [row["scan"] for _, row in lines], features, tuple(wanted), models)


def nearest(
    table: Embeddings, queries: Embeddings | None = None, *, top: int = 5
) -> list[dict[str, str | float]]:
    """Return the rows of a table that are most like each query, by the cosine of standardised features.

    Features are standardised by the mean and deviation of the table: as they are, all scans look alike.

    Args:
        table: what is searched.
        queries: what is looked for, features of the same encoder. None: every row of the table, among other scans.
        top: how many to return for each.

    Returns:
        Rows of `query`, `rank` (from 1), `found` and `similarity` (-1 to 1).

    Raises:
        ValueError: fewer than three rows to search, or features of another model, or of other columns.
    """
    if len(table.names) < 3:
        raise ValueError(
            f"{len(table.names)} rows are too few to search; embed at least three scans or lesions"
        )
    asked = queries or table
    if asked.columns != table.columns:
        raise ValueError(
            f"the queries have {len(asked.columns)} features and the table {len(table.columns)}, or other ones; embed both "
            "with the same model"
        )
    if len(both := asked.models | table.models) > 1:
        raise ValueError(
            f"features of {' and of '.join(sorted(both))} do not compare; embed both with the same model"
        )
    mean, deviation = table.features.mean(0), table.features.std(0)
    one, two = ((side.features - mean) / np.where(deviation > 0, deviation, 1.0) for side in (asked, table))
    lengths = [np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (one, two)]
    similarity = (one / lengths[0]) @ (two / lengths[1]).T
    rows: list[dict[str, str | float]] = []
    for number, name in enumerate(asked.names):
        order = np.argsort(-similarity[number], kind="stable")
        others = [k for k in order if queries is not None or table.scans[k] != table.scans[number]]
        for rank, k in enumerate(others[:top], 1):
            near = round(float(similarity[number, k]), 4)
            rows.append({"query": name, "rank": rank, "found": table.names[k], "similarity": near})
    return rows
