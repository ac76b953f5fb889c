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
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ctssl
from ctssl.datasets.case import Case, read_case
from ctssl.datasets.layouts import find_cases
from ctssl.devices import choose_device
from ctssl.files.atomic import write_whole
from ctssl.finetuning.crops import Scan, draw
from ctssl.finetuning.loop import fit
from ctssl.finetuning.prepare import prepare_cases
from ctssl.finetuning.start import BASELINES, fresh, open_start, take_head
from ctssl.hub.client import CONFIG
from ctssl.loading import segmenter
from ctssl.metrics import volume_ml
from ctssl.shifts import REVISION, SHIFTS
from ctssl.similarity import Minibatches, block_features
from ctssl.volume.grids import prepare
from ctssl.zoo import Preprocess
from training.data.corpora import cases, lung_split
from training.experiments import lung, trials
from training.experiments.boxes import Boxes

RESULTS = Path(__file__).parent / "results" / "robustness.jsonl"
FACTS = Path(__file__).parent / "results" / "radiogenomics.json"
PREPROCESS = Preprocess(1.5, (-1000.0, 400.0))
SEVERITIES = (1, 3, 5)
CLEAN, CUBE = "clean", "cube"
UNTRUE = ("truncation",)  # on cubes
PLACES = [f"{name} {severity}" for name in SHIFTS if name not in UNTRUE for severity in SEVERITIES]
PRETEXTS = ("smit", "lesions", "mim", "contrastive")
STARTS = ("wild", "self", "wild-self")
CROPS, BATCH, SIDE = 256, 32, 32  # for CKA: crops, those compared at a time, voxels along a side
SETTINGS = ctssl.Settings(steps=1000, crop=32, batch=8, ema=0.99, evaluations=20, patience=20)


@dataclass(frozen=True)
class Contestant:
    """A start of a fine-tuning, and what differs from `SETTINGS`."""

    model: str
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> ctssl.Settings:
        return replace(SETTINGS, **self.changes)


def contestants() -> dict[str, Contestant]:
    """Return every start by name: the paper's first, then the other pretexts, then augmentation, length and nnU-Net."""
    both = ("vit", "swin")
    found = {name: Contestant(name) for name in (f"{encoder}-scratch" for encoder in both)}
    for pretext in PRETEXTS:
        for name in (f"{encoder}-{start}-{pretext}" for start in STARTS for encoder in both):
            found[name] = Contestant(name)
    for name in (
        f"{encoder}-{start}" for start in ("scratch", "wild-smit", "wild-lesions") for encoder in both
    ):
        found[f"{name} + shifts"] = Contestant(name, {"shift_augment": 2})
    for name in (f"{encoder}-{start}" for start in ("scratch", "wild-lesions") for encoder in both):
        found[f"{name}, 3000 steps"] = Contestant(name, {"steps": 3000})
    for name in ("vit-scratch", "vit-wild-lesions"):
        found[f"{name} + shifts, 3000 steps"] = Contestant(name, {"shift_augment": 2, "steps": 3000})
    found["dynunet"] = Contestant("dynunet", {"steps": 3000, "crop": 64, "batch": 2})
    return found


CONTESTANTS = contestants()


