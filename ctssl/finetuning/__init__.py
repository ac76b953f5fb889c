"""Labelled scans to a segmenter.

Import `finetune`, `finetune_folds`, `Request`, `Report`, `Settings`, `BASELINES` from here. The modules in the
order of a run: `run` (the steps), `request` (what was asked), `job` (what the training is made of) from `prepare`
(the cases), `start` (the encoder) and `plan` (spacing, window, crop); `loop` with `settings`, `crops` and `state`;
`threshold` (validation), `finish` (judging, writing) with `report` (scores, pictures) and `card`; `folds` (a
cross-validation). `curve` and `probe` (with `probe_voxels` and `probe_fits`) are
commands of their own.

The records of a run, each made of the one before: `Request` (what was asked) -> `Survey` (what the cases hold) ->
`Plan` (spacing, window, crop) -> `Job` (everything to train with) -> the trained `Segmenter` -> `Report` (its scores).
"""

from ctssl.finetuning.report import Report as Report
from ctssl.finetuning.request import Request as Request
from ctssl.finetuning.run import finetune as finetune
from ctssl.finetuning.run import finetune_folds as finetune_folds
from ctssl.finetuning.settings import Settings as Settings
from ctssl.finetuning.start import BASELINES as BASELINES
