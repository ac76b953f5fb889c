"""The state of a run on disk: the newest checkpoint, and the one before it in case the newest is damaged."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from training.run import Run, run_in

NEWEST, BEFORE = "checkpoint.pt", "checkpoint.before.pt"
OPERATION = ("workers", "save_minutes")  # what may change between two parts of a run


def settings(run: Run) -> str:
    """The run as text, without what has no influence on its result."""
    return json.dumps({key: value for key, value in asdict(run).items() if key not in OPERATION})


def save(out: Path, run: Run, state: dict) -> None:
    """Whole or not at all, at whatever moment the process is killed."""
    part = out / f".part{os.getpid()}-{NEWEST}"
    with open(part, "wb") as file:
        torch.save({"run": settings(run), **state}, file)
        file.flush()
        os.fsync(file.fileno())
    if (out / NEWEST).exists():
        os.replace(out / NEWEST, out / BEFORE)
    os.replace(part, out / NEWEST)


def run_of(out: Path) -> Run:
    """The run whose newest state lies in a folder."""
    return run_in(
        json.loads(torch.load(out / NEWEST, map_location="cpu", weights_only=True, mmap=True)["run"])
    )


def latest(out: Path, run: Run, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest state that can be read; None when there is none. One of other settings is an error."""
    for name in (NEWEST, BEFORE):
        path = out / name
        if not path.exists():
            continue
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # a torn file can fail in any layer of the format
            print(
                f"{path} is damaged ({type(error).__name__}); going on from the one before it, if there is one"
            )
            path.rename(path.with_suffix(".damaged"))  # so that it never takes the place of a good one
            continue
        if state["run"] != settings(run):
            raise SystemExit(
                f"{path} belongs to a run with other settings; choose another --out or remove it"
            )
        return state
    return None
