"""What `training.experiments.robustness` measured: `results/robustness.jsonl`, a line for each training."""

import json
from pathlib import Path
from typing import Any

from ctssl.files.atomic import write_whole
from training.experiments import trials
from training.experiments.study.contestants import CONTESTANTS

RESULTS = Path(__file__).parent.parent / "results" / "robustness.jsonl"


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return what was measured."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, row: dict[str, Any]) -> None:
    """Add a row, in place of an older one of the same contestant and seed."""
    with trials.lock_results(path.parent):
        kept = [one for one in read(path) if key(one) != key(row)] + [row]
        order = list(CONTESTANTS)
        kept.sort(key=lambda one: (order.index(one["contestant"]), one["seed"]))
        write_whole(path, "".join(json.dumps(one) + "\n" for one in kept))


def key(row: dict[str, Any]) -> tuple[str, int]:
    """Return the contestant and the seed of a row."""
    return row["contestant"], row["seed"]


def check_start(path: Path, name: str, weights: str) -> None:
    """Exit if the kept rows of a contestant began with other weights: seeds of different models cannot be averaged."""
    others = {row["start"] for row in read(path) if row["contestant"] == name} - {weights}
    if others:
        raise SystemExit(
            f"{name}: these starting weights ({weights[:12]}) are not those of its other seeds in {path} "
            f"({', '.join(one[:12] for one in sorted(others))}); give the study's encoders (--models), or another --out"
        )
