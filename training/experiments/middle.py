"""How much of the sarcoma task is position: an ellipsoid in the middle of every scan, drawn without looking at it.

`python -m training.experiments.middle`. The scans are cut around their tumours, so the middle is a good guess: the size of the
ellipsoid, as a share of the scan's extent, is the one that suits the training cases best. A segmenter has learned something of
tumours only as far as it is better than this. The row goes into `results/sarcoma.json`.
"""

import numpy as np

from ctssl.datasets import find_cases, read_case
from ctssl.metrics import dsc
from training.data.corpora import data_folder, split
from training.experiments import sarcoma, trials

SHARES = tuple(round(0.3 + 0.05 * i, 2) for i in range(14))


def ellipsoid(shape: tuple[int, ...], share: float) -> np.ndarray:
    """Mask `shape` of the ellipsoid whose axes are `share` of the extent of the scan."""
    places = [(np.arange(n) - (n - 1) / 2) / (n / 2) for n in shape]
    grid = np.meshgrid(*places, indexing="ij")
    return sum((x**2 for x in grid), np.zeros(shape)) <= share**2


def scores(side: str, share: float) -> dict[str, float]:
    """DSC of each case of a side of the split."""
    cases = {case.name: case for case in find_cases(data_folder() / "sarcoma").cases}
    truths = {name: read_case(cases[name])[1].array > 0 for name in split(side)}
    return {name: dsc(ellipsoid(truth.shape, share), truth) for name, truth in truths.items()}


def main() -> None:
    share = max(SHARES, key=lambda s: float(np.mean(list(scores("train", s).values()))))
    cases = {name: round(value, 4) for name, value in scores("test", share).items()}
    row = {
        "seed": 0,
        "mean_dsc": round(float(np.mean(list(cases.values()))), 4),
        "cases": cases,
        "settings": {"share": share},
    }
    trials.keep(sarcoma.RESULTS, sarcoma.EXPERIMENT.command, trials.BLIND, row)
    print(trials.table(sarcoma.RESULTS))


if __name__ == "__main__":
    main()
