"""Labelled scans to a segmenter.

Import `finetune`, `Report`, `Settings`, `BASELINES` from here. The modules in the order of a run: `run` (the
steps), `request` (what was asked), `start` (the encoder), `prepare` (the cases), `plan` (spacing, window,
crop), `loop` with `crops` and `state`, `threshold`, `outcome`, `report`.
"""

from ctssl.finetuning.report import Report as Report
from ctssl.finetuning.run import finetune as finetune
from ctssl.finetuning.settings import Settings as Settings
from ctssl.finetuning.start import BASELINES as BASELINES
