"""Pretrain an encoder: `python -m training.pretrain swin_wild_mim [--out runs/swin_wild_mim] [--set steps=100
...]`.

A run is a file in `training/runs/`; `--set` changes its fields. With your own scans: `python -m
training.pretrain --data MY_SCANS --model swin --task smit [--init swin-wild-mim] --out my-encoder`. The same
command again resumes an interrupted run, and the result is that of an uninterrupted one. On several devices:
`torchrun --nproc-per-node 8 -m training.pretrain paper/swin_wild_smit`. `--out` gets the checkpoints, a log
(`log.jsonl`, `loss.png`) and, at the end, the encoder, as a folder for `ctssl.load` and `ctssl finetune
--model`.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]
from timm.scheduler import CosineLRScheduler  # type: ignore[attr-defined]
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ctssl.compiling import compile_blocks
from ctssl.datasets.seen import SEEN
from ctssl.devices import agreed, join_devices, rank_and_world
from ctssl.encoders import ENCODERS
from ctssl.encoders.pretrained import encoder_config
from ctssl.files.running import LOCK, Stopped, clear_parts, only_process, stop_signals
from ctssl.heads.segmenter import segmenter_config
from ctssl.hub.client import CONFIG, WEIGHTS
from ctssl.hub.folder import ABOUT, PROCESSOR, write_folder
from ctssl.hub.lookup import open_model
from ctssl.hub.provenance import facts
from ctssl.loading import load_model
from ctssl.precision import half
from ctssl.zoo import ModelSpec
from training import checkpoints, log
from training.data.cache import cache_folder, prepare_corpus
from training.data.loader import Places, Samples, loader
from training.data.manifest import find_scans
from training.data.resident import resident_batches
from training.data.seen import seen
from training.pretext import TASKS
from training.pretext.batch import Batch
from training.pretext.contrastive import everyone
from training.recipe import Run, find_run, override, own_run


def build(run: Run) -> Any:
    """Build the task of a run around its encoder, initialised from its seed or from the starting weights
    `run.init`.

    Starting weights are a model, or a whole task in a `.safetensors` file (`training.release.encoder
    --full-state`).
    """
    torch.manual_seed(run.seed)
    if run.encoder not in ENCODERS or run.task not in TASKS:
        raise SystemExit(
            f"run {run.name}: unknown encoder {run.encoder!r} or task {run.task!r}; encoders are "
            f"{sorted(ENCODERS)}, tasks are {sorted(TASKS)}"
        )
    encoder = ENCODERS[run.encoder](checkpointing=run.checkpointing, **run.encoder_args)
    whole = run.init.endswith(".safetensors")
    start: Any = None
    if run.init and not whole:
        model = load_model(open_model(run.init))
        start = getattr(model, "encoder", model)
        if start.config != encoder.config:
            raise SystemExit(
                f"the starting weights {run.init} have another architecture ({start.config}) than this run's "
                f"encoder ({encoder.config})"
            )
        encoder.load_state_dict(start.state_dict())
    task: Any = TASKS[run.task](encoder, **run.task_args)
    if hasattr(task, "segmenter"):
        task.segmenter.window = (
            run.crop
        )  # at twice the side a ViT, whose positions stretch, loses a third of its DSC
        if start is not None and model is not start:  # a segmenter brings its head
            task.segmenter.head.load_state_dict(model.head.state_dict())
    if whole:
        try:
            task.load_state_dict(load_file(run.init))
        except (RuntimeError, SafetensorError) as error:  # missing or misshapen weights; a damaged file
            raise ValueError(
                f"{run.init} is not the state of `{run.task}` on this {run.encoder}, so it cannot be used as "
                f"starting weights: {error}"
            ) from error
    return task


def optimizer(task: nn.Module, run: Run) -> tuple[torch.optim.Optimizer, CosineLRScheduler]:
    """Return AdamW and its schedule.

    No weight decay for biases, norms, position tables and tokens; linear warm-up, then half a cosine to zero,
    per step.
    """
    free = [name for name, _ in task.named_parameters() if "bias_table" in name or "position" in name]
    groups = param_groups_weight_decay(task, run.weight_decay, no_weight_decay_list=free)
    opt = torch.optim.AdamW(groups, lr=run.lr, betas=(0.9, 0.95))
    warm = max(1, round(run.warmup * run.steps))
    scheduler = CosineLRScheduler(
        opt,
        t_initial=max(1, run.steps - warm),
        warmup_t=warm,
        warmup_lr_init=run.lr / warm,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    return opt, scheduler


def backward(model: nn.Module, pieces: list[Batch], *, bf16: bool = False) -> dict[str, float]:
    """Compute the gradients of one step whose batch comes in pieces, and on several devices.

    Mean losses are averaged over the pieces. A joint loss needs every sample's embedding: those are computed
    first, without gradient, and each piece then adds the gradient through its own (as in GradCache, arXiv
    2101.06983).

    Returns:
        The numbers of this process to log.
    """
    task: Any = model.module if isinstance(model, DistributedDataParallel) else model
    world = dist.get_world_size() if isinstance(model, DistributedDataParallel) else 1
    device = pieces[0].image.device.type
    others = None
    if len(pieces) > 1 and hasattr(task, "embed"):
        with torch.no_grad(), half(device, enabled=bf16):
            own = torch.cat([task.embed(piece) for piece in pieces], 1)
        others = everyone(own, torch.cat([piece.patients for piece in pieces]))
    numbers: dict[str, float] = {}
    start = 0
    for i, piece in enumerate(pieces):
        last = i == len(pieces) - 1
        quiet = contextlib.nullcontext() if last or world == 1 else model.no_sync()  # type: ignore[operator]
        with quiet:
            with half(device, enabled=bf16):
                result = (
                    model(piece)
                    if others is None
                    else model(piece, others._replace(start=others.start + start))
                )
            loss = result["loss"] / len(pieces)
            if "joint" in result:  # computed over the whole step; the mean over devices would divide it
                loss = (result["loss"] - result["joint"]) / len(pieces) + result["joint"] * world
            loss.backward()
        start += len(piece)
        for name, value in result.items():
            numbers[name] = numbers.get(name, 0.0) + float(value.detach()) / len(pieces)
    return numbers


def pretrain(run: Run, out: Path, *, stop_after: int | None = None) -> Any:
    """Train a run, resuming from `out`, and return the task.

    Args:
        run: the settings.
        out: folder for checkpoints, log and the encoder.
        stop_after: stop after this step, as an interruption would (for tests).
    """
    rank, device = join_devices("cuda" if torch.cuda.is_available() else "cpu")
    _, world = rank_and_world()
    task = build(run).to(device)  # first, so that invalid settings fail at once
    if rank == 0:
        check_folder(out)
    with only_process(out) if rank == 0 else contextlib.nullcontext():
        if rank == 0:
            clear_parts(out)
        corpus = shared_corpus(run, out, rank)
        people = len({corpus.patient(number) for number in range(len(corpus))})
        if people < getattr(task, "patients", 1):
            raise ValueError(
                f"{run.task} compares patients, and these scans are of {people}; give scans of more, or another task"
            )
        done = train(task, run, out, corpus, last=min(run.steps, stop_after or run.steps))
        if rank == 0 and done:
            finish(task, done, out, corpus, world=world)
    return task


def train(task: Any, run: Run, out: Path, corpus: Any, *, last: int) -> Run | None:
    """Train up to step `last`, from the newest checkpoint in `out` if there is one, and leave one.

    Returns the finished run (of `run.minutes`: with the steps that were made), or None if it has to go on.

    Raises `Stopped` after SIGINT or SIGTERM, with a checkpoint of the step that was running.
    """
    rank, world = rank_and_world()
    device = next(task.parameters()).device
    opt, scheduler = optimizer(task, run)
    state = checkpoints.load_latest(out, run, device)
    check_state(state, out, world=world, corpus=corpus.table.stem)
    first, seconds = (state["step"], state["seconds"]) if state else (0, 0.0)
    if state and "asked" in state:  # a run of `minutes` that had ended
        last = first
    if state:
        task.load_state_dict(state["task"])
        opt.load_state_dict(state["opt"])
    model = distribute(task, run, world)
    saved, clock = time.monotonic(), Clock(seconds)
    batches = batches_of(run, task, corpus, first=first, last=last)
    journal = log.Log(out / "log.jsonl", first, enabled=rank == 0)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    facts_now = {"world": world, "corpus": corpus.table.stem, "device": name}

    def keep(step: int, done: Run | None = None) -> None:
        if rank == 0:
            now = {"task": task.state_dict(), "opt": opt.state_dict(), "step": step, "seconds": clock.seconds}
            asked = {"asked": checkpoints.settings(run)} if done and run.minutes else {}
            checkpoints.save(out, done or run, {**now, **facts_now, **asked})

    task.train()
    bar = tqdm(
        range(first, last), initial=first, total=run.steps, desc=run.name, disable=rank > 0, mininterval=5
    )
    with stop_signals() as asked:
        for step in bar:
            progress = agreed_share(run, step, clock.seconds, world)
            scheduler.step_update(round(progress * run.steps))
            pieces = [at(next(batches).to(device), progress) for _ in range(run.accumulate)]
            numbers = descend(model, task, opt, pieces, run, step)
            clock.tick()
            journal.add({"step": step, **numbers, "lr": opt.param_groups[0]["lr"]})
            pace = f"{rate(bar, first, run, world):.1f}"
            bar.set_postfix({"loss": f"{journal.recent():.4f}", "samples/s": pace}, refresh=False)
            stop = agreed(len(asked), world) > 0
            if stop or time.monotonic() - saved > 60 * run.save_minutes:
                keep(step + 1)
                saved = time.monotonic()
            if stop:
                journal.close()
                raise Stopped(
                    f"stopped after step {step + 1} of {run.steps}; the same command goes on", *asked[:1]
                )
            if agreed_share(run, step + 1, clock.seconds, world) >= 1:
                last = step + 1
                break
    done = None
    if agreed_share(run, last, clock.seconds, world) >= 1:
        done = replace(run, steps=last, minutes=0.0)
    keep(last, done)
    journal.close()
    return done


def agreed_share(run: Run, steps: int, seconds: float, world: int) -> float:
    """Return the share of a run that is done, 0 to 1: of its steps, or of its minutes if that is more."""
    share = steps / run.steps
    return min(1.0, max(share, agreed(seconds, world) / (60 * run.minutes)) if run.minutes else share)


def check_state(state: dict[str, Any] | None, out: Path, **now: Any) -> None:
    """Raise `SystemExit` where a checkpoint was made with another number of processes, or of other scans."""
    names = {"world": "processes", "corpus": "scans"}
    for key, value in now.items():
        if state and state.get(key, value) != value:
            raise SystemExit(
                f"{out} was trained with other {names[key]} ({state[key]}, now {value}), so resuming would not "
                "give the same result: restart it with the earlier setting, or choose another --out"
            )


def distribute(task: Any, run: Run, world: int) -> nn.Module:
    """Compile the encoder's blocks if asked to, and average gradients over processes if there are several."""
    if run.compile:
        compile_blocks(task.encoder)
    if world == 1:
        return task
    # buffers are not synchronised: a teacher's centre is summed in after_step
    return DistributedDataParallel(task, find_unused_parameters=True, broadcast_buffers=False)


