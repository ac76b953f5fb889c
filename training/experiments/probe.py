"""Do the frozen features know a tumour from other tissue? A linear probe and nearest neighbours on single
voxels.

`python -m training.experiments.probe [MODEL ...] [--seeds 3]` (a few minutes a model). From each patient up
to 200 voxels of the tumour and 200 of other tissue, 25 and 25 from each of 8 cubes of 32 voxels; the feature
of a voxel is every map of the encoder on that cube, interpolated at its place. A third of the patients are
held out, anew for each seed. Sarcoma: the 26 training cases alone, at the encoder's own spacing; what follows
from a probe (a pretraining that has to be mended) must not have seen the test cases. Nodules: at
`--nodule-spacing`, since a nodule of 10 mm is one token at 2 mm.

The scans are cut out around their tumours, so where a voxel lies in the scan tells all (AUROC 0.92 and 0.99),
and an encoder with learned positions passes that on. Hence the cubes: they lie so that the tumour may be
anywhere in them. What is left of it is measured beside the models ("position alone"), with the intensity
alone (the voxel and three neighbourhoods) and the same encoders with random weights. Results go to
`results/probe.json`; `--show` only prints, `--write` puts the short table into model_cards/RESULTS.md.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import ctssl
from ctssl.encoders import ENCODERS
from ctssl.evaluation.statistics import mean_interval
from ctssl.files.atomic import write_whole
from ctssl.files.text import markdown
from ctssl.sampling import crop_at
from ctssl.volume.grids import prepare, resample
from ctssl.zoo import Preprocess
from training.data.corpora import cases, data_folder, split
from training.experiments.trials import alone, write_table

RESULTS = Path(__file__).parent / "results" / "probe.json"
COMMAND = "python -m training.experiments.probe"
CUBE, CUBES, PER_CUBE = 32, 8, 25  # voxels a side; cubes a patient; voxels of each class in a cube
NEIGHBOURS = 20
DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


class Scan(NamedTuple):
    """A prepared scan 0..1 and its tumour, on one grid."""

    patient: str
    image: np.ndarray
    tumour: np.ndarray


class Rows(NamedTuple):
    """Voxels: features `(N, D)`, whether tumour `(N,)`, the patient's number `(N,)`."""

    features: Tensor
    tumour: Tensor
    patient: Tensor


def scans(group: str, preprocess: Preprocess) -> list[Scan]:
    found = []
    hidden = (
        set(split("test")) if group == "sarcoma" else set()
    )  # what is decided by a probe must not have seen them
    for row in tqdm([row for row in cases(group) if row["id"] not in hidden], desc=f"reading {group}"):
        image = prepare(ctssl.read(data_folder() / row["image"]), preprocess)
        label = ctssl.read(data_folder() / row["label"])
        tumour = resample(label.array > 0, label.affine, image.shape, image.affine) > 0.5
        if tumour.any():
            found.append(Scan(row["id"], image.array, tumour))
    return found


class Cube(NamedTuple):
    """A piece of a scan `(S, S, S)`, the voxels `(n, 3)` taken from it, and whether each is tumour."""

    image: np.ndarray
    voxels: np.ndarray
    tumour: np.ndarray


Features = Callable[[list[Cube]], Tensor]  # -> (all voxels of all cubes, D)


def cubes(scan: Scan, rng: np.random.Generator) -> list[Cube]:
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

    @torch.inference_mode()
    def features(pieces: list[Cube]) -> Tensor:
        maps = encoder(torch.from_numpy(np.stack([cube.image for cube in pieces]))[:, None])
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


def rows(group: list[Scan], features: Features, seeds: int) -> list[Rows]:
    """One `Rows` a seed."""
    found = []
    for seed in range(seeds):
        parts = []
        for number, scan in enumerate(group):
            pieces = cubes(scan, np.random.default_rng([seed, number]))
            tumour = torch.from_numpy(np.concatenate([cube.tumour for cube in pieces]))
            parts.append((features(pieces), tumour, torch.full((len(tumour),), number)))
        found.append(Rows(*(torch.cat(column) for column in zip(*parts, strict=True))))
    return found


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
    order = np.argsort(scores)
    ranks = np.empty(len(scores))
    _, first, counts = np.unique(scores[order], return_index=True, return_counts=True)
    ranks[order] = np.repeat(first + (counts + 1) / 2, counts)
    positive = truth.sum()
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


