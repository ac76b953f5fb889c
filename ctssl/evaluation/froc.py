"""Free-response analysis (FROC): how many lesions are found at how many false positives per scan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.metrics import components

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which LUNA16 reads the sensitivity."""
NAMES = ("1/8", "1/4", "1/2", "1", "2", "4", "8")
FLOOR = 0.1  # default probability above which a voxel belongs to a candidate


@dataclass(frozen=True)
class Candidates:
    """Lesion candidates of one scan, compared with its true lesions.

    Attributes:
        found: `(lesions,)` highest score of a candidate on each true lesion; 0 for one that no candidate overlaps.
        false: `(n,)` scores of the candidates that overlap no true lesion.
        count: number of all candidates.
    """

    found: np.ndarray
    false: np.ndarray
    count: int


@dataclass(frozen=True)
class Froc:
    """Free-response curve of one label over several scans. What is undefined without any true lesion is NaN.

    Attributes:
        label: name of the label.
        floor: probability above which a voxel belongs to a candidate.
        scans: number of scans.
        patients: number of patients.
        lesions: number of true lesions.
        candidates: number of candidates.
        score: mean of `sensitivity` (the LUNA16 score), with its 95% bootstrap interval over patients.
        sensitivity: at each of `RATES`, with their intervals.
        curve_false_positives: false positives per scan of each operating point, rising from 0.
        curve_sensitivity: sensitivity of each operating point.
    """

    label: str
    floor: float
    scans: int
    patients: int
    lesions: int
    candidates: int
    score: float
    score_low: float
    score_high: float
    sensitivity: list[float]
    sensitivity_low: list[float]
    sensitivity_high: list[float]
    curve_false_positives: list[float]
    curve_sensitivity: list[float]

    def row(self) -> dict[str, Any]:
        """Return the figures of the Markdown table."""
        interval = "-"
        if not math.isnan(self.score):
            interval = f"{self.score:.3g} ({self.score_low:.3g} to {self.score_high:.3g})"
        counts = {"scans": self.scans, "lesions": self.lesions, "candidates": self.candidates}
        return (
            {"label": self.label}
            | counts
            | dict(zip(NAMES, self.sensitivity, strict=True))
            | {"mean (95% interval)": interval}
        )


def find_candidates(probability: np.ndarray, truth: np.ndarray, *, floor: float = FLOOR) -> Candidates:
    """Compare the lesion candidates of a probability map with the true lesions of the scan.

    A candidate is a set of voxels above `floor` that are connected by faces, edges or corners; its score is its
    highest probability. A true lesion, connected in the same way, is found by every candidate that overlaps it.
    Several candidates on one lesion count once and are no false positives; one candidate can find several lesions.

    Args:
        probability: `(X, Y, Z)`, from 0 to 1.
        truth: mask `(X, Y, Z)` of the same grid.
        floor: probability above which a voxel belongs to a candidate, from 0 to below 1.

    Raises:
        ValueError: different shapes, values outside 0 to 1, or a `floor` that cannot be used.

    >>> find_candidates(np.array([[[0.9, 0.0, 0.4, 0.0, 0.0]]]), np.array([[[1, 0, 0, 0, 1]]]))
    Candidates(found=array([0.9, 0. ]), false=array([0.4]), count=2)
    """

    check_floor(floor)
    if probability.shape != truth.shape:
        raise ValueError(
            f"a map of shape {probability.shape} and a truth of shape {truth.shape}; resample the map to the grid of "
            "the scan first"
        )
    check_probabilities(probability, "the map")
    inside, true = probability > floor, truth.astype(bool, copy=False)
    own, count = components(inside)
    scores = np.zeros(count + 1, probability.dtype)
    np.maximum.at(scores, own[inside], probability[inside])
    lesion, lesions = components(true)
    met = own[inside & true]
    found = np.zeros(lesions + 1, scores.dtype)
    np.maximum.at(found, lesion[inside & true], scores[met])
    right = np.zeros(count + 1, bool)
    right[0], right[met] = True, True  # 0 is the background
    return Candidates(found[1:], scores[~right], count)


def check_floor(floor: float) -> None:
    """Raise `ValueError` unless candidates can be the voxels above `floor`."""
    if not 0 <= floor < 1:
        raise ValueError(
            f"the threshold of the candidates is {floor}; give a probability from 0 to below 1, such as {FLOOR} "
            "(--froc-threshold)"
        )


def check_probabilities(values: np.ndarray, name: str) -> None:
    """Raise `ValueError` unless all values lie from 0 to 1 (1e-4 aside, for rounding)."""
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-4 and high <= 1 + 1e-4):  # NaN too
        raise ValueError(
            f"{name} holds values from {low:g} to {high:g}, so it is no probability map; give probabilities from 0 to "
            "1, such as `ctssl segment --probabilities` writes (percent: divide by 100; logits: apply the sigmoid)"
        )


