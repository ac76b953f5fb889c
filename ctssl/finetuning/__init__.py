"""Labelled scans to a segmenter.

Import `finetune`, `finetune_folds`, `Request`, `Report`, `Settings`, `BASELINES` from here. The modules in the
order of a run: `run` (the steps), `request` (what was asked), `prepare` (the cases), `start` (the encoder),
`plan` (spacing, window, crop), `loop` with `settings`, `crops` and `state`, `threshold` (validation), `report`
(scores, card, pictures), `folds` (a cross-validation).
"""

from ctssl.finetuning.report import Report as Report
from ctssl.finetuning.request import Request as Request
from ctssl.finetuning.run import finetune as finetune
from ctssl.finetuning.run import finetune_folds as finetune_folds
from ctssl.finetuning.settings import Settings as Settings
from ctssl.finetuning.start import BASELINES as BASELINES