def batches_of(run: Run, task: Any, corpus: Any, *, first: int, last: int) -> Iterator[Batch]:
    """Return the batches of this process from step `first` to `last`."""
    rank, world = rank_and_world()
    if run.resident:
        device = next(task.parameters()).device
        return resident_batches(corpus, task, run, device, first=first, last=last, rank=rank)
    samples = Samples(corpus, task, run)
    places = Places(batch=run.batch, pieces=run.accumulate, rank=rank, world=world, first=first, last=last)
    return iter(loader(samples, places, workers=run.workers))


def descend(
    model: nn.Module, task: Any, opt: torch.optim.Optimizer, pieces: list[Batch], run: Run, step: int
) -> dict[str, float]:
    """Take one step of the optimiser and return the numbers to log.

    Raises `SystemExit` for a loss or a gradient that is not finite, before the weights change.
    """
    opt.zero_grad(set_to_none=True)
    numbers = backward(model, pieces, bf16=run.bf16)
    norm = nn.utils.clip_grad_norm_(task.parameters(), run.clip)
    if not math.isfinite(numbers["loss"]) or not torch.isfinite(norm):
        raise SystemExit(
            f"step {step}: the loss is {numbers['loss']}, the norm of its gradient {float(norm)}; "
            f"lower lr ({run.lr}). The last checkpoint is kept"
        )
    opt.step()
    if hasattr(task, "after_step"):
        task.after_step(min(1.0, pieces[0].progress + 1 / run.steps))
    return {**numbers, "norm": float(norm)}


