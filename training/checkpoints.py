"""Checkpoints of a run: the newest one, and the one before it in case the newest is damaged.

A checkpoint is one safetensors file: the tensors of task and optimiser, and everything else as JSON in its header.
"""

import json
import os
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as pack
from torch import Tensor

from training.recipe import Run, parse_run

NEWEST, BEFORE = "checkpoint.safetensors", "checkpoint.before.safetensors"
PICKLED = "checkpoint.pt"  # of earlier versions, which this one does not open
OPERATION = ("workers", "save_minutes")  # settings that may change when a run is resumed


def settings(run: Run) -> str:
    """Return the run as JSON, without the settings that do not influence its result."""
    return json.dumps({key: value for key, value in asdict(run).items() if key not in OPERATION})


def save(out: Path, run: Run, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically, even if the process is killed at any moment.

    Args:
        out: folder of the run.
        run: its settings.
        state: `task` and `opt`, the state dicts of task and optimiser; all else has to be plain (JSON). `asked`: the settings
            (`settings`) that were asked for, where `run` has others.
    """
    part = out / f".part{os.getpid()}-{NEWEST}"
    write(part, {"run": settings(run), **state})
    with open(part, "r+b") as file:
        os.fsync(file.fileno())
    if (out / NEWEST).exists():
        os.replace(out / NEWEST, out / BEFORE)
    os.replace(part, out / NEWEST)


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a state (see `save`) as safetensors."""
    tensors = {f"task.{key}": value for key, value in state["task"].items()}
    for number, moments in state["opt"]["state"].items():
        tensors |= {f"opt.{number}.{key}": value for key, value in moments.items()}
    plain = {key: value for key, value in state.items() if key not in ("task", "opt")}
    plain["groups"] = state["opt"]["param_groups"]
    alone = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    path.write_bytes(pack(alone, {"state": json.dumps(plain)}))


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `write` wrote, the tensors onto a device. Raises `SafetensorError`, `OSError`, `ValueError` or
    `KeyError` for a damaged file.
    """
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
    state |= {"task": {}, "opt": {"state": moments, "param_groups": state.pop("groups")}}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "task":
            state["task"][name] = value.to(device)
        else:
            number, _, name = name.partition(".")
            # AdamW counts its steps on the CPU; from a GPU it would read each count back, parameter by parameter
            moments[int(number)][name] = value if name == "step" else value.to(device)
    return state


def load_run(out: Path) -> Run:
    """Return the run whose newest checkpoint is in a folder."""
    with safe_open(out / NEWEST, framework="pt") as file:
        return parse_run(json.loads(json.loads(file.metadata()["state"])["run"]))


def load_latest(out: Path, run: Run, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Return the newest readable checkpoint; None if there is none. Exits if it belongs to another run, or to
    an earlier ctssl.

    A damaged checkpoint is renamed to `.damaged`, and the one before it is used.
    """
    for name in (NEWEST, BEFORE):
        path = out / name
        if not path.exists():
            continue
        try:
            state = read(path, device)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            print(
                f"{path} is damaged ({type(error).__name__}); resuming from the one before it, if "
                "there is one"
            )
            path.rename(path.with_suffix(".damaged"))  # so that it never replaces a good one
            continue
        # fields that came later: their defaults; a run of `minutes` that has ended says what was asked for
        known = [settings(parse_run(json.loads(state[key]))) for key in ("run", "asked") if key in state]
        if settings(run) not in known:
            raise SystemExit(
                f"{path} belongs to a run with other settings; choose another --out or remove it"
            )
        return state
    if (out / PICKLED).exists():
        raise SystemExit(
            f"{out / PICKLED} was written by an earlier ctssl; finish the run with that one, or choose another --out"
        )
    return None