def measure(group: list[Scan], features: Features, *, seeds: int) -> list[dict[str, Any]]:
    """Return, for each seed and probe, the AUROC and AP of a third of the patients, drawn by the seed, after a fit on the
    others."""
    runs = []
    for seed, drawn in enumerate(rows(group, features, seeds)):
        names = [scan.patient for scan in group]
        fitted = set(np.random.default_rng(seed).permutation(names)[: 2 * len(names) // 3].tolist())
        known = {number for number, name in enumerate(names) if name in fitted}
        sides = of_patients(drawn, known), of_patients(drawn, set(range(len(names))) - known)
        run: dict[str, Any] = {"patients": [name for number, name in enumerate(names) if number not in known]}
        for name, probe in (("linear", linear_scores), ("knn", neighbour_scores)):
            values = judged(probe(*sides), sides[1])
            run[name] = {"auroc": [round(a, 5) for a, _ in values], "ap": [round(p, 5) for _, p in values]}
        runs.append(run)
    return runs


def patients(runs: list[dict], probe: str, metric: str) -> np.ndarray:
    """Return `(patients,)`, each once: the mean over the seeds that judge him."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, value in zip(run["patients"], run[probe][metric], strict=True):
            found.setdefault(name, []).append(value)
    return np.array([np.mean(found[name]) for name in sorted(found)])


def beats_its_twin(results: dict, model: str) -> bool:
    """Return whether the linear probe's patient-level AUROC is above the random twin's, with the whole interval, in
    some task."""
    for task in results["tasks"].values():
        pair = [patients(task[label], "linear", "auroc") for label in (model, twin(model))]
        if mean_interval(pair[0] - pair[1])[0] > 0:
            return True
    return False


def cell(runs: list[dict], probe: str, metric: str) -> str:
    """Return the mean over patients and its interval, for a table."""
    values = patients(runs, probe, metric)
    low, high = mean_interval(values)
    return f"{values.mean():.3f} ({low:.3f}-{high:.3f})"


def table(results: dict | None = None) -> str:
    """Return the results as Markdown: AUROC over patients, with intervals."""
    kept: dict = results or json.loads(RESULTS.read_text())
    text = ""
    for task, models in kept["tasks"].items():
        text += f"**{task}** ({kept['spacing_mm'][task]:g} mm)\n\n"
        columns = ("features", "linear AUROC", "AP", "k-NN AUROC", "AP")
        places = [(probe, metric) for probe in ("linear", "knn") for metric in ("auroc", "ap")]
        lines = [[model, *(cell(runs, *place) for place in places)] for model, runs in models.items()]
        text += markdown(columns, lines) + "\n"
    return text


def short(results: dict | None = None) -> str:
    """Return the linear AUROC of every model and reference in both tasks, and whether a model beats its random twin."""
    kept: dict = results or json.loads(RESULTS.read_text())
    titles = [f"{task.replace('_', ' ')}, {kept['spacing_mm'][task]:g} mm" for task in kept["tasks"]]
    lines = []
    names = {name: None for models in kept["tasks"].values() for name in models}
    for name in sorted(names, key=lambda n: (n not in ctssl.list_models(), n)):
        cells = [cell(models[name], "linear", "auroc") for models in kept["tasks"].values()]
        known = name in ctssl.list_models()
        lines.append([name, *cells, ("yes" if beats_its_twin(kept, name) else "no") if known else ""])
    return markdown(["frozen features", *titles, "better than random weights"], lines)


def twin(model: str) -> str:
    """Return what the encoder of this model is called without its training: one for all models that share it."""
    return f"{model.split('-')[0]} (random weights)"


def random_twins(model: str, seeds: int) -> list[Any]:
    """Return the model's encoder as it would be without training, once a seed."""
    spec, twins = ctssl.info(model), []
    for seed in range(seeds):
        torch.manual_seed(1000 + seed)
        twins.append(ENCODERS[spec.encoder](**spec.encoder_args).eval())
        twins[-1].spec = replace(spec, name=twin(model))
    return twins


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", default=[n for n in ctssl.list_models() if ctssl.info(n).kind == "encoder"]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nodule-spacing", type=float, default=0.75)
    parser.add_argument(
        "--tasks", nargs="+", choices=["sarcoma", "lung_nodules"], default=["sarcoma", "lung_nodules"]
    )
    parser.add_argument("--show", action="store_true", help="print what was measured, measure nothing")
    parser.add_argument(
        "--write",
        action="store_true",
        help="write the short table to model_cards/RESULTS.md, measure nothing",
    )
    args = parser.parse_args()
    if args.write:
        write_table("probe", short())
    if args.show or args.write:
        print(table())
        return
    spacing = {"sarcoma": Preprocess().spacing_mm, "lung_nodules": args.nodule_spacing}
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if (kept.get("spacing_mm"), kept.get("seeds")) != (spacing, args.seeds):
        kept = {
            "command": COMMAND,
            "seeds": args.seeds,
            "spacing_mm": spacing,
            "tasks": {task: {} for task in spacing},
        }
        kept["weights"] = {}
        write_whole(RESULTS, json.dumps(kept) + "\n")
    for task, mm in [(task, mm) for task, mm in spacing.items() if task in args.tasks]:
        group = scans(task, Preprocess(mm))
        twins = {twin(name): name for name in args.models}
        plain = {"position alone": position, "intensity alone": intensity}
        references = [label for label in (*plain, *twins) if label not in kept["tasks"][task]]
        for label in tqdm([*references, *args.models], desc=task):
            if label in twins:  # other random weights for each seed
                per_seed = [
                    measure(group, encoded(one), seeds=args.seeds)[seed]
                    for seed, one in enumerate(random_twins(twins[label], args.seeds))
                ]
            else:
                features = plain.get(label) or encoded(ctssl.load(label))
                per_seed = measure(group, features, seeds=args.seeds)
            with alone(RESULTS.parent):  # another process may have measured other models
                kept = json.loads(RESULTS.read_text())
                kept["tasks"][task][label] = per_seed
                if label in args.models:
                    kept["weights"].setdefault(task, {})[label] = ctssl.info(label).sha256
                write_whole(RESULTS, json.dumps(kept) + "\n")
    print(table(kept))
    for name in args.models:
        print(f"{name}: {'beats' if beats_its_twin(kept, name) else 'does not beat'} its random twin")


if __name__ == "__main__":
    main()
