"""A CSV with a row for each scan: one reader, for fine-tuning, checking and pretraining."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path

from ctssl.datasets.scans import stem
from ctssl.files.names import check_case_name
from ctssl.files.text import read_table

SPLITS = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing", "ts", "held-out", "held_out"),
}
"""The splits, and the words for them in a column `split`, in whatever case."""


COLUMNS = ("image", "label", "id", "case", "patient", "split")


def check_spelling(columns: list[str], path: Path, wanted: tuple[str, ...] = COLUMNS) -> None:
    """Raise `ValueError` for a column such as `Split` or `PatientID` where there is no `split` or `patient`: it would be
    ignored, and what it says with it."""
    for known in wanted:
        spelt = (known, f"{known}id") if known in ("patient", "case") else (known,)
        spelt += ("subject", "subjectid", "participant", "participantid") if known == "patient" else ()
        close = [column for column in columns if re.sub(r"[\W_]", "", column.lower()) in spelt]
        instead = {"id", "case"} if known in ("id", "case") else {known}
        if close and not instead & set(columns):
            raise ValueError(f"{path} has the column {close[0]}; call it {known}")


@dataclass(frozen=True)
class Row:
    """A row of a manifest. `label`: None without a mask. `patient` and `split` (`train`, `val` or `test`):
    empty where the table does not say. `facts`: its further columns. `channels`: images on the grid of the first."""

    line: int
    name: str
    image: Path
    label: Path | None
    patient: str
    split: str
    facts: dict[str, str] = field(default_factory=dict)
    channels: tuple[Path, ...] = ()


def read_manifest(path: Path, *, labels: bool = False) -> list[Row]:
    """Read a CSV with the columns `image` and, if known, `label`, `id` or `case`, `patient`, `split`; `image2`, `image3`, ...
    for further channels.

    Args:
        path: the CSV; files are looked for from its own folder.
        labels: whether every row needs a mask.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it is not a CSV, a column or a cell is missing, a column is called almost as these, or a split is unknown.
    """
    columns, rows = read_table(path)
    more = list(takewhile(lambda column: column in columns, (f"image{number}" for number in count(2))))
    if odd := [c for c in columns if re.fullmatch(r"image[ _]?\d+", c, re.IGNORECASE) and c not in more]:
        raise ValueError(
            f"{path} has the column {odd[0]}; call the channels beside the first image2, image3, ..., without a gap"
        )
    check_spelling(columns, path)
    needed = {"image", *more, *(["label"] if labels else [])}
    if not needed <= set(columns):
        raise ValueError(f"{path} has the columns {columns}; needed: {', '.join(sorted(needed))}")
    key = next((c for c in ("id", "case") if c in columns), None)
    found = []
    for line, row in rows:
        where = f"{path}, line {line}"
        if missing := [column for column in sorted(needed) if not row[column]]:
            raise ValueError(f"{where}: {' and '.join(missing)} missing")
        image = path.parent / row["image"]
        name = check_case_name((row[key] if key else "") or stem(image), where=where)
        label = path.parent / row["label"] if row.get("label") else None
        split = split_named(row.get("split", ""), where=where)
        facts = {c: v for c, v in row.items() if c not in ("image", "label", "patient", "split", key, *more)}
        channels = tuple(path.parent / row[column] for column in more)
        found.append(Row(line, name, image, label, row.get("patient", ""), split, facts, channels))
    return found


def split_named(word: str, *, where: str = "") -> str:
    """Return `train`, `val` or `test` for a word in a column `split`; "" for an empty cell.

    >>> split_named("Training")
    'train'

    Raises `ValueError` for any other word.
    """
    if not word.strip():
        return ""
    for split, words in SPLITS.items():
        if word.strip().lower() in words:
            return split
    said = f"{where}: " if where else ""
    raise ValueError(f"{said}unknown split {word!r}; use train, val or test")


def patients_in_several(sides: Iterable[tuple[str, str]]) -> list[str]:
    """Return the patients who are on several sides. `sides`: patient and side (such as the split) of each scan."""
    found: dict[str, set[str]] = {}
    for patient, side in sides:
        found.setdefault(patient, set()).add(side)
    return sorted(patient for patient, several in found.items() if len(several) > 1)


def check_patients(splits: list[tuple[str, str]], *, where: str) -> None:
    """Raise `ValueError` for patients in more than one split. `splits`: patient and split of each scan."""
    if torn := patients_in_several(splits):
        raise ValueError(
            f"{where}: {len(torn)} patients are in more than one split: {', '.join(torn[:5])}; "
            "put all scans of a patient into one"
        )
