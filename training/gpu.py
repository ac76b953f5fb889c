"""Use a GPU for some minutes: check, measure, train. `python -m training.gpu --out OUT --minutes 8`.

In this order: the tests that need a GPU, the benchmarks on it, then the runs of `--runs`, which share the minutes that are
left. A run keeps its scans in the device's memory and trains on larger batches than its recipe (`--batch`, learning rate by
the square root, at most 2e-3), and its schedules follow the clock. What there is is written as it comes:
`OUT/summary.json`, the output of every part, and for each run a checkpoint without its optimiser in fp16, in parts of at most
15 MB. A part that fails does not stop the others.

`python -m training.gpu --unpack OUT` puts the checkpoints into `runs/`, where `python -m training.release.encoder
runs/NAME` turns them into models. `--device cpu --steps 3` rehearses all of it.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ctssl.devices import multiplies_bf16
from ctssl.files.atomic import write_whole
from training import checkpoints, pretrain
from training.data.cache import prepare_corpus
from training.data.manifest import find_scans
from training.recipe import Run, find_run

PART = 15 << 20  # bytes of a part
MOST_STEPS = 10**6
TOP_LR = 2e-3  # whatever the batch
RESERVE = 20.0  # seconds that are kept for what comes after the last run
COMMANDS = {
    "tests": [
        "-m",
        "pytest",
        "-q",
        "-o",
        "addopts=",
        "-m",
        "gpu",
    ],  # one process, on a device without pytest-xdist
    "encoders": ["-m", "tests.benchmarks.encoders", "10"],
    "pace": ["-m", "tests.benchmarks.pace"],
    "finetune": ["-m", "tests.benchmarks.finetune", "10", "32", "32", "1"],
    "segment": ["-m", "tests.benchmarks.segment"],
}
"""What is run before the trainings, by name; each is given a fifth of the minutes at most."""


class Summary:
    """What is known so far, as JSON."""

    def __init__(self, path: Path, **facts: Any) -> None:
        self.path, self.facts = path, facts
        self.add()

    def add(self, **facts: Any) -> None:
        self.facts |= facts
        write_whole(self.path, json.dumps(self.facts, indent=1) + "\n")


def main() -> None:
    args = _arguments()
    if args.unpack:
        unpack(args.unpack, Path("runs"))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    cuda = args.device == "cuda"
    name = torch.cuda.get_device_name() if cuda else "cpu"
    summary = Summary(args.out / "summary.json", device=name, torch=torch.__version__)
    torch.set_float32_matmul_precision("high")  # of the runs; the parts are processes of their own
    for part in args.parts:
        seconds = command(part, args.out / f"{part}.txt", args.device, timeout=12 * args.minutes)
        summary.add(**{part: seconds})
    shares = [float(share) for _, share in args.runs]
    for number, (run_name, share) in enumerate(args.runs):
        share = (end - RESERVE - time.monotonic()) * share / sum(shares[number:])
        try:
            facts = train(find_run(run_name), args, seconds=share)
        except (Exception, SystemExit) as error:  # the next run may go well
            facts = {"failed": f"{type(error).__name__}: {error}"}
        summary.add(**{run_name: facts})
        print(json.dumps({run_name: facts}), flush=True)


def command(name: str, log: Path, device: str, *, timeout: float) -> dict[str, Any]:
    """Run one of `COMMANDS` in a process of its own; its output goes to `log`."""
    began = time.monotonic()
    with open(log, "w") as file:
        extra = ["--device", device] if "benchmarks" in COMMANDS[name][1] else []
        try:
            code: int | str = subprocess.run(
                [sys.executable, *COMMANDS[name], *extra],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                timeout=timeout,
            ).returncode
        except subprocess.TimeoutExpired:
            code = "stopped: too slow"
    return {"exit": code, "seconds": round(time.monotonic() - began, 1)}


def train(run: Run, args: argparse.Namespace, *, seconds: float) -> dict[str, Any]:
    """Train a run for some seconds and write its slim checkpoint. Returns what it did."""
    factor = args.batch / run.batch if args.batch else 1.0
    large: Run = replace(
        run,
        batch=args.batch or run.batch,
        lr=min(run.lr * math.sqrt(factor), max(run.lr, TOP_LR)),
        bf16=multiplies_bf16(torch.device(args.device)),
        resident=True,
        save_minutes=1e9,  # the device goes back: only the end counts
    )
    if Path(run.init).parts[:1] == ("runs",):  # what another run left
        large = replace(large, init=str(args.work / Path(run.init).name))
    out = args.work / run.name
    shutil.rmtree(out, ignore_errors=True)
    prepare_corpus(
        find_scans(run.corpus), run.preprocess, args.work / "cache", workers=os.cpu_count() or 1
    )  # with every core, before the run asks for it
    bounds: dict[str, Any] = (
        {"steps": args.steps} if args.steps else {"steps": MOST_STEPS, "minutes": seconds / 60}
    )
    pretrain.pretrain(replace(large, **bounds), out)
    state = checkpoints.read(out / checkpoints.NEWEST)
    pack(state, args.out / f"{run.name}.checkpoint", out / "log.jsonl")
    made = checkpoints.load_run(out)
    return {"steps": made.steps, "batch": made.batch, "lr": made.lr, "seconds": round(state["seconds"], 1)}


def pack(state: dict[str, Any], path: Path, log: Path) -> list[Path]:
    """Write a checkpoint without its optimiser, in fp16, in parts beside its log. Returns the parts."""
    task = {key: value.half() if value.is_floating_point() else value for key, value in state["task"].items()}
    checkpoints.write(path, {**state, "task": task, "opt": {"state": {}, "param_groups": []}})
    data = path.read_bytes()
    path.unlink()
    parts = []
    for number, start in enumerate(range(0, len(data), PART)):
        parts.append(path.with_name(f"{path.name}.{number:02d}"))
        parts[-1].write_bytes(data[start : start + PART])
    shutil.copyfile(log, path.with_name(f"{path.stem}.log.jsonl"))
    return parts


def unpack(source: Path, runs: Path) -> None:
    """Put the checkpoints that `pack` wrote into the folders of their runs."""
    for first in sorted(source.glob("*.checkpoint.00")):
        name = first.name.removesuffix(".checkpoint.00")
        folder = runs / name
        if folder.exists():
            raise SystemExit(f"{folder} exists; move it away first")
        folder.mkdir(parents=True)
        parts = sorted(source.glob(f"{name}.checkpoint.*"))
        (folder / checkpoints.NEWEST).write_bytes(b"".join(part.read_bytes() for part in parts))
        shutil.copyfile(source / f"{name}.log.jsonl", folder / "log.jsonl")
        print(f"{folder}: python -m training.release.encoder {folder}")


def _shared(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    return name, float(share or 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for results (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (default: %(default)s)")
    parser.add_argument(
        "--parts", nargs="*", default=list(COMMANDS), choices=list(COMMANDS), help="before the runs"
    )
    parser.add_argument(
        "--runs",
        nargs="*",
        type=_shared,
        default=[("vit_wild_lesions", 1.0)],
        metavar="RUN[=SHARE]",
        help="files in training/runs, without .py, and how the minutes are shared among them (default: equally)",
    )
    parser.add_argument(
        "--batch", type=int, default=64, help="samples per step; 0 keeps the recipe's (default: 64)"
    )
    parser.add_argument("--steps", type=int, default=0, help="steps of each run; 0: as many as fit")
    parser.add_argument(
        "--work", type=Path, default=Path("runs"), help="folder for the runs and the cache of scans"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--unpack", type=Path, metavar="OUT", help="put the checkpoints of OUT into runs/")
    args = parser.parse_args()
    if not args.unpack and args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --device cpu --steps 3 rehearses without one")
    args.work.mkdir(parents=True, exist_ok=True)
    return args


if __name__ == "__main__":
    main()
