"""The paper's question on the paper's public patients: which start makes a segmenter of lung tumours robust?

`python -m training.experiments.robustness [CONTESTANT ...] [--seeds 0 1 2] [--models FOLDER]` fine-tunes each contestant of
`CONTESTANTS` with each seed on the 150 training patients of NSCLC-Radiomics, as the paper does: 40 more of them pick the
weights. Each is then judged on the 98 patients of NSCLC-Radiogenomics:

- the off-centre boxes, and the whole cubes;
- the boxes after every shift of `ctssl.shifts` at severities 1, 3 and 5, but for `truncation`: a box has no field of view;
- CKA between the encoder before and after, block by block, and, as what any two networks have in common, between the
  fine-tuned one and random weights, and the model of the other corpus.

Everything goes to `results/robustness.jsonl`, a line for each training, at once; what is there is not trained again. Several
processes share the work (`--work`). `--models`: a folder of encoders to take instead of the
published ones. Then `python -m training.experiments.study` writes what follows.
"""

import argparse
import copy
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ctssl
from ctssl.devices import choose_device
from ctssl.finetuning.loop import fit
from ctssl.finetuning.start import BASELINES, fresh, open_start, take_head
from ctssl.heads import WHOLE
from ctssl.hub.client import CONFIG
from ctssl.loading import segmenter
from ctssl.similarity import Minibatches, block_features
from training.experiments.study import rows
from training.experiments.study.contestants import CONTESTANTS, Contestant, twin_of
from training.experiments.study.patients import (
    CLEAN,
    CUBE,
    FACTS,
    PLACES,
    PREPROCESS,
    Task,
    crops_file,
    draw_ahead,
    note_facts,
    test_images,
)

CROPS, BATCH, SIDE = 256, 32, 32  # for CKA: crops, those compared at a time, voxels along a side


def network(contestant: Contestant, seed: int, models: Path | None) -> tuple[Any, Any]:
    """Return the segmenter of a contestant before fine-tuning, as `ctssl.finetune` builds it, and its start."""
    name = contestant.model
    source = name if models is None or name in BASELINES else str(models / name)
    start = open_start(source, "", from_scratch=False, seed=seed)
    start.encoder.spec = replace(start.spec, preprocess=PREPROCESS)
    torch.manual_seed(seed)
    net = segmenter(start.encoder, head=start.head, classes=2, window=contestant.settings.crop)
    take_head(net, start)
    return net, start


def train(
    task: Task, contestant: Contestant, seed: int, models: Path | None, net: Any, start: Any
) -> dict[str, Any]:
    """Fine-tune what `network` returned for a contestant, and measure it; returns its row."""
    settings = replace(contestant.settings, seed=seed)
    before = copy.deepcopy(net.encoder)
    net.to(task.device)
    began = time.monotonic()
    crops = task.crops(settings)
    with TemporaryDirectory() as folder:
        done = fit(
            net,
            task.learning(settings) if crops is None else [],
            [],
            settings,
            folder=Path(folder),
            identity={"contestant": contestant.model, "seed": seed},
            from_scratch=start.from_scratch,
            progress=False,
            crops=crops,
            score=lambda one: float(np.mean(task.choosing.dsc(one, overlap=0.0))),
        )
    seconds = time.monotonic() - began
    found = {place: [round(d, 3) for d in task.boxes(place).dsc(net)] for place in (CLEAN, CUBE, *PLACES)}
    row = {
        "start": start.weights,
        "settings": {**contestant.changes, "steps": settings.steps},
        "device": torch.cuda.get_device_name() if task.device.type == "cuda" else "CPU",
        "seconds": round(seconds),
        "curve": [[point["step"], round(point["loss"], 4), round(point["dsc"], 4)] for point in done.curve],
        "cases": task.names,
        "dsc": found,
    }
    return row | ({} if start.head in WHOLE else {"cka": reuse(task, net, before, contestant, seed, models)})


def reuse(
    task: Task, net: Any, before: Any, contestant: Contestant, seed: int, models: Path | None
) -> dict[str, list[float]]:
    """Return the CKA of each block of a fine-tuned encoder with itself before, with random weights, and with the model of
    the other corpus (`twin`) where there is one."""
    rng = np.random.default_rng(0)
    cubes, crops = task.images[CUBE], []
    for number in range(CROPS):
        x, y, z = rng.integers(cubes.shape[1] - SIDE + 1, size=3)
        crops.append(cubes[number % len(cubes)][x : x + SIDE, y : y + SIDE, z : z + SIDE])
    images = torch.from_numpy(np.stack(crops))[:, None].float().split(BATCH)
    others = {"before": before, "random": fresh(before, 100 + seed)}
    twin = Contestant(twin_of(contestant.model))
    if twin.model and there(twin, models):
        others["twin"] = network(twin, seed, models)[0].encoder
    return {name: aligned(other, net.encoder, images, task.device) for name, other in others.items()}


