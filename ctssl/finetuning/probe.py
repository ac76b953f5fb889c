"""Compare frozen encoders on your own labels without any fine-tuning: a linear probe of single voxels.

From each patient up to 200 labelled voxels and 200 others, 25 and 25 from each of 8 cubes of 32 voxels; the feature of a voxel
is every map of the encoder on that cube, interpolated at its place. The cubes lie so that the structure may be anywhere in
them; what its place tells all the same is measured beside the models.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ctssl.datasets.case import Case, read_case
from ctssl.datasets.layouts import find_cases
from ctssl.devices import choose_device
from ctssl.evaluation.statistics import add_holm, gained, mean_interval, with_interval
from ctssl.files.atomic import write_whole
from ctssl.files.names import check_writable
from ctssl.files.text import as_plain, markdown
from ctssl.finetuning.start import BASELINES, open_start
from ctssl.sampling import crop_at
from ctssl.volume.grids import prepare, resample
from ctssl.zoo import Preprocess

CUBE, CUBES, PER_CUBE = 32, 8, 25  # voxels a side; cubes a patient; voxels of each class in a cube
NEIGHBOURS = 20
DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FEWEST = 6  # patients
REPORT = "report.md"
PLACE, GREY = "position alone", "intensity alone"


class ProbedScan(NamedTuple):
    """A prepared scan 0..1 and its tumour, on one grid."""

    patient: str
    image: np.ndarray
    tumour: np.ndarray


class Rows(NamedTuple):
    """Voxels: features `(N, D)`, whether tumour `(N,)`, the patient's number `(N,)`."""

    features: Tensor
    tumour: Tensor
    patient: Tensor


class Cube(NamedTuple):
    """A piece of a scan `(S, S, S)`, the voxels `(n, 3)` taken from it, and whether each is tumour."""

    image: np.ndarray
    voxels: np.ndarray
    tumour: np.ndarray


Features = Callable[[list[Cube]], Tensor]  # -> (all voxels of all cubes, D)


def cubes(scan: ProbedScan, rng: np.random.Generator) -> list[Cube]:
    """Return pieces in which some tumour voxel lies at a random place; as many voxels of the tumour as of other
    tissue in each."""
    found, inside = [], np.argwhere(scan.tumour)
    room = np.maximum(np.array(scan.image.shape) - CUBE, 0)
    for _ in range(CUBES):
        corner = tuple(
            np.clip(inside[rng.integers(len(inside))] - rng.integers(CUBE, size=3), 0, room).tolist()
        )
        image, tumour = (crop_at(array, corner, CUBE) for array in (scan.image, scan.tumour))
        sides = [np.argwhere(side) for side in (tumour, ~tumour & (image > 0))]
        count = min(PER_CUBE, *map(len, sides))
        voxels = np.concatenate([side[rng.permutation(len(side))[:count]] for side in sides])
        found.append(Cube(image, voxels, np.repeat([True, False], count)))
    return found


def encoded(encoder: Any) -> Features:
    """Return the features of voxels: all maps, trilinear."""

    device = next(iter(encoder.parameters()), torch.zeros(0)).device

    @torch.inference_mode()
    def features(pieces: list[Cube]) -> Tensor:
        images = torch.from_numpy(np.stack([cube.image for cube in pieces]))[:, None]
        maps = [found.cpu() for found in encoder(images.to(device))]
        rows = []
        for number, cube in enumerate(pieces):
            columns = []
            for m, stride in zip(maps, encoder.strides, strict=True):
                where = (
                    torch.from_numpy(cube.voxels).float() + 0.5
                ) / stride  # in cells, corners at whole numbers
                where = 2 * where / torch.tensor(m.shape[2:]) - 1
                grid = where.flip(-1)[None, :, None, None]  # grid_sample counts the axes backwards
                sampled = F.grid_sample(m[number, None], grid, align_corners=False, padding_mode="border")
                columns.append(sampled[0, :, :, 0, 0].t())
            rows.append(torch.cat(columns, 1))
        return torch.cat(rows)

    return features


def intensity(pieces: list[Cube]) -> Tensor:
    """Return the value of each voxel, and of its neighbourhood at three scales."""
    rows = []
    for cube in pieces:
        blurred = [cube.image, *(ndimage.gaussian_filter(cube.image, s) for s in (1, 2, 4))]
        rows.append(np.stack([b[tuple(cube.voxels.T)] for b in blurred], 1))
    return torch.from_numpy(np.concatenate(rows)).float()