def measure_froc(
    scans: Sequence[Candidates],
    *,
    patients: Sequence[str] | None = None,
    label: str = "",
    floor: float = FLOOR,
    draws: int = 2000,
) -> Froc:
    """Compute the free-response curve of several scans, and the sensitivities that LUNA16 reads from it.

    An operating point accepts all candidates from one score on; equal scores enter together. Between the operating
    points the sensitivity is interpolated linearly, from none at 0 false positives; after the last one it stays.
    Source: Setio et al. 2017, arXiv 1612.08012 (LUNA16), whose own script interpolates in the same way. LUNA16
    takes a candidate for a hit that lies within the radius of a nodule; here it has to overlap the mask.

    Args:
        scans: candidates of each scan.
        patients: patient of each scan; all scans of a patient are drawn together. Default: one scan each.
        label: name of the label.
        floor: as given to `find_candidates`, for the report.
        draws: number of bootstrap samples.

    Raises:
        ValueError: no scans, or not one patient for each of them.

    >>> one = Candidates(np.array([0.9, 0.0]), np.array([0.4]), 2)
    >>> measure_froc([one]).sensitivity
    [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    """
    whose = list(map(str, range(len(scans)))) if patients is None else list(patients)
    if not scans or len(whose) != len(scans):
        raise ValueError(
            f"{len(scans)} scans of {len(whose)} patients; give at least one scan, and a patient for each"
        )
    _, owner = np.unique(whose, return_inverse=True)
    events = _Events(scans, owner)
    once = np.ones(owner.max() + 1, np.int64)
    false, sensitivity = events.curve(once)
    values = np.interp(RATES, false, sensitivity)
    drawn = events.bootstrap(draws)
    low, high = (_quantile(drawn, q) for q in (0.025, 0.975))
    score_low, score_high = (_quantile(drawn.mean(1, keepdims=True), q)[0] for q in (0.025, 0.975))
    return Froc(
        label,
        floor,
        len(scans),
        len(once),
        sum(len(scan.found) for scan in scans),
        sum(scan.count for scan in scans),
        *(float(values.mean()), score_low, score_high),
        *(values.tolist(), low, high),
        *(false.tolist(), sensitivity.tolist()),
    )


class _Events:
    """The scores of all scans in falling order: lesions that are found, and false positives."""

    def __init__(self, scans: Sequence[Candidates], owner: np.ndarray) -> None:
        hits = [scan.found[scan.found > 0] for scan in scans]
        parts = [[hit, scan.false] for hit, scan in zip(hits, scans, strict=True)]
        scores = np.concatenate([part for pair in parts for part in pair])
        order = np.argsort(-scores, kind="stable")
        sizes = [len(part) for pair in parts for part in pair]
        self.patient = np.repeat(np.repeat(owner, 2), sizes)[order]
        self.hit = np.repeat(np.tile([True, False], len(scans)), sizes)[order]
        falling = scores[order]
        self.last = (
            np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(falling) else np.zeros(0, int)
        )
        self.scans = np.bincount(owner)
        self.lesions = np.bincount(owner, [len(scan.found) for scan in scans])

    def curve(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return false positives per scan and sensitivity of all operating points, patient i counting `times[i]`."""
        weight, lesions = times[self.patient], float(times @ self.lesions)
        false, hits = (np.cumsum(weight * which)[self.last] for which in (~self.hit, self.hit))
        false, hits = (np.concatenate([[0.0], counts]) for counts in (false, hits))
        return false / (times @ self.scans), hits / lesions if lesions else np.full(len(hits), math.nan)

    def bootstrap(self, draws: int) -> np.ndarray:
        """Return the sensitivities at `RATES` of samples of patients, `(draws, 7)`; NaN for one without lesions."""
        count, random = len(self.scans), np.random.default_rng(0)
        samples = (np.bincount(random.integers(count, size=count), minlength=count) for _ in range(draws))
        return np.array([np.interp(RATES, *self.curve(times)) for times in samples]).reshape(
            draws, len(RATES)
        )


def _quantile(drawn: np.ndarray, q: float) -> list[float]:
    """Return the quantile of each column; rows of NaN, samples without any lesion, do not count."""
    known = drawn[~np.isnan(drawn).any(1)]
    return np.quantile(known, q, axis=0).tolist() if len(known) else [math.nan] * drawn.shape[1]


def draw(curves: Sequence[Froc], path: Path) -> None:
    """Draw the curves of all labels with their intervals, over 1/8 to 8 false positives per scan, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    for number, one in enumerate(curves):
        colour, defined = f"C{number}", not math.isnan(one.score)
        where = np.geomspace(RATES[0], RATES[-1], 400)
        name = f"{one.label}: mean {one.score:.3f}" if defined else f"{one.label}: no lesions"
        axes.plot(
            where,
            np.interp(where, one.curve_false_positives, one.curve_sensitivity),
            color=colour,
            label=name,
        )
        axes.fill_between(RATES, one.sensitivity_low, one.sensitivity_high, color=colour, alpha=0.15, lw=0)
        axes.plot(RATES, one.sensitivity, "o", color=colour, ms=4)
    axes.set(xlabel="false positives per scan", ylabel="sensitivity", xlim=(0.11, 9.0), ylim=(-0.02, 1.02))
    axes.set_xticks(RATES, NAMES)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110, format="png")