def check_folder(out: Path) -> None:
    """Raise `FileExistsError` for a folder that holds a model, or files of these names, but no run."""
    began = any((out / name).exists() for name in (LOCK, checkpoints.NEWEST, checkpoints.BEFORE))
    foreign = [name for name in (CONFIG, WEIGHTS, PROCESSOR, "log.jsonl", *ABOUT) if (out / name).exists()]
    if foreign and not began:
        raise FileExistsError(
            f"{out} holds a {foreign[0]} that is not of a run and would be replaced; choose another --out"
        )


HASHED = 2000  # largest number of scans whose hashes are stored with the encoder


class Clock:
    """Count the seconds spent training, but not those in which the process was suspended.

    A step counts in full up to `LONG` seconds, or ten times the average.
    """

    LONG = 60.0

    def __init__(self, seconds: float) -> None:
        self.seconds, self.steps, self.mine, self.last = seconds, 0, 0.0, time.monotonic()

    def tick(self) -> None:
        """Count one finished step."""
        now = time.monotonic()
        spent = min(now - self.last, max(self.LONG, 10 * self.mine / max(1, self.steps)))
        self.seconds, self.mine, self.steps, self.last = (
            self.seconds + spent,
            self.mine + spent,
            self.steps + 1,
            now,
        )