def position(pieces: list[Cube]) -> Tensor:
    """Return where in its cube each voxel lies: coordinates, their squares and products, the distance from the
    middle."""
    x = torch.from_numpy(np.concatenate([cube.voxels for cube in pieces]) + 0.5).float() * 2 / CUBE - 1
    first, second = torch.triu_indices(3, 3)
    products = x[:, first] * x[:, second]
    return torch.cat([x, products, x.norm(dim=1, keepdim=True)], 1)


def rows(group: list[ProbedScan], each: Sequence[Features]) -> Iterator[Rows]:
    """Yield one `Rows` a seed, by the features of that seed."""
    for seed, features in enumerate(each):
        parts = []
        people = everyone(group)
        for number, scan in enumerate(group):
            pieces = cubes(scan, np.random.default_rng([seed, number]))
            tumour = torch.from_numpy(np.concatenate([cube.tumour for cube in pieces]))
            parts.append((features(pieces), tumour, torch.full((len(tumour),), people.index(scan.patient))))
        yield Rows(*(torch.cat(column) for column in zip(*parts, strict=True)))


def everyone(group: list[ProbedScan]) -> list[str]:
    """Return every patient once, in the order of the scans; `Rows.patient` counts them so."""
    return list(dict.fromkeys(scan.patient for scan in group))


def of_patients(rows: Rows, numbers: set[int]) -> Rows:
    """Return the rows of these patients."""
    mine = torch.isin(rows.patient, torch.tensor(sorted(numbers)))
    return Rows(*(column[mine] for column in rows))


def linear_scores(train: Rows, test: Rows) -> Tensor:
    """Return scores by a logistic regression on standardised features. Its ridge is the one of `DECAYS` that serves every third
    patient of `train` best when fitted on the others."""
    inner = of_patients(train, set(train.patient.unique().tolist()[::3]))
    outer = of_patients(train, set(train.patient.unique().tolist()) - set(inner.patient.tolist()))
    found = [np.mean([a for a, _ in judged(logistic(outer, inner, decay), inner)]) for decay in DECAYS]
    return logistic(train, test, DECAYS[int(np.argmax(found))])


def logistic(train: Rows, test: Rows, decay: float) -> Tensor:
    """Return scores of `test` by a logistic regression with ridge `decay` on `train`, by L-BFGS."""
    mean, deviation = train.features.mean(0), train.features.std(0) + 1e-6
    x, y = (train.features - mean) / deviation, train.tumour.float()
    weight = torch.zeros(x.shape[1] + 1, requires_grad=True)
    opt = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        opt.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ weight[:-1] + weight[-1], y)
        loss = loss + decay * weight[:-1].square().sum() / 2
        loss.backward()
        return loss

    opt.step(closure)  # type: ignore[arg-type]
    weight = weight.detach()
    return (test.features - mean) / deviation @ weight[:-1] + weight[-1]