@torch.inference_mode()
def aligned(one: Any, two: Any, batches: tuple[Tensor, ...], device: torch.device) -> list[float]:
    """Return the CKA of each block of two encoders of the same shape."""
    encoders = [encoder.to(device).eval() for encoder in (one, two)]
    total: Minibatches | None = None
    for images in batches:
        sides = [block_features(encoder, images) for encoder in encoders]
        total = total or Minibatches(len(sides[0]), len(sides[1]))
        total.add(*sides)
    assert total is not None
    return np.diag(total.matrix()).round(4).tolist()


@contextmanager
def claimed(work: Path, name: str, seed: int) -> Iterator[bool]:
    """Lock a training for this process; yield False where another process has it. The lock ends with the `with` block."""
    with open(work / f"claim-{name.replace(' ', '_')}-{seed}", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def there(contestant: Contestant, models: Path | None) -> bool:
    """Return whether the starting weights are there."""
    if contestant.model in BASELINES:
        return True
    return (
        contestant.model in ctssl.list_models()
        if models is None
        else (models / contestant.model / CONFIG).exists()
    )


def main(arguments: list[str] | None = None) -> None:
    args = _arguments(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.steps:
        for name, one in CONTESTANTS.items():
            CONTESTANTS[name] = replace(one, changes={**one.changes, "steps": args.steps})
    wanted = [(name, seed) for seed in args.seeds for name in args.contestants or CONTESTANTS]
    if args.prepare:
        prepare_ahead(args.work, wanted, args.prepare)
        return
    if not FACTS.exists():
        note_facts()
    test_images(args.work, os.cpu_count() or 1)
    task = Task(args.work, choose_device(args.device))
    end = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    while time.monotonic() < end:
        known = {rows.key(row) for row in rows.read(args.out)}
        open_ones = [job for job in wanted if job not in known]
        ready = [(name, seed) for name, seed in open_ones if there(CONTESTANTS[name], args.models)]
        trained = False
        for name, seed in ready:
            with claimed(args.work, name, seed) as mine:
                if not mine or (name, seed) in {rows.key(row) for row in rows.read(args.out)}:
                    continue
                net, start = network(CONTESTANTS[name], seed, args.models)
                rows.check_start(args.out, name, start.weights)
                row = train(task, CONTESTANTS[name], seed, args.models, net, start)
                rows.add(args.out, {"contestant": name, "seed": seed, **row})
                print(
                    f"{name}, seed {seed}: {np.mean(row['dsc'][CLEAN]):.3f}, {row['seconds']} s", flush=True
                )
                trained = True
                break
        if trained:
            continue
        if not args.minutes or len(ready) == len(open_ones):
            break
        time.sleep(2)  # for weights that another process is making
    missing = {name for name, _ in wanted if not there(CONTESTANTS[name], args.models)}
    if missing:
        print(f"no weights of {', '.join(sorted(missing))} in {args.models or 'ctssl list'}")


def prepare_ahead(work: Path, wanted: list[tuple[str, int]], workers: int) -> None:
    """Shift the test cases and draw all crops, in some processes."""
    test_images(work, workers)
    longest: dict[Path, ctssl.Settings] = {}
    for name, seed in wanted:
        settings = replace(CONTESTANTS[name].settings, seed=seed)
        path = crops_file(work, settings)
        if path not in longest or longest[path].steps < settings.steps:
            longest[path] = settings
    for settings in longest.values():
        draw_ahead(work, settings, workers)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("contestants", nargs="*", metavar="CONTESTANT", help="default: all")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--models", type=Path, help="folder of encoders, instead of the published ones")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/robustness"), help="folder that processes share"
    )
    parser.add_argument("--out", type=Path, default=rows.RESULTS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=0, help="of every training, to rehearse")
    parser.add_argument("--minutes", type=float, default=0, help="start no training after these minutes")
    parser.add_argument(
        "--prepare",
        type=int,
        default=0,
        metavar="PROCESSES",
        help="draw crops and shift scans ahead, train nothing",
    )
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.contestants if name not in CONTESTANTS]:
        parser.error(
            f"unknown contestant {', '.join(map(repr, unknown))}; use {', '.join(map(repr, CONTESTANTS))}"
        )
    return args


if __name__ == "__main__":
    main()
