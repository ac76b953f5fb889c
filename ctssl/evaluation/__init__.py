"""Compare masks with the truth.

Import `evaluate`, `Evaluation`, `score_masks` from here. The modules: `report` (two folders -> tables),
`scores` (one mask), `statistics` (intervals, paired tests), `tables`.
"""

from ctssl.evaluation.report import Evaluation as Evaluation
from ctssl.evaluation.report import evaluate as evaluate
from ctssl.evaluation.scores import score_masks as score_masks
from ctssl.evaluation.statistics import holm as holm
from ctssl.evaluation.statistics import interval as interval
from ctssl.evaluation.statistics import paired as paired