def at(batch: Batch, progress: float) -> Batch:
    return Batch(batch.views, batch.seeds, batch.patients, progress)


def rate(bar: Any, first: int, run: Run, world: int) -> float:
    spent = max(bar.format_dict["elapsed"], 1e-9)
    return (bar.n - first) * run.batch * run.accumulate * world / spent


def shared_corpus(run: Run, out: Path, rank: int) -> Any:
    """Return the prepared corpus; the first process prepares it, the others wait."""
    if rank and dist.is_initialized():
        dist.barrier()
    corpus = prepare_corpus(find_scans(run.corpus), run.preprocess, cache_folder(out))
    if not rank and dist.is_initialized():
        dist.barrier()
    return corpus


def finish(task: Any, run: Run, out: Path, corpus: Any, *, world: int = 1) -> None:
    """Write the encoder, or the segmenter of a task that has one, as a model folder next to its checkpoint, and
    a picture of the loss.
    """
    scans = [scan.path.name for scan in corpus.scans]
    encoder = task.encoder
    encoder.spec = ModelSpec(
        run.name,
        "encoder",
        run.encoder,
        preprocess=run.preprocess,
        corpus=run.corpus,
        pretext=run.task,
        data=f"{len(scans)} scans",
    )
    metadata = facts(
        recipe=json.loads(checkpoints.settings(run)),
        manifest=scans,
        parent=run.init,
        pretext=run.task,
        samples=run.steps * run.batch * run.accumulate * world,
    )
    extra = {SEEN: seen(run, corpus)} if len(scans) <= HASHED else {}
    model, config = exported(task, run.name)
    write_folder(model, out, config, overwrite=True, metadata=metadata, extra=extra)
    log.picture(out / "log.jsonl", out / "loss.png", title=run.name)


def exported(task: Any, name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network that a task leaves (its segmenter, otherwise its encoder, whose `spec` is set), and its
    `config.json`."""
    if hasattr(task, "segmenter"):
        task.segmenter.parent = ""
        return task.segmenter, segmenter_config(task.segmenter, name=name)
    return task.encoder, encoder_config(task.encoder, name=name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", help="a file in training/runs, without .py")
    parser.add_argument(
        "--data", help="instead of a run: your own scans, a folder or a CSV with a column image"
    )
    parser.add_argument("--model", choices=sorted(ENCODERS), help="encoder architecture, with --data")
    parser.add_argument("--task", choices=sorted(TASKS), help="pretext task, with --data")
    parser.add_argument(
        "--init",
        default="",
        help="starting weights: a model, or a file of training.release.encoder --full-state",
    )
    parser.add_argument("--out", type=Path, help="output folder (default: runs/<run>)")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="change the run's fields")
    args = parser.parse_args()
    if bool(args.run) == bool(args.data):
        parser.error("give either a run of training/runs or --data with your own scans")
    if args.data and not (args.model and args.task and args.out):
        parser.error("--data needs --model, --task and --out")
    run = find_run(args.run) if args.run else own_run(args.data, args.model, args.task, args.out.name)
    run = override(run, args.set + ([f"init={json.dumps(args.init)}"] if args.init else []))
    out = args.out or Path("runs") / args.run
    try:
        pretrain(run, out)
    except Stopped as error:
        print(f"\n{error}", file=sys.stderr)
        raise SystemExit(error.code) from error
    except (ValueError, TypeError, OSError, ImportError) as error:  # invalid settings, model or data
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"the encoder is in {out}: ctssl.load({str(out)!r}); its curves are in log.jsonl and loss.png")
    if dist.is_initialized():
        dist.barrier()  # no process ends while another still communicates with it
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