class Task:
    """The cases of the study, prepared once, on a device.

    Args:
        work: folder for what is made once: shifted scans and drawn crops.
        device: of the networks.
    """

    def __init__(self, work: Path, device: torch.device) -> None:
        self.work, self.device = work, device
        split = lung_split()
        radiomics = [lung.row_of("lung_radiomics_nc", name, "", "train") for name in split["train"]]
        radiomics += [lung.row_of("lung_radiomics_nc", name, "_offcentre", "val") for name in split["choose"]]
        found = find_cases(lung.write_rows(radiomics, work / f"study-{os.getpid()}.csv")).cases
        self.training = [case for case in found if case.split == "train"]
        self.copies: dict[tuple[int, int], list[Scan]] = {}
        held = prepare_cases([case for case in found if case.split == "val"], PREPROCESS, progress=False)
        self.choosing = Boxes.of([s.image[0] for s in held], [s.labels > 0 for s in held], device)
        self.names = [row["id"] for row in cases("lung_radiogenomics")]
        images, truths = test_images(work, workers=1)
        self.truths = {place: truths[CUBE if place == CUBE else CLEAN] for place in images}
        self.images = images

    def learning(self, settings: ctssl.Settings) -> list[Scan]:
        """Return the training scans, with shifted copies where these are asked for."""
        key = (settings.shift_augment, settings.seed if settings.shift_augment else 0)
        if key not in self.copies:
            self.copies = {} if settings.shift_augment else self.copies
            self.copies[key] = prepare_cases(
                self.training, PREPROCESS, copies=key[0], seed=key[1], progress=False
            )
        return self.copies[key]

    def crops(self, settings: ctssl.Settings) -> Iterator[tuple[Tensor, Tensor]] | None:
        """Yield the crops of each step from a file, where `draw_ahead` wrote one; every model of a seed sees the same."""
        path = crops_file(self.work, settings)
        if not path.exists():
            return None
        file = np.load(path, mmap_mode="r")
        return None if len(file) < settings.steps else (self._halves(step) for step in file)

    def _halves(self, step: np.ndarray) -> tuple[Tensor, Tensor]:
        both = torch.from_numpy(step.copy()).to(self.device)[:, None]
        images, labels = both.chunk(2)
        return images.float(), labels.long()

    def boxes(self, place: str) -> Boxes:
        """Return the test cases under a shift, `CLEAN`, or whole (`CUBE`)."""
        return Boxes.of(list(self.images[place]), list(self.truths[place]), self.device)


def crops_file(work: Path, settings: ctssl.Settings) -> Path:
    """Return where the crops of some settings are kept: they depend on the seed, not on the model."""
    name = f"{settings.seed}-{settings.crop}-{settings.batch}-{settings.shift_augment}"
    return work / f"crops-{name}.npy"


def draw_ahead(work: Path, settings: ctssl.Settings, workers: int) -> None:
    """Write the crops of every step, `(steps, 2 * batch, S, S, S)` float16, the images of a step before its labels."""
    path, side = crops_file(work, settings), settings.crop
    if path.exists():
        return
    part = path.with_suffix(".part.npy")
    shape = (settings.steps, 2 * settings.batch, side, side, side)
    np.lib.format.open_memmap(part, "w+", np.float16, shape).flush()
    _SCANS[:] = Task(work, torch.device("cpu")).learning(settings)
    with ProcessPoolExecutor(workers, get_context("fork")) as pool:  # with the scans
        list(
            pool.map(
                partial(_draw_some, part, settings), np.array_split(np.arange(settings.steps), 4 * workers)
            )
        )
    part.rename(path)


_SCANS: list[Scan] = []  # of `draw_ahead`, for its processes


def _draw_some(path: Path, settings: ctssl.Settings, steps: np.ndarray) -> None:
    torch.set_num_threads(1)
    file = np.lib.format.open_memmap(path, "r+")
    for step in steps:
        images, labels = draw(_SCANS, settings, int(step))
        file[step] = torch.cat([images[:, 0], labels[:, 0].float()]).half().numpy()


