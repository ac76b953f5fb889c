"""Pretrain an encoder: `python -m training.pretrain swin_wild_mim [--out runs/swin_wild_mim] [--set steps=100 ...]`.

A run is a file in `training/runs/`; `--set` changes one of its fields. Stopped runs go on where they were: the same
command again, and the result is the one of an uninterrupted run. On several devices:
`torchrun --nproc-per-node 8 -m training.pretrain paper/swin_wild_smit`.
"""

import argparse
import ast
import contextlib
import importlib
import json
import math
import os
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ctssl.encoders import ENCODERS
from ctssl.sampling import augment, crop_at, tissue_start
from ctssl.zoo import Preprocess
from training.data.cache import prepared
from training.data.corpora import corpus
from training.pretext import TASKS


@dataclass(frozen=True)
class Run:
    """One pretraining. `batch` is per device; `crop` in voxels of `preprocess.spacing_mm`; `warmup` a share of `steps`."""

    name: str
    encoder: str
    task: str
    corpus: str
    encoder_args: dict[str, Any] = field(default_factory=dict)
    task_args: dict[str, Any] = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    crop: int = 64
    batch: int = 4
    steps: int = 6000
    lr: float = 8e-4
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip: float = 1.0
    intensity: float = 0.0
    seed: int = 0
    bf16: bool = False
    checkpointing: bool = False
    save_minutes: float = 3.0


def find_run(name: str) -> Run:
    """The `run` of `training/runs/<name>.py`."""
    path = Path(__file__).parent / "runs" / f"{name.replace('-', '_')}.py"
    if not path.is_file():
        known = sorted(p.relative_to(path.parent).with_suffix("") for p in path.parent.rglob("[a-z]*.py"))
        raise SystemExit(f"no run {name!r}; there are: {', '.join(map(str, known))}")
    return importlib.import_module(f"training.runs.{name.replace('-', '_').replace('/', '.')}").run


def override(run: Run, changes: list[str]) -> Run:
    """`["steps=100", "task_args.ratio=0.5"]` applied; an unknown key is an error."""
    for change in changes:
        key, _, text = change.partition("=")
        key, _, inner = key.partition(".")
        if key not in {f.name for f in fields(Run)} or not text:
            raise SystemExit(
                f"cannot set {change!r}; write field=value, the fields are {[f.name for f in fields(Run)]}"
            )
        with contextlib.suppress(ValueError, SyntaxError):
            text = ast.literal_eval(text)
        if inner:
            if not isinstance(getattr(run, key), dict):
                raise SystemExit(f"cannot set {change!r}: {key} has no parts")
            text = {**getattr(run, key), inner: text}
        if not isinstance(text, type(getattr(run, key))) and not (
            isinstance(text, int) and isinstance(getattr(run, key), float)
        ):
            raise SystemExit(f"cannot set {change!r}: {key} is {type(getattr(run, key)).__name__}")
        run = replace(run, **{key: text})
    return run


def build(run: Run) -> nn.Module:
    """The task of a run around its encoder, initialised from its seed."""
    torch.manual_seed(run.seed)
    if run.encoder not in ENCODERS or run.task not in TASKS:
        raise SystemExit(f"run {run.name}: encoders are {sorted(ENCODERS)}, tasks are {sorted(TASKS)}")
    encoder = ENCODERS[run.encoder](checkpointing=run.checkpointing, **run.encoder_args)
    return TASKS[run.task](encoder, **run.task_args)


def crops(scans: list[np.ndarray], run: Run, *, step: int, rank: int) -> Tensor:
    """The batch `(B, 1, S, S, S)` of a step: it depends on nothing but the run, the step and the rank."""
    rng = np.random.default_rng([run.seed, step, rank])
    batch = []
    for _ in range(run.batch):
        scan = scans[rng.integers(len(scans))]
        crop = crop_at(scan, tissue_start(scan, run.crop, rng), run.crop)
        batch.append(augment(crop, None, rng, intensity=run.intensity)[0])
    return torch.from_numpy(np.stack(batch))[:, None]


