"""A segmenter against CT acquisition shifts.

Import `measure_robustness` and `Robustness` from here. The modules: `run`, `measure` (case by case), `masks`
(a model, or another tool's masks), `pairs` (two reconstructions), `curves` (scores against severity),
`conclusion` (what follows, in sentences), `report`.
"""

from ctssl.robustness.report import Robustness as Robustness
from ctssl.robustness.run import measure_robustness as measure_robustness
