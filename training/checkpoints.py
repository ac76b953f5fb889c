"""Checkpoints of a run: the newest one, and the one before it in case the newest is damaged."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from training.run import Run, parse_run

NEWEST, BEFORE = "checkpoint.pt", "checkpoint.before.pt"
OPERATION = ("workers", "save_minutes")  # settings that may change when a run is resumed


def settings(run: Run) -> str:
    """Return the run as JSON, without the settings that do not influence its result."""
    return json.dumps({key: value for key, value in asdict(run).items() if key not in OPERATION})


def save(out: Path, run: Run, state: dict) -> None:
    """Write a checkpoint atomically, even if the process is killed at any moment."""
    part = out / f".part{os.getpid()}-{NEWEST}"
    with open(part, "wb") as file:
        torch.save({"run": settings(run), **state}, file)
        file.flush()
        os.fsync(file.fileno())
    if (out / NEWEST).exists():
        os.replace(out / NEWEST, out / BEFORE)
    os.replace(part, out / NEWEST)


def load_run(out: Path) -> Run:
    """Return the run whose newest checkpoint is in a folder."""
    return parse_run(
        json.loads(torch.load(out / NEWEST, map_location="cpu", weights_only=True, mmap=True)["run"])
    )


def load_latest(out: Path, run: Run, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Return the newest readable checkpoint; None if there is none. Exits if it belongs to another run.

    A damaged checkpoint is renamed to `.damaged`, and the one before it is used.
    """
    for name in (NEWEST, BEFORE):
        path = out / name
        if not path.exists():
            continue
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # an incomplete file can fail in any layer of the format
            print(
                f"{path} is damaged ({type(error).__name__}); resuming from the one before it, if "
                "there is one"
            )
            path.rename(path.with_suffix(".damaged"))  # so that it never replaces a good one
            continue
        if state["run"] != settings(run):
            raise SystemExit(
                f"{path} belongs to a run with other settings; choose another --out or remove it"
            )
        return state
    return None