def test_images(work: Path, workers: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the test cases `(98, X, Y, Z)` by place, prepared, and their masks of `CLEAN` and `CUBE`; made once."""
    folder = work / f"shifted-{REVISION}"
    names = [CLEAN, CUBE, *PLACES]
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(workers) as pool:
            found = list(pool.map(_test_case, [row["id"] for row in cases("lung_radiogenomics")]))
        for name in names:
            np.save(folder / f"{name}.npy", np.stack([images[name] for images, _ in found]))
        for name in (CLEAN, CUBE):
            np.save(folder / f"{name} truth.npy", np.stack([truths[name] for _, truths in found]))
        (folder / "done").touch()
    images = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    return images, {name: np.load(folder / f"{name} truth.npy") for name in (CLEAN, CUBE)}


def _test_case(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the images and masks of a test case by place."""
    torch.set_num_threads(1)
    (cube, cube_mask), (scan, mask) = (read_case(_case(name, kind)) for kind in ("", "_offcentre"))
    images = {CLEAN: _ready(scan), CUBE: _ready(cube)}
    for place in PLACES:
        shift, severity = place.split()
        images[place] = _ready(ctssl.shift(scan, shift, severity=int(severity), seed=0))
    return images, {CLEAN: mask.array > 0, CUBE: cube_mask.array > 0}


def _ready(scan: ctssl.Volume) -> np.ndarray:
    found = prepare(scan, PREPROCESS).array
    if found.shape != scan.shape:
        raise ValueError(f"{scan.name} is not at {PREPROCESS.spacing_mm} mm")
    return found.astype(np.float16)


def _case(name: str, box: str) -> Case:
    row = lung.row_of("lung_radiogenomics", name, box, "test")
    return Case(row["id"], Path(row["image"]), Path(row["label"]), row["patient"])


def note_facts() -> None:
    """Write the volume and the mean HU of the tumour in each test case."""
    found = {}
    for row in cases("lung_radiogenomics"):
        scan, mask = read_case(_case(row["id"], ""))
        inside = mask.array > 0
        found[row["id"]] = {
            "volume_ml": round(volume_ml(inside, spacing_mm=mask.spacing_mm), 2),
            "mean_hu": round(float(scan.array[inside].mean()), 1),
        }
    write_whole(FACTS, json.dumps(found, indent=1) + "\n")


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


def check_start(path: Path, name: str, weights: str) -> None:
    """Exit if the kept rows of a contestant began with other weights: seeds of different models cannot be averaged."""
    others = {row["start"] for row in rows(path) if row["contestant"] == name} - {weights}
    if others:
        raise SystemExit(
            f"{name}: these starting weights ({weights[:12]}) are not those of its other seeds in {path} "
            f"({', '.join(one[:12] for one in sorted(others))}); give the study's encoders (--models), or another --out"
        )


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
        curve = fit(
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
        "curve": [[point["step"], round(point["loss"], 4), round(point["dsc"], 4)] for point in curve],
        "cases": task.names,
        "dsc": found,
    }
    return row | (
        {} if start.head == "dynunet" else {"cka": reuse(task, net, before, contestant, seed, models)}
    )


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


def twin_of(model: str) -> str:
    """Return the model of the other corpus; "" where there is none.

    >>> twin_of("vit-wild-smit"), twin_of("vit-self-mim"), twin_of("vit-scratch"), twin_of("vit-wild-self-smit")
    ('vit-self-smit', 'vit-wild-mim', '', '')
    """
    parts = model.split("-")
    if len(parts) != 3:
        return ""
    return "-".join([parts[0], "self" if parts[1] == "wild" else "wild", parts[2]])


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


def rows(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return what was measured."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, row: dict[str, Any]) -> None:
    """Add a row; an older one of the same contestant and seed leaves."""
    with trials.alone(path.parent):
        kept = [one for one in rows(path) if key(one) != key(row)] + [row]
        order = list(CONTESTANTS)
        kept.sort(key=lambda one: (order.index(one["contestant"]), one["seed"]))
        write_whole(path, "".join(json.dumps(one) + "\n" for one in kept))


def key(row: dict[str, Any]) -> tuple[str, int]:
    return row["contestant"], row["seed"]


@contextmanager
def claimed(work: Path, name: str, seed: int) -> Iterator[bool]:
    """Take a training for this process; False where another process has it. Given back when the process ends."""
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
        known = {key(row) for row in rows(args.out)}
        open_ones = [job for job in wanted if job not in known]
        ready = [(name, seed) for name, seed in open_ones if there(CONTESTANTS[name], args.models)]
        trained = False
        for name, seed in ready:
            with claimed(args.work, name, seed) as mine:
                if not mine or (name, seed) in {key(row) for row in rows(args.out)}:
                    continue
                net, start = network(CONTESTANTS[name], seed, args.models)
                check_start(args.out, name, start.weights)
                row = train(task, CONTESTANTS[name], seed, args.models, net, start)
                add(args.out, {"contestant": name, "seed": seed, **row})
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
    parser.add_argument("--out", type=Path, default=RESULTS)
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
