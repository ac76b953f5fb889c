"""Compare masks with the truth.

Import `evaluate`, `Evaluation`, `score_masks`, `find_candidates`, `measure_froc` from here. The modules: `report` (two
folders -> tables), `scores` (one mask), `froc` (free-response curves), `maps` (folders of probability maps),
`statistics` (intervals, paired tests), `tables`.
"""

from ctssl.evaluation.froc import Candidates as Candidates
from ctssl.evaluation.froc import Froc as Froc
from ctssl.evaluation.froc import find_candidates as find_candidates
from ctssl.evaluation.froc import measure_froc as measure_froc
from ctssl.evaluation.report import Evaluation as Evaluation
from ctssl.evaluation.report import evaluate as evaluate
from ctssl.evaluation.scores import score_masks as score_masks
from ctssl.evaluation.statistics import holm as holm
from ctssl.evaluation.statistics import paired as paired
