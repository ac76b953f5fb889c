"""Fit linear and nearest-neighbour probes on the features of voxels, and judge them patient by patient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from ctssl.datasets.splits import patients
from ctssl.finetuning.probe_voxels import Features, ProbedScan, Rows, rows

NEIGHBOURS = 20
DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


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


def measure_each(group: list[ProbedScan], each: Sequence[Features]) -> list[dict[str, Any]]:
    """Return, for each seed and probe, the AUROC and AP of a third of the patients, drawn by the seed, after a fit on the
    others.

    Args:
        group: scans of all patients.
        each: the features for each seed, 0 onwards.
    """
    runs = []
    for seed, drawn in enumerate(rows(group, each)):
        names = patients(group)
        fitted = set(np.random.default_rng(seed).permutation(names)[: 2 * len(names) // 3].tolist())
        known = {number for number, name in enumerate(names) if name in fitted}
        sides = of_patients(drawn, known), of_patients(drawn, set(range(len(names))) - known)
        drawn_of = sides[1].patient.unique().tolist()  # not of patients without room for both kinds of voxels
        run: dict[str, Any] = {"patients": [names[number] for number in drawn_of]}
        for name, probe in (("linear", linear_scores), ("knn", neighbour_scores)):
            values = judged(probe(*sides), sides[1])
            run[name] = {"auroc": [round(a, 5) for a, _ in values], "ap": [round(p, 5) for _, p in values]}
        runs.append(run)
    return runs


def by_patient(runs: list[dict], probe: str, metric: str) -> np.ndarray:
    """Return `(patients,)`, each once: the mean over the seeds that judge him."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for name, value in zip(run["patients"], run[probe][metric], strict=True):
            found.setdefault(name, []).append(value)
    return np.array([np.mean(found[name]) for name in sorted(found)])
