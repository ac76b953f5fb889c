"""What the study measured, and the comparisons that can be made of it; see `training.experiments.robustness`."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from ctssl.evaluation.statistics import add_holm, mean_interval
from training.experiments.study import rows
from training.experiments.study.patients import CLEAN, PLACES, SEVERITIES

SHIFTED, LOST = "all shifts", "lost"
SURE = 0.05
MARGIN = (
    0.03  # of DSC: two starts are alike if their difference, with what is not known of it, lies within it
)
MARGIN_LOST = 0.005  # the same of what the shifts cost, which is below 0.02 for every start


class Measured:
    """The rows of the study by contestant and seed."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        for row in rows:
            self.rows[row["contestant"]][row["seed"]] = row
        self.cases: list[str] = rows[0]["cases"] if rows else []

    @classmethod
    def read(cls, path: Path = rows.RESULTS) -> "Measured":
        """Read the results of `training.experiments.robustness`."""
        return cls(rows.read(path))

    def seeds(self, *contestants: str) -> list[int]:
        """Return the seeds that all of some contestants were trained with."""
        return sorted(set.intersection(*(set(self.rows.get(name, {})) for name in contestants)))

    def seed_effect(self, encoder: str, place: str = CLEAN) -> dict[str, Any]:
        """Return whether a seed moves all starts of an encoder alike: `difference` of the mean DSC of seeds 1 and 0 over the
        starts that have both, its `p` (t-test), and the number of `starts`."""
        away = [
            self._scores(rows[1]["dsc"], place).mean() - self._scores(rows[0]["dsc"], place).mean()
            for name, rows in self.rows.items()
            if name.startswith(encoder) and {0, 1} <= set(rows)
        ]
        test: Any = ttest_1samp(away, 0)
        return {
            "difference": round(float(np.mean(away)), 4),
            "p": round(float(test.pvalue), 3),
            "starts": len(away),
        }

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

    def noise(self, encoder: str, place: str, cases: Any = slice(None)) -> tuple[float, int]:
        """Return the standard deviation of the mean DSC of a training, pooled over the starts of an encoder with two or more
        seeds, and its degrees of freedom. Where it has none: the largest of the others; (NaN, 0) where these have none."""
        squares, free = 0.0, 0
        for name, trained in self.rows.items():
            if name.startswith(encoder) and len(trained) > 1:
                means = [self._scores(row["dsc"], place)[cases].mean() for row in trained.values()]
                squares += float(np.var(means, ddof=1)) * (len(means) - 1)
                free += len(means) - 1
        if free:
            return float(np.sqrt(squares / free)), free
        others = {name.split("-")[0] for name, trained in self.rows.items() if len(trained) > 1} - {encoder}
        return max((self.noise(one, place, cases) for one in others), default=(float("nan"), 0))

    def difference(
        self, terms: list[tuple[float, str]], place: str = CLEAN, cases: np.ndarray | None = None
    ) -> dict[str, Any] | None:
        """Compare contestants case by case, each averaged over all of its seeds; None where one was not trained.

        A seed does not move all starts alike (`seed_effect`), so nothing is gained by pairing seeds.

        Args:
            terms: factor and name of each contestant: +1 and -1 for a difference, and so on.
            cases: which cases; None: all.

        Returns:
            Mean `difference` with its bootstrap interval over patients (`low`, `high`); `reach`: how far the difference may be
            off with 95% probability for want of patients and of trainings, and `p` of a t-test that knows both (NaN where the
            `noise` of trainings is not known); the number of `patients` and `trainings`, and the `means` of what is added and of
            what is subtracted (none for a difference of differences).
        """
        names = [name for _, name in terms]
        if not all(self.rows.get(name) for name in names):
            return None
        every = slice(None) if cases is None else cases
        each = [self.scores(name, place, self.seeds(name))[every] for name in names]
        away = np.sum([factor * one for (factor, _), one in zip(terms, each, strict=True)], 0)
        encoders = [name.split("-")[0] for name in names]
        noise = {encoder: self.noise(encoder, place, every) for encoder in set(encoders)}
        trainings = sum(
            factor**2 * noise[e][0] ** 2 / len(self.rows[n])
            for (factor, n), e in zip(terms, encoders, strict=True)
        )
        error = float(np.sqrt(away.var(ddof=1) / len(away) + trainings))
        free = min(one for _, one in noise.values())
        sides = [
            sum(
                abs(factor) * one.mean()
                for (factor, _), one in zip(terms, each, strict=True)
                if factor * sign > 0
            )
            for sign in (1, -1)
        ]
        whole = np.isclose(sum(factor for factor, _ in terms if factor > 0), 1)
        low, high = mean_interval(away)
        return {
            "difference": round(float(away.mean()), 4),
            "low": round(low, 4),
            "high": round(high, 4),
            "reach": round(float(student.ppf(1 - SURE / 2, free)) * error, 4) if free else None,
            "p": float(2 * student.sf(abs(away.mean()) / error, free)) if free and error else float("nan"),
            "patients": len(away),
            "trainings": sum(len(self.rows[name]) for name in names),
            "means": [round(float(one), 4) for one in sides] if whole else [],
        }


def correct(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add `p_holm` to the rows that hold a `p`, corrected over all of them."""
    add_holm(rows)
    for row in rows:
        row |= {k: None if np.isnan(row[k]) else float(f"{row[k]:.2g}") for k in ("p", "p_holm") if k in row}
    return rows


def sure(row: dict[str, Any]) -> bool:
    """Return whether the sign of a corrected comparison can be told from chance: of patients and of trainings."""
    return row.get("p_holm") is not None and row["p_holm"] < SURE


def verdict(row: dict[str, Any]) -> str:
    """Return what a corrected comparison says of an expected sign (+1, -1), or of no difference (0).

    "agrees" and "disagrees" where the sign is sure (`sure`), "alike" where no sign is and the difference, as far as it may be
    off (`reach`), lies within `MARGIN` (of what is `LOST`: `MARGIN_LOST`), "less than the paper's" where no sign is and the
    paper's difference (`size`) lies beyond that reach. With nothing expected, the margin comes first: within it "agrees", else
    "disagrees" where a sign is sure.

    >>> verdict({"expected": 1, "difference": -0.1, "reach": 0.05, "p_holm": 0.01})
    'disagrees'
    """
    if "difference" not in row:
        return "not measured"
    margin = MARGIN_LOST if row.get("place") == LOST else MARGIN
    within = row["reach"] is not None and abs(row["difference"]) + row["reach"] < margin
    less = (
        row["expected"]
        and row.get("size")
        and row["reach"]
        and row["difference"] + row["reach"] < row["size"]
    )
    if row["expected"] and sure(row):
        return "agrees" if np.sign(row["difference"]) == row["expected"] else "disagrees"
    if within:
        return "alike" if row["expected"] else "agrees"
    if less:
        return "less than the paper's"
    return "disagrees" if sure(row) else "cannot tell"
