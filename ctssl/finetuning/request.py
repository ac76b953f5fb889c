"""What was asked for: the identity of a fine-tuning, and refusing what cannot be done."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from ctssl.datasets.case import Case
from ctssl.files.atomic import file_sha256
from ctssl.files.text import read_json
from ctssl.finetuning.outcome import WRITTEN
from ctssl.finetuning.report import Report
from ctssl.heads import HEADS
from ctssl.hub.client import WEIGHTS


def content_of(cases: list[Case]) -> str:
    """A hash of the files of these cases, and of the structures that are taken from them."""
    digest = hashlib.sha256()
    for case in sorted(cases, key=lambda case: case.name):
        for path in (case.image, case.label):
            files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
            digest.update("".join(file_sha256(file) for file in files if file.is_file()).encode())
        digest.update(f"{case.name} {case.roi} {case.series}".encode())
    return digest.hexdigest()


def request(train: list[Case], held: list[Case], encoder: str, **how: Any) -> dict[str, Any]:
    """What a segmenter follows from, as JSON has it: cases, encoder (by its weights, or the name of a
    baseline), and all else."""
    text = json.dumps(
        {
            "train": [case.name for case in train],
            "held_out": [case.name for case in held],
            "encoder": encoder,
            **how,
        }
    )
    return json.loads(text)


def finished(out: Path, asked: dict[str, Any], *, overwrite: bool) -> Report | None:
    """The report of a segmenter that an earlier call left, if it was the same request. Of another one: None
    if it may be overwritten, `FileExistsError` if not."""
    if not (out / WEIGHTS).exists() or not (out / "config.json").exists():
        return None
    found = read_json(out / "report.json") if (out / "report.json").exists() else {}
    before = found.get("asked") if isinstance(found, dict) else None
    if before == asked:
        return Report(
            out, *(found[key] for key in ("held_out", "train", "validated", "curve", "seconds", "warnings"))
        )
    if overwrite:
        return None
    other = sorted(key for key, value in asked.items() if before and before.get(key) != value)
    raise FileExistsError(
        f"{out} holds a model that was trained with another {' and '.join(other) or 'request'}; choose "
        "another --out, or overwrite it on purpose"
    )


def refuse_request(
    out: Path,
    *,
    overwrite: bool,
    head: str,
    folds: int | None,
    hold_out: float | list[str] | None,
    spacing_mm: float | None,
    window_hu: tuple[float, float] | None,
) -> None:
    """Raise for what cannot be done, whatever the data."""
    if head not in HEADS:
        raise ValueError(f"no head is called {head!r}; there are {', '.join(sorted(HEADS))}")
    ours = (out / WEIGHTS).exists() and (out / "config.json").exists()
    if ours and not overwrite:
        raise FileExistsError(
            f"{out} holds a finished model; choose another --out, or overwrite it on purpose"
        )
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose another --out")
    began = ours or (out / ".unfinished").is_dir()
    foreign = [name for name in ("config.json", WEIGHTS, *WRITTEN) if not began and (out / name).exists()]
    if foreign:
        raise FileExistsError(
            f"{out} holds a {foreign[0]} that is not of a model, and would be replaced; choose another --out"
        )
    if folds is not None and folds < 2:
        raise ValueError(f"folds={folds}: give at least 2")
    if folds is not None and hold_out is not None:
        raise ValueError("give folds or hold_out, not both")
    if spacing_mm is not None and not 0.1 <= spacing_mm <= 20:
        raise ValueError(
            f"spacing_mm={spacing_mm:g} is no spacing to work at; give 0.1 to 20 mm, or leave it out"
        )
    if window_hu is not None and not -math.inf < window_hu[0] < window_hu[1] < math.inf:
        raise ValueError(f"window_hu={window_hu}: give a lower and a higher HU, or leave the window out")
