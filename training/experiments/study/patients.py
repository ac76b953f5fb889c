"""The patients of the study: to learn from, to choose weights by, and to judge on, under every shift; see
`training.experiments.robustness`."""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import ctssl
from ctssl.datasets.case import Case, read_case
from ctssl.datasets.layouts import find_cases
from ctssl.files.atomic import write_whole
from ctssl.finetuning.crops import PreparedCase, draw
from ctssl.finetuning.prepare import prepare_cases
from ctssl.shifts import REVISION, SHIFTS
from ctssl.volume.grids import prepare
from ctssl.zoo import Preprocess
from training.data.corpora import cases, lung_split
from training.experiments import lung
from training.experiments.study.boxes import Boxes

FACTS = Path(__file__).parent.parent / "results" / "radiogenomics.json"
PREPROCESS = Preprocess(1.5, (-1000.0, 400.0))
SEVERITIES = (1, 3, 5)
CLEAN, CUBE = "clean", "cube"
UNTRUE = ("truncation",)  # on cubes
PLACES = [f"{name} {severity}" for name in SHIFTS if name not in UNTRUE for severity in SEVERITIES]


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
        self.copies: dict[tuple[int, int], list[PreparedCase]] = {}
        held = prepare_cases([case for case in found if case.split == "val"], PREPROCESS, progress=False)
        self.choosing = Boxes.of([s.image[0] for s in held], [s.labels > 0 for s in held], device)
        self.names = [row["id"] for row in cases("lung_radiogenomics")]
        images, truths = test_images(work, workers=1)
        self.truths = {place: truths[CUBE if place == CUBE else CLEAN] for place in images}
        self.images = images

    def learning(self, settings: ctssl.Settings) -> list[PreparedCase]:
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
    """Return where the crops of some settings are kept: they depend on the seed, not on the model, and those of fewer steps are
    the first ones."""
    text = json.dumps(asdict(replace(settings, steps=1)), sort_keys=True)
    return work / f"crops-{settings.seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.npy"


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


_SCANS: list[PreparedCase] = []  # of `draw_ahead`, for its processes


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
            "volume_ml": round(float(inside.sum()) * mask.voxel_ml, 2),
            "mean_hu": round(float(scan.array[inside].mean()), 1),
        }
    write_whole(FACTS, json.dumps(found, indent=1) + "\n")