def learning_rate(run: Run, step: int) -> float:
    """Linear warm-up, then cosine to zero."""
    warm = max(1, round(run.warmup * run.steps))
    if step < warm:
        return run.lr * (step + 1) / warm
    return run.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, run.steps - warm)))


def optimizer(task: nn.Module, run: Run) -> torch.optim.Optimizer:
    """AdamW; no decay for biases, norms, tables and tokens."""
    trained = [(name, p) for name, p in task.named_parameters() if p.requires_grad]
    free = [p for name, p in trained if p.ndim < 2 or "bias_table" in name or "position" in name]
    decayed = [p for name, p in trained if not (p.ndim < 2 or "bias_table" in name or "position" in name)]
    groups = [{"params": decayed, "weight_decay": run.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=run.lr, betas=(0.9, 0.95))


def save(path: Path, state: dict) -> None:
    part = path.with_suffix(f".part{os.getpid()}")
    torch.save(state, part)
    os.replace(part, path)


def pretrain(run: Run, out: Path, *, stop_after: int | None = None) -> nn.Module:
    """Train, resuming from `out/checkpoint.pt`; `stop_after` ends early, as an interruption would (for tests)."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = (
        torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )
    out.mkdir(parents=True, exist_ok=True)
    scans = prepared(corpus(run.corpus), run.preprocess, out.parent / "cache")
    task = build(run).to(device)
    opt, first, log, seconds = optimizer(task, run), 0, [], 0.0
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["run"] != json.dumps(asdict(run)):
            raise SystemExit(f"{checkpoint} belongs to a run with other settings; choose another --out or remove it")
        task.load_state_dict(state["task"])
        opt.load_state_dict(state["opt"])
        first, log, seconds = state["step"], state["log"], state["seconds"]
    model = DistributedDataParallel(task, find_unused_parameters=True) if world > 1 else task
    last, began, saved = min(run.steps, stop_after or run.steps), time.monotonic(), time.monotonic()

    def keep(step: int) -> None:
        if rank == 0:
            spent = seconds + time.monotonic() - began
            save(checkpoint, {"run": json.dumps(asdict(run)), "task": task.state_dict(), "opt": opt.state_dict(),
                              "step": step, "log": log, "seconds": spent, "world": world, "device": str(device)})  # fmt: skip

    task.train()
    bar = tqdm(range(first, last), initial=first, total=run.steps, desc=run.name, disable=rank > 0, mininterval=5)
    for step in bar:
        torch.manual_seed(hash((run.seed, step, rank)))
        for group in opt.param_groups:
            group["lr"] = learning_rate(run, step)
        batch = crops(scans, run, step=step, rank=rank).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=run.bf16):
            result = model(batch)
        opt.zero_grad(set_to_none=True)
        result["loss"].backward()
        nn.utils.clip_grad_norm_(task.parameters(), run.clip)
        opt.step()
        if hasattr(task, "after_step"):
            task.after_step(step, run.steps)  # type: ignore[operator]
        numbers = {name: float(value.detach()) for name, value in result.items()}
        if not math.isfinite(numbers["loss"]):
            raise SystemExit(
                f"step {step}: the loss is {numbers['loss']}; lower lr ({run.lr}), the last good state is kept"
            )
        log.append({"step": step, **{name: round(value, 6) for name, value in numbers.items()}})
        bar.set_postfix({"loss": f"{np.mean([entry['loss'] for entry in log[-50:]]):.4f}"}, refresh=False)
        if time.monotonic() - saved > 60 * run.save_minutes:
            keep(step + 1)
            saved = time.monotonic()
    keep(last)
    return task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a file in training/runs, without .py")
    parser.add_argument("--out", type=Path, help="folder for checkpoints (default runs/<run>)")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    args = parser.parse_args()
    run = override(find_run(args.run), args.set)
    if "RANK" in os.environ:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    pretrain(run, args.out or Path("runs") / args.run)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
