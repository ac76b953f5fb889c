"""The encoder that a fine-tuning starts from: published, of the user, or untrained."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ctssl.encoders import ENCODERS
from ctssl.encoders.layers import repeat_channels
from ctssl.encoders.pixels import Pixels
from ctssl.heads import HEADS, WHOLE
from ctssl.heads.segmenter import Segmenter
from ctssl.hub.folder import ModelFolder
from ctssl.hub.lookup import open_model
from ctssl.hub.provenance import weights_of
from ctssl.loading import load_model
from ctssl.zoo import ModelSpec, info, list_models

BASELINES: dict[str, Callable[[], Any]] = {
    "swin-scratch": lambda: published("swin"),
    "vit-scratch": lambda: published("vit"),
    **dict.fromkeys(WHOLE, Pixels),
}
"""What can be trained without any pretraining, by name."""


@dataclass(frozen=True)
class Start:
    """What a fine-tuning starts from.

    `name`: what the weights are called. `weights`: their sha256, or the name of a baseline. `folder`: where
    they come from, None for a module or without pretraining. `from_scratch`: whether initial weights are
    used, in which case `spec` says nothing about any pretraining. `segmenter`: what brings a trained head of the
    kind `head`, if anything does.
    """

    encoder: Any
    name: str
    weights: str
    head: str
    spec: ModelSpec
    folder: ModelFolder | None
    from_scratch: bool
    segmenter: Any = None


def open_start(model: Any, head: str, *, from_scratch: bool, seed: int) -> Start:
    """Load the encoder to train, and the head of a segmenter.

    Args:
        model: a baseline of `BASELINES`, what `ctssl.load` takes, or an encoder or segmenter (which stays as it is).
        head: the head that was asked for; "" is that of the segmenter, otherwise `light`. `dynunet` brings its own.
        from_scratch: use initial weights, drawn with `seed`.
    """
    net: Any
    baseline, folder = isinstance(model, str) and model in BASELINES, None
    if baseline and model in HEADS and head not in ("", model):
        raise ValueError(f"{model} is a whole network with a head of its own; leave --head {head} out")
    if baseline:
        net = BASELINES[str(model)]()
        head = str(model) if model in HEADS else head
    elif isinstance(model, nn.Module):
        net, folder = copy.deepcopy(model), _folder_of(model)
    else:
        folder = open_model(model)
        net = load_model(folder)
    segmenter = (
        net if isinstance(net, Segmenter) and head in ("", net.head_name) and not from_scratch else None
    )
    head = head or (net.head_name if isinstance(net, Segmenter) else "light")
    encoder: Any = net.encoder if isinstance(net, Segmenter) else net
    spec = encoder.spec or ModelSpec("", "encoder", encoder.architecture)
    name = str(model) if baseline else spec.name
    weights = name if baseline else weights_of(net)
    if from_scratch or baseline:
        encoder = fresh(encoder, seed)
        spec = ModelSpec("", "encoder", encoder.architecture, encoder.config, spec.preprocess)
        return Start(encoder, name, weights, head, spec, None, True)
    return Start(encoder, name, weights, head, spec, folder, False, segmenter)


def _folder_of(model: Any) -> ModelFolder | None:
    """Return the folder that a model, or its encoder, was loaded from; None if there is none, or it is gone."""
    source = getattr(model, "origin", None) or getattr(getattr(model, "encoder", None), "origin", None)
    return open_model(source.parent) if source and source.is_file() else None


def take_head(net: Segmenter, start: Start) -> None:
    """Give a network the head that it starts from, but for a last layer of another number of classes."""
    if start.segmenter is None:
        return
    own = net.head.state_dict()
    known = start.segmenter.head.state_dict()
    if net.in_channels != start.segmenter.in_channels:
        known = {key: _repeated(value, own.get(key), net.in_channels) for key, value in known.items()}
    fitting = {key: value for key, value in known.items() if key in own and own[key].shape == value.shape}
    net.head.load_state_dict({**own, **fitting})


def _repeated(kernel: torch.Tensor, own: torch.Tensor | None, channels: int) -> torch.Tensor:
    """Repeat a kernel on one channel for several (`repeat_channels`); return any other weight unchanged."""
    if own is None or kernel.ndim != 5 or own.shape != (kernel.shape[0], channels, *kernel.shape[2:]):
        return kernel
    return repeat_channels(kernel, channels) if kernel.shape[1] == 1 else kernel


def check_interpolation(net: Segmenter, start: Start) -> None:
    """Raise `ValueError` unless the starting model has every weight of a network, including those of the head."""
    whole = start.segmenter and start.segmenter.head.state_dict()
    if not whole or any(whole[key].shape != value.shape for key, value in net.head.state_dict().items()):
        raise ValueError(
            f"interpolate needs starting weights with a head for {net.classes - 1} labels; {start.name or 'this model'} brings "
            "none. Leave interpolate out, or start from a segmenter of as many labels"
        )


def mix(net: Segmenter, before: dict[str, Any], share: float) -> None:
    """Move a network's weights by `share` of the way back to those before its training."""
    own = net.state_dict()
    mixed = {k: v.lerp(before[k].to(v), share) if v.is_floating_point() else v for k, v in own.items()}
    net.load_state_dict(mixed)


def published(kind: str) -> Any:
    """Return an untrained encoder of the shape that is published."""
    name = next(name for name in list_models() if info(name).kind == "encoder" and info(name).encoder == kind)
    return ENCODERS[kind](**info(name).encoder_args)


def fresh(encoder: Any, seed: int) -> Any:
    """Return an encoder of the same shape with initial weights, for the same kind of input."""
    torch.manual_seed(seed)
    untrained = type(encoder)(**encoder.config)
    untrained.spec = encoder.spec
    return untrained


def check_model(model: Any) -> None:
    """Raise `TypeError` for a model that is neither a name, a folder nor an encoder."""
    if not isinstance(model, (str, os.PathLike, nn.Module)):
        raise TypeError(f"model={model!r}: give a name, a folder, a repository or an encoder")
