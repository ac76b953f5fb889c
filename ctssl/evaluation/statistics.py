"""Aggregate rows of scores to strata, intervals and paired tests; the unit is a patient."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

ROUNDING = 1e-12  # below which a difference is none
FEWEST = 6  # smallest number of patients for a paired test


def summary(
    rows: list[dict[str, Any]], column: str, value: str, *, scans: int | None = None
) -> dict[str, Any]:
    """Return one row of the strata table: means and medians of DSC and NSD over patients, of each the mean over its cases and
    labels.

    `scans`: number of scans that were evaluated, for the false positives per scan; None: the cases of the rows. A scan has no
    row of a label that neither its truth nor its mask has.
    """
    result: dict[str, Any] = {
        "stratum": f"{column} {value}".strip(),
        "cases": len({row["case"] for row in rows}),
    }
    for key in ("dsc", "nsd"):
        values = patient_means(rows, key)
        low, high = mean_interval(values)
        result |= {
            key: float(np.mean(values)),
            f"{key}_median": float(np.median(values)),
            f"{key}_low": low,
            f"{key}_high": high,
        }
    distances = [row["hd95_mm"] for row in rows if not math.isnan(row["hd95_mm"])]
    result["hd95_mm_median"] = float(np.median(distances)) if distances else math.nan
    result["without_hd95"] = len(rows) - len(distances)
    count = sum(row["lesions"] for row in rows)
    result["lesion_sensitivity"] = sum(row["lesions_found"] for row in rows) / count if count else math.nan
    result["false_positives_per_scan"] = sum(row["false_positives"] for row in rows) / (
        scans or result["cases"]
    )
    if result["cases"] >= FEWEST:
        from scipy.stats import spearmanr

        sizes, scores = [row["volume_ml"] for row in rows], [row["dsc"] for row in rows]
        varied = len(set(sizes)) > 1 and len(set(scores)) > 1
        result["dsc_volume_rank_correlation"] = float(spearmanr(sizes, scores)[0]) if varied else math.nan  # type: ignore[arg-type]
    return result


def gained(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Return the gain of a score over another one, paired by row: mean `difference`, its 95% interval over patients
    (`low`, `high`), and `p` of `paired`.

    Args:
        rows: each with its `patient`, the score `key`, and the other one, `other_` and `key`.
        key: the score.
    """
    away = [{"patient": row["patient"], "away": row[key] - row[f"other_{key}"]} for row in rows]
    low, high = mean_interval(patient_means(away, "away"))
    test = paired(rows, (key,))[0]
    return {"difference": test["difference"], "low": low, "high": high, "p": test["p"]}


def patient_means(rows: list[dict[str, Any]], key: str) -> np.ndarray:
    """Return the mean of a score over the rows of each patient, `(patients,)`.

    >>> patient_means([{"patient": 1, "dsc": 0.25}, {"patient": 1, "dsc": 0.75}, {"patient": 2, "dsc": 1.0}], "dsc").tolist()
    [0.5, 1.0]
    """
    patients: dict[str, list[float]] = {}
    for row in rows:
        patients.setdefault(str(row["patient"]), []).append(row[key])
    return np.array([np.mean(values) for values in patients.values()])


def mean_interval(values: np.ndarray, *, draws: int = 2000) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the mean of one value per patient, `(patients,)`."""
    return _bootstrap(np.stack([values, np.ones(len(values))], 1), draws)


def _bootstrap(sums: np.ndarray, draws: int) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the ratio of two sums over patients, `(patients, 2)`."""
    chosen = sums[np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))].sum(1)
    means = chosen[:, 0] / chosen[:, 1]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def paired(
    rows: list[dict[str, Any]], metrics: tuple[str, ...] = ("dsc", "nsd", "hd95_mm")
) -> list[dict[str, Any]]:
    """Compare each metric of these masks with that of the others, paired by patient.

    Labels and scans of one patient are averaged first. Patients without a difference say nothing of its sign, so the p is of the
    others alone.

    Returns:
        For each metric the mean difference, the rank-biserial effect and the Holm-corrected p. `undefined`
        counts the rows that are left out because one of the two has no value (HD95 of an empty mask: a miss).
    """
    from scipy.stats import rankdata, wilcoxon

    results = []
    for key in metrics:
        away = [{"patient": row["patient"], "away": row[key] - row[f"other_{key}"]} for row in rows]
        finite = [row for row in away if math.isfinite(row["away"])]
        differences = patient_means(finite, "away")
        differences[np.abs(differences) < ROUNDING] = 0.0
        nonzero = differences[differences != 0]
        ranks = rankdata(np.abs(nonzero))
        effect = float((ranks * np.sign(nonzero)).sum() / ranks.sum()) if len(nonzero) else 0.0
        tested = len(differences) >= FEWEST and len(nonzero)
        p = float(wilcoxon(nonzero).pvalue) if tested else math.nan  # exact for few  # type: ignore[union-attr]
        results.append(
            {
                "metric": key,
                "patients": len(differences),
                "undefined": len(away) - len(finite),
                "difference": float(differences.mean()) if len(differences) else math.nan,
                "rank_biserial": effect,
                "p": p,
            }
        )
    add_holm(results)
    return results


def add_holm(rows: Iterable[dict[str, Any]], *, into: str = "p_holm") -> None:
    """Correct the `p` of those rows that have one, over all of them, and write it as `into`."""
    tested = [row for row in rows if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row[into] = p


def with_interval(difference: float, low: float, high: float) -> str:
    """Return a difference and its interval, for a table.

    >>> with_interval(0.031, 0.002, 0.06)
    '+0.031 (+0.002 to +0.060)'
    """
    return f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"


def holm(values: list[float]) -> list[float]:
    """Correct p-values by Holm's step-down method; NaN (no test) stays and does not count.

    >>> holm([0.01, 0.04, math.nan])
    [0.02, 0.04, nan]
    """
    order = [i for i in np.argsort(values) if not math.isnan(values[i])]
    corrected, highest = [math.nan] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, values[i] * (len(order) - rank)))
        corrected[i] = highest
    return corrected
