"""Small encoders and settings that the tests share."""

import torch

import ctssl

SMALL = {
    "swin": dict(width=12, depths=(2, 2), heads=(2, 4), window=4, patch=2, merge_last=False),
    "vit": dict(width=24, depth=3, heads=2, patch=8, grid=(4, 4, 4), maps=3),
}
"""A tiny configuration of each encoder: listed here, an encoder is tested by every contract test."""

QUICK = ctssl.Settings(steps=4, batch=1, crop=16, save_minutes=0, ema=0.5)
QUICK_FLAGS = ("--steps", "3", "--batch", "1", "--crop", "16", "--hold-out", "case2", "--head", "linear")


def tiny_swin() -> ctssl.Swin:
    """The smallest Swin: two stages of one block, the same weights at every call."""
    torch.manual_seed(0)
    return ctssl.Swin(12, depths=(1, 1), heads=(2, 4), window=4, patch=2, merge_last=False)