def neighbour_scores(train: Rows, test: Rows) -> Tensor:
    """Return the share of tumour among the 20 nearest training voxels by cosine."""
    mean, deviation = train.features.mean(0), train.features.std(0) + 1e-6
    known, asked = (F.normalize((r.features - mean) / deviation, dim=1) for r in (train, test))
    return torch.cat(
        [
            train.tumour[(part @ known.t()).topk(NEIGHBOURS).indices].float().mean(1)
            for part in asked.split(2000)
        ]
    )


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the chance that a tumour voxel scores above another one; ties count half."""
    ranks, positive = rankdata(scores), truth.sum()
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean precision at each step of recall; equal scores step together."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(truth[order])[last]
    return float((np.diff(hits, prepend=0) * hits / (last + 1)).sum() / truth.sum())


def judged(scores: Tensor, test: Rows) -> list[tuple[float, float]]:
    """Return the AUROC and AP of each patient of the test side."""
    found = []
    for patient in test.patient.unique():
        mine = test.patient == patient
        values, truth = scores[mine].numpy(), test.tumour[mine].numpy()
        found.append((auroc(values, truth), average_precision(values, truth)))
    return found


def measure(group: list[ProbedScan], features: Features, *, seeds: int) -> list[dict[str, Any]]:
    """Return `measure_each` of the same features with every seed."""
    return measure_each(group, [features] * seeds)


def measure_each(group: list[ProbedScan], each: Sequence[Features]) -> list[dict[str, Any]]:
    """Return, for each seed and probe, the AUROC and AP of a third of the patients, drawn by the seed, after a fit on the
    others.

    Args:
        group: scans of all patients.
        each: the features for each seed, 0 onwards.
    """
    runs = []
    for seed, drawn in enumerate(rows(group, each)):
        names = everyone(group)
        fitted = set(np.random.default_rng(seed).permutation(names)[: 2 * len(names) // 3].tolist())
        known = {number for number, name in enumerate(names) if name in fitted}
        sides = of_patients(drawn, known), of_patients(drawn, set(range(len(names))) - known)
        run: dict[str, Any] = {"patients": [name for number, name in enumerate(names) if number not in known]}
        for name, probe in (("linear", linear_scores), ("knn", neighbour_scores)):
            values = judged(probe(*sides), sides[1])
            run[name] = {"auroc": [round(a, 5) for a, _ in values], "ap": [round(p, 5) for _, p in values]}
        runs.append(run)
    return runs


@dataclass(frozen=True)
class Probe:
    """How well frozen features tell labelled voxels from others.

    Attributes:
        runs: for each contestant and seed what `measure` returns.
        spacing_mm: working spacing in mm.
    """

    runs: dict[str, list[dict[str, Any]]]
    spacing_mm: float

    def rows(self) -> list[dict[str, Any]]:
        """Return for each contestant the mean AUROC over patients, its 95% interval and, for all models but the last, the
        difference from the last one with an interval and p (paired by patient; Holm over the table)."""
        values = {name: patients(runs, "linear", "auroc") for name, runs in self.runs.items()}
        models = [name for name in values if name not in (PLACE, GREY)]
        result: list[dict[str, Any]] = []
        for name, mine in values.items():
            low, high = mean_interval(mine)
            row = {"model": name, "auroc": float(mine.mean()), "low": low, "high": high}
            if name in models[:-1]:
                pairs = [
                    {"patient": n, "auroc": one, "other_auroc": two}
                    for n, (one, two) in enumerate(zip(mine, values[models[-1]], strict=True))
                ]
                found = gained(pairs, "auroc")
                row |= {
                    "gain": found["difference"],
                    "gain_low": found["low"],
                    "gain_high": found["high"],
                    "p": found["p"],
                }
            result.append(row)
        add_holm(result, into="p")
        return result

    def table(self) -> str:
        """Return `rows` as Markdown."""
        rows = self.rows()
        last = [row["model"] for row in rows if row["model"] not in (PLACE, GREY)][-1]
        lines = []
        for row in rows:
            cells = [row["model"], f"{row['auroc']:.3f} ({row['low']:.3f} to {row['high']:.3f})", "", ""]
            if "gain" in row:
                cells[2] = with_interval(row["gain"], row["gain_low"], row["gain_high"])
                cells[3] = "too few" if np.isnan(row["p"]) else f"{row['p']:.3f}"
            lines.append(cells)
        return markdown(["frozen features", "AUROC (95% interval)", f"against {last}", "p"], lines)


def probe(
    data: str | os.PathLike,
    *,
    models: Sequence[str],
    out: str | os.PathLike | None = None,
    seeds: int = 3,
    label: int | None = None,
    spacing_mm: float = 1.5,
    device: str = "auto",
    progress: bool = True,
) -> Probe:
    """Measure how well the frozen features of each model tell labelled voxels from others, patient by patient.

    For each seed a third of the patients is held out, and a logistic regression is fitted on the others.

    Args:
        data: folder or CSV in a layout that `ctssl.datasets.find_cases` knows.
        models: starting points as for `ctssl.finetune`, each with its own HU window; `vit-scratch` and `swin-scratch` have other
            random weights for each seed, and the window of the first pretrained model. All are compared with the last one.
        out: folder for `report.md` and `probe.json`.
        seeds: how often patients and voxels are drawn.
        label: the label to tell from everything else; None: any label.
        spacing_mm: working spacing of all models in mm; a structure should be several voxels wide.
        device: "cpu", "cuda", "auto".

    Raises:
        ValueError: fewer than six patients with labelled voxels, or arguments that cannot be.
        FileExistsError: `out` holds a file that would be replaced and is not of an earlier call.
    """
    if not 0 < spacing_mm < math.inf:
        raise ValueError(f"spacing_mm={spacing_mm}: give a size above 0 mm")
    if not models or len(set(models)) != len(models):
        raise ValueError(
            f"models={list(models)}: give one or more different ones, such as vit-wild-lesions, vit-scratch"
        )
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: give at least 1")
    if out is not None:
        check_writable(Path(out))
        there = [name for name in (REPORT, "probe.json") if (Path(out) / name).exists()]
        if len(there) == 1:
            raise FileExistsError(
                f"{out} holds a {there[0]} that is not of `ctssl probe`; choose another folder (--out)"
            )
    cases, where = find_cases(data).of_one_channel("probe"), choose_device(device)
    encoders = {
        name: [_encoder(name, seed, where) for seed in range(seeds if name in BASELINES else 1)]
        for name in models
    }
    windows = {name: found[0].spec.preprocess.window_hu for name, found in encoders.items()}
    shared = next((window for name, window in windows.items() if name not in BASELINES), None)
    windows |= {name: shared for name in windows if name in BASELINES and shared}
    groups = {
        window: read_scans(cases, Preprocess(spacing_mm, window), label=label, progress=progress)
        for window in dict.fromkeys(windows.values())
    }
    first = next(iter(groups.values()))
    if len({scan.patient for scan in first}) < FEWEST:
        raise ValueError(
            f"{len(first)} scans with labelled voxels are too few for a probe; give at least {FEWEST} patients"
        )
    runs = {
        name: measure(first, features, seeds=seeds)
        for name, features in ((PLACE, position), (GREY, intensity))
    }
    for name, found in tqdm(encoders.items(), desc="models", disable=not progress):
        features = [encoded(one) for one in found]
        runs[name] = measure_each(groups[windows[name]], features if len(found) > 1 else features * seeds)
    result = Probe(runs, spacing_mm)
    if out is not None:
        write_probe(result, Path(out))
    return result


def _encoder(name: str, seed: int, device: torch.device) -> Any:
    """Return a frozen encoder; random weights are drawn anew for each seed."""
    start = open_start(name, "", from_scratch=False, seed=seed)
    if start.head == "dynunet":
        raise ValueError(f"{name} has no features to probe; give an encoder")
    start.encoder.spec = start.spec
    return start.encoder.to(device).eval()


def read_scans(
    cases: list[Case], preprocess: Preprocess, *, label: int | None, progress: bool
) -> list[ProbedScan]:
    """Return the cases with labelled voxels, prepared."""
    found = []
    for case in tqdm(cases, desc="reading scans", disable=not progress):
        scan, mask = read_case(case)
        image = prepare(scan, preprocess)
        wanted = mask.array > 0 if label is None else mask.array == label
        inside = resample(wanted, mask.affine, image.shape, image.affine) > 0.5
        if inside.any():
            found.append(ProbedScan(case.patient or case.name, image.array, inside))
    return found


def write_probe(found: Probe, folder: Path) -> None:
    """Write `report.md` and `probe.json`."""
    count = len(patients(found.runs[PLACE], "linear", "auroc"))
    text = f"""# Linear probe of frozen features

How well single voxels of the labelled structures can be told from others, by a logistic regression on frozen features at
{found.spacing_mm:g} mm: mean AUROC of {count} patients, each held out from the fit. Intervals over patients; p by Wilcoxon's
test, corrected by Holm. Features worth having are better than random weights, intensity and position.

{found.table()}"""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / REPORT, text)
    facts = {"spacing_mm": found.spacing_mm, "rows": found.rows(), "runs": found.runs}
    write_whole(folder / "probe.json", json.dumps(as_plain(facts)) + "\n")


def patients(runs: list[dict], probe: str, metric: str) -> np.ndarray:
    """Return `(patients,)`, each once: the mean over the seeds that judge him."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, value in zip(run["patients"], run[probe][metric], strict=True):
            found.setdefault(name, []).append(value)
    return np.array([np.mean(found[name]) for name in sorted(found)])
