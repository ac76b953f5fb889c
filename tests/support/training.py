"""A small pretraining that the tests share."""

from pathlib import Path

from tests.support.tiny import SMALL
from training.recipe import Run

ROOT = Path(__file__).parents[2]
TINY = Run(
    "tiny",
    "swin",
    "mim",
    "wild",
    encoder_args=SMALL["swin"],
    crop=32,
    batch=2,
    steps=6,
    save_minutes=0,
    workers=0,
)
SMALL_HEADS = dict(hidden=32, bottleneck=16, out=64, standardise=True)
