"""What the study measured, and the comparisons that can be made of it; see `training.experiments.robustness`."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.evaluation.statistics import gained, holm
from training.experiments import robustness
from training.experiments.robustness import CLEAN, PLACES, SEVERITIES

SHIFTED, LOST = "all shifts", "lost"
SURE = 0.05
MARGIN = 0.03  # of DSC: two starts are alike if the interval of their difference lies within it


class Measured:
    """The rows of the study by contestant and seed."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        for row in rows:
            self.rows[row["contestant"]][row["seed"]] = row
        self.cases: list[str] = rows[0]["cases"] if rows else []

    @classmethod
    def read(cls, path: Path = robustness.RESULTS) -> "Measured":
        """Read the results of `training.experiments.robustness`."""
        return cls(robustness.rows(path))

    def seeds(self, *contestants: str) -> list[int]:
        """Return the seeds that all of some contestants were trained with."""
        return sorted(set.intersection(*(set(self.rows.get(name, {})) for name in contestants)))

    def scores(self, contestant: str, place: str, seeds: list[int]) -> np.ndarray:
        """Return the DSC of each case, averaged over seeds.

        Args:
            place: `CLEAN`, `CUBE`, a shift with its severity, a shift (the mean over its severities), `SHIFTED` (the mean over
                all shifts), or `LOST` (that minus the clean DSC).
        """
        return np.mean([self._scores(self.rows[contestant][seed]["dsc"], place) for seed in seeds], 0)

    def _scores(self, dsc: dict[str, list[float]], place: str) -> np.ndarray:
        if place == LOST:
            return self._scores(dsc, SHIFTED) - np.array(dsc[CLEAN])
        if place in dsc:
            return np.array(dsc[place])
        wanted = PLACES if place == SHIFTED else [f"{place} {severity}" for severity in SEVERITIES]
        return np.mean([dsc[one] for one in wanted], 0)

    def difference(
        self, terms: list[tuple[int, str]], place: str = CLEAN, cases: np.ndarray | None = None
    ) -> dict[str, Any] | None:
        """Compare contestants case by case; None where no seed has all of them.

        Args:
            terms: factor and name of each contestant: +1 and -1 for a difference, and so on.
            cases: which cases; None: all.

        Returns:
            Mean `difference` with its bootstrap interval over patients (`low`, `high`), `p` of a paired Wilcoxon test, the
            number of `patients` and `seeds`, the `means` of the contestants, and the difference of `each_seed`.
        """
        names = [name for _, name in terms]
        seeds = self.seeds(*names)
        if not seeds:
            return None
        every = slice(None) if cases is None else cases
        each = [self.scores(name, place, seeds)[every] for name in names]
        away = np.sum([factor * one for (factor, _), one in zip(terms, each, strict=True)], 0)
        alone = [
            sum(factor * self.scores(name, place, [seed])[every].mean() for factor, name in terms)
            for seed in seeds
        ]
        rows = [{"patient": n, "dsc": float(d), "other_dsc": 0.0} for n, d in enumerate(away)]
        found = gained(rows, "dsc")
        return {
            "difference": round(float(away.mean()), 4),
            "low": round(found["low"], 4),
            "high": round(found["high"], 4),
            "p": float(found["p"]),
            "patients": len(away),
            "seeds": len(seeds),
            "means": [round(float(one.mean()), 4) for one in each],
            "each_seed": [round(float(one), 3) for one in alone],
        }

    def curves(self, contestant: str) -> list[list[list[float]]]:
        """Return step, loss and validation DSC at each evaluation, for each seed."""
        return [row["curve"] for _, row in sorted(self.rows.get(contestant, {}).items())]


def correct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add `p_holm` to the rows that hold a `p`, corrected over all of them."""
    tested = [row for row in rows if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p"], row["p_holm"] = (None if np.isnan(v) else float(f"{v:.2g}") for v in (row["p"], p))
    return rows


def verdict(row: dict[str, Any]) -> str:
    """Return what a corrected comparison says of an expected sign (+1, -1), or of no difference (0).

    The test and the interval know patients alone, so every training (`each_seed`) has to say the same.
    "agrees" and "disagrees" where the test and every training are sure of a sign, "alike" where two or more trainings and the
    interval lie within `MARGIN`. With nothing expected, "agrees" instead of "alike", and "disagrees" where a sign is sure and
    the interval leaves the margin.

    >>> verdict({"expected": 1, "difference": -0.1, "low": -0.2, "high": -0.05, "p_holm": 0.01, "each_seed": [-0.1]})
    'disagrees'
    """
    if "difference" not in row:
        return "not measured"
    sign, each = np.sign(row["difference"]), row["each_seed"]
    sure = row["p_holm"] is not None and row["p_holm"] < SURE and all(np.sign(one) == sign for one in each)
    within = len(each) > 1 and all(-MARGIN < one < MARGIN for one in (row["low"], row["high"], *each))
    if row["expected"] and sure:
        return "agrees" if sign == row["expected"] else "disagrees"
    if within:
        return "alike" if row["expected"] else "agrees"
    return "disagrees" if sure else "cannot tell"
