"""Two reconstructions of one acquisition: how far do masks, volumes and features of a model agree?"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.datasets.scans import stem
from ctssl.files.text import read_table
from ctssl.inference.features import embed
from ctssl.inference.masks import segment
from ctssl.metrics import dsc
from ctssl.volume.grids import resample
from ctssl.volume.volume import Volume, read

FEWEST = 3  # pairs below which a concordance over them says nothing


def find_pairs(table: Path) -> list[tuple[str, Path, Path]]:
    """Read name, first and second scan of each row of a CSV with the columns `first` and `second` (and `id`).

    Raises `ValueError` or `FileNotFoundError` for a column or a file that is missing.
    """
    columns, rows = read_table(table)
    if not {"first", "second"} <= set(columns):
        raise ValueError(
            f"{table} has the columns {columns}; needed: first, second (two scans of one "
            "acquisition, files found from the table's folder), and id if they have a name"
        )
    found = [
        (
            row.get("id") or f"{stem(Path(row['first']))}, {stem(Path(row['second']))}",
            table.parent / row["first"],
            table.parent / row["second"],
        )
        for _, row in rows
    ]
    names = [name for name, *_ in found]
    if len(set(names)) < len(names):  # files of one name in the folders of several patients
        found = [
            (row.get("id") or f"{row['first']}, {row['second']}", one, two)
            for (_, row), (_, one, two) in zip(rows, found, strict=True)
        ]
    doubled = [name for name, count in Counter(name for name, *_ in found).items() if count > 1]
    if doubled:
        raise ValueError(f"{table} has the pair {doubled[0]!r} more than once; keep one, or give each an id")
    missing = [path for _, *both in found for path in both if not path.exists()]
    if missing or not found:
        raise FileNotFoundError(
            f"{table} names {len(missing)} scans that are not there, first {missing[0]}"
            if missing
            else f"{table} names no pair"
        )
    return found


def agreement(
    model: Any, pairs: list[tuple[str, Any, Any]], *, progress: bool = False
) -> list[dict[str, Any]]:
    """Return a row for each pair and label: DSC of the two masks, their volumes, and how similar the embeddings of both
    scans are.

    A pair is its name and two scans, as `ctssl.read` takes them. Both masks are made whole, and compared
    where the second scan covers the first one's grid (`covered`, a share). `dsc` and `volume_difference`,
    which is relative to the mean of both, are NaN if both are empty; `embedding_cosine` and
    `embedding_concordance` are of `encoder.embed`. Raises `ValueError` for scans that do not overlap.
    """
    from tqdm import tqdm

    rows = []
    for name, *both in tqdm(pairs, desc="pairs", disable=not progress):
        one, two = (read(path) for path in both)
        covered = resample(np.ones(two.shape, np.float32), two.affine, one.shape, one.affine) > 0.5
        if not covered.any():
            raise ValueError(
                f"{name}: the second scan lies beside the first one, so they are not of one acquisition; look at "
                "the pair in the table"
            )
        first, second = (segment(model, scan) for scan in (one, two))
        features = {"embedding_cosine": math.nan, "embedding_concordance": math.nan}
        if hasattr(model.encoder, "forward_intermediates"):  # nnU-Net's network has no embedding
            a, b = (embed(model.encoder, scan).numpy().astype(float) for scan in (one, two))
            features = {
                "embedding_cosine": float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)),
                "embedding_concordance": concordance(a, b),
            }
        for label in model.labels:
            rows.append(
                {
                    "pair": name,
                    "label": label,
                    "covered": float(covered.mean()),
                    **_masks(first, second, covered, label=label),
                    **features,
                }
            )
    return rows


def _masks(one: Volume, two: Volume, covered: np.ndarray, *, label: int) -> dict[str, float]:
    first = (one.array == label) & covered
    second = (resample(two.array == label, two.affine, one.shape, one.affine) > 0.5) & covered
    a, b = (float(mask.sum()) * one.voxel_ml for mask in (first, second))
    return {
        "dsc": dsc(first, second) if a + b else math.nan,
        "first_ml": a,
        "second_ml": b,
        "volume_difference": 2 * (b - a) / (a + b) if a + b else math.nan,
    }


def concordance(x: np.ndarray, y: np.ndarray) -> float:
    """Compute Lin's concordance correlation coefficient (Biometrics 1989): 1 on the line of identity, NaN without
    any spread."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    spread = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    return float(2 * ((x - x.mean()) * (y - y.mean())).mean() / spread) if spread > 0 else math.nan


def _mean(values: list[float]) -> float:
    """Return the mean of the values that are not NaN; NaN where there is none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def summarise(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Average over the pairs (masks: where one of the two holds something), with the concordance of volumes over
    the pairs."""
    pairs = len({row["pair"] for row in rows})
    labels = sorted({row["label"] for row in rows})
    volumes = [
        np.array([[r["first_ml"], r["second_ml"]] for r in rows if r["label"] == label]) for label in labels
    ]
    differences = [abs(row["volume_difference"]) for row in rows if not math.isnan(row["volume_difference"])]
    return {
        "pairs": pairs,
        "dsc": _mean([row["dsc"] for row in rows]),
        "both_empty": sum(row["first_ml"] == row["second_ml"] == 0 for row in rows),
        "volume_difference": float(np.mean(differences)) if differences else math.nan,
        "volume_concordance": _mean([concordance(*of_label.T) for of_label in volumes])
        if pairs >= FEWEST
        else math.nan,
        "embedding_cosine": float(np.mean([row["embedding_cosine"] for row in rows])),
        "embedding_concordance": float(np.mean([row["embedding_concordance"] for row in rows])),
    }
