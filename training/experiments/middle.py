"""How much of a task is position: an ellipsoid in the middle of every scan, drawn without looking at it.

`python -m training.experiments.middle`, for sarcoma and for lung nodules. The scans are cut around their
tumours, so the middle is a good guess: the size of the ellipsoid, as a share of the scan's extent, is the one
that suits the training cases best. A segmenter has learned something of tumours for sure only as far as it is
better than this. The rows go into the experiments' results.
"""

import numpy as np

from ctssl.datasets.case import read_case
from ctssl.datasets.layouts import find_cases
from ctssl.datasets.records import SHARES
from ctssl.metrics import dsc
from training.experiments import lung_nodules, sarcoma, trials


def ellipsoid(shape: tuple[int, ...], share: float) -> np.ndarray:
    """Return the mask `shape` of the ellipsoid whose axes are `share` of the extent of the scan."""
    places = [(np.arange(n) - (n - 1) / 2) / (n / 2) for n in shape]
    grid = np.meshgrid(*places, indexing="ij")
    return sum((x**2 for x in grid), np.zeros(shape)) <= share**2


def scores(truths: dict[str, np.ndarray], share: float) -> dict[str, float]:
    """Return the DSC of each case."""
    return {name: round(dsc(ellipsoid(truth.shape, share), truth), 4) for name, truth in truths.items()}


def measure(experiment: trials.Experiment) -> dict:
    """Return the row of an experiment's results."""
    truths = {case.name: read_case(case)[1].array > 0 for case in find_cases(experiment.data()).cases}
    test = {name: truths.pop(name) for name in experiment.test}
    share = max(SHARES, key=lambda s: float(np.mean(list(scores(truths, s).values()))))
    cases = scores(test, share)
    mean = round(float(np.mean(list(cases.values()))), 4)
    return {"seed": 0, "mean_dsc": mean, "cases": cases, "settings": {"share": share}}


def main() -> None:
    for experiment in (sarcoma.EXPERIMENT, lung_nodules.EXPERIMENT):
        trials.keep(experiment.results, experiment.command, trials.BLIND, measure(experiment))
        print(trials.table(experiment.results))


if __name__ == "__main__":
    main()
