"""The encoder that a fine-tuning starts from: published, of the user, or untrained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ctssl.encoders import ENCODERS
from ctssl.encoders.pixels import Pixels
from ctssl.heads import HEADS
from ctssl.loading import load
from ctssl.zoo import info, list_models

BASELINES: dict[str, Callable[[], Any]] = {
    "swin-scratch": lambda: published("swin"),
    "vit-scratch": lambda: published("vit"),
    "dynunet": Pixels,
}
"""What can be trained without any pretraining, by name."""


def start(model: Any, head: str) -> tuple[Any, str, str]:
    """The encoder to train, what it is called, and the head that belongs on it."""
    if isinstance(model, str) and model in BASELINES:
        return BASELINES[model](), model, model if model in HEADS else head
    encoder: Any = (
        copy.deepcopy(model) if isinstance(model, nn.Module) else load(model)
    )  # the caller's stays as it is
    return encoder, encoder.spec.name if encoder.spec else "", head


def published(kind: str) -> Any:
    """An encoder of the shape that is published, untrained."""
    name = next(name for name in list_models() if info(name).kind == "encoder" and info(name).encoder == kind)
    return ENCODERS[kind](**info(name).encoder_args)


def fresh(encoder: Any, seed: int) -> Any:
    """An encoder of the same shape with initial weights, for the same kind of input."""
    torch.manual_seed(seed)
    untrained = type(encoder)(**encoder.config)
    untrained.spec = encoder.spec
    return untrained
