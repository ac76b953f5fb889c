"""What a user asked for, checked before any work, and the identity of a training."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ctssl.datasets.splits import count_folds
from ctssl.files.names import check_label_names, check_path, check_writable
from ctssl.files.running import check_alone
from ctssl.files.text import read_json
from ctssl.finetuning.report import WRITTEN, Report
from ctssl.finetuning.settings import Settings
from ctssl.heads import HEADS
from ctssl.hub.client import CONFIG, WEIGHTS
from ctssl.hub.folder import PROCESSOR
from ctssl.inference.windows import MEMORY_GB


@dataclass(frozen=True)
class Request:
    """The arguments of `ctssl.finetune` beside the data; see there."""

    out: Path
    model: Any
    settings: Settings
    head: str = ""
    hold_out: float | list[str] | None = None
    few_shot: int | None = None
    folds: int | str | os.PathLike | None = None
    fold: int = 0
    spacing_mm: float | None = None
    window_hu: tuple[float, float] | None = None
    channel_windows: list[tuple[float, float]] | None = None
    names: dict[int, str] | None = None
    from_scratch: bool = False
    device: str = "auto"
    max_memory_gb: float = MEMORY_GB
    overwrite: bool = False
    keep: bool = False
    progress: bool = True

    @property
    def unfinished(self) -> Path:
        """Folder of the state of a training that is not finished."""
        return self.out / ".unfinished"


def check_request(request: Request) -> None:
    """Raise an error for a request that is wrong whatever the data: `ValueError` for arguments, `FileExistsError` where
    `out` holds something that would be replaced, or another process is at work there."""
    out = check_path(request.out)
    if not isinstance(request.settings, Settings):
        raise ValueError(f"settings={request.settings!r}: give ctssl.Settings(steps=..., ...)")
    if request.head and request.head not in HEADS:
        raise ValueError(f"unknown head {request.head!r}; use {', '.join(sorted(HEADS))}")
    ours = (out / WEIGHTS).exists() and (out / CONFIG).exists()
    if ours and not request.overwrite and not request.keep:
        raise FileExistsError(
            f"{out} holds a finished model; choose another --out, or add --overwrite (overwrite=True)"
        )
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose another --out")
    check_writable(out)
    check_alone(request.unfinished)
    began = ours or (request.unfinished / "state.json").exists()
    foreign = [name for name in (CONFIG, WEIGHTS, PROCESSOR, *WRITTEN) if not began and (out / name).exists()]
    if foreign:
        raise FileExistsError(
            f"{out} holds a {foreign[0]} that is not of a model, and would be replaced; choose another --out"
        )
    if not all(isinstance(k, int) and isinstance(v, str) for k, v in (request.names or {}).items()):
        raise ValueError(f"names={request.names}: give a name for each label, such as {{1: 'tumour'}}")
    if odd := [name for name in (request.names or {}).values() if not name.isprintable()]:
        raise ValueError(f"the label {odd[0][:60]!r} cannot be printed; name it in plain text")
    check_label_names(request.names or {})
    if request.folds is not None and count_folds(request.folds) < 2:
        raise ValueError(f"folds={request.folds}: give at least 2")
    if request.folds is not None and request.hold_out is not None:
        raise ValueError("give folds or hold_out, not both")
    if request.spacing_mm is not None and not 0.1 <= request.spacing_mm <= 20:
        raise ValueError(f"spacing_mm={request.spacing_mm:g}: use 0.1 to 20 mm, or leave it out")
    window = request.window_hu
    if window is not None and not -math.inf < window[0] < window[1] < math.inf:
        raise ValueError(f"window_hu={window}: give a lower and a higher HU, or leave the window out")
    for low, high in request.channel_windows or []:
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                f"channel_windows: {low:g} to {high:g}; give a lower and a higher value, or none at all"
            )


def identity_of(
    request: Request,
    *,
    train: list[str],
    held_out: list[str],
    validated: list[str],
    data: str,
    weights: str,
    head: str,
) -> dict[str, Any]:
    """Return everything that determines a segmenter, as JSON holds it.

    Args:
        train, held_out, validated: names of cases; `validated` where a table says so.
        data: hash of the content of all cases.
        weights: sha256 of the starting weights, or the name of a baseline.
    """
    settings = asdict(replace(request.settings, save_minutes=0.0))  # which changes nothing
    for later in ("deterministic", "empty"):  # as in reports that are older
        if not settings[later]:
            del settings[later]
    text = {
        "train": train,
        "held_out": held_out,
        "encoder": weights,
        "data": data,
        "validated": validated,
        "settings": settings,
        "head": head,
        "spacing_mm": request.spacing_mm,
        "window_hu": request.window_hu,
        **({"plan": "of all folds"} if request.folds else {}),
        **({"channel_windows": request.channel_windows} if request.channel_windows else {}),
        "names": request.names,
        "from_scratch": request.from_scratch,
    }
    return json.loads(json.dumps(text))


def finished(request: Request, identity: dict[str, Any]) -> Report | None:
    """Return the saved report if `out` holds a model that was trained with this request. None if there is none, or one of another
    request that may be overwritten; otherwise raise `FileExistsError`."""
    out = request.out
    if not request.keep or not (out / WEIGHTS).exists() or not (out / CONFIG).exists():
        return None
    told = read_json(out / "report.json") if (out / "report.json").exists() else {}
    before = told.get("asked") if isinstance(told, dict) else None
    if before == identity:
        keys = ("held_out", "train", "validated", "curve", "seconds", "warnings")
        return Report(out, *(told[key] for key in keys), empty=bool(told.get("empty")))
    if request.overwrite:
        return None
    other = sorted(key for key, value in identity.items() if before and before.get(key) != value)
    raise FileExistsError(
        f"{out} holds a model that was trained with another {' and '.join(other) or 'request'}; choose "
        "another --out, or overwrite it on purpose"
    )
