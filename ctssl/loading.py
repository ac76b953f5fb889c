"""Load encoders and segmenters from verified folders: strict loading, safetensors only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ctssl.devices import choose_device
from ctssl.encoders import ENCODERS, plain_args
from ctssl.encoders.layers import widen
from ctssl.encoders.pixels import Pixels
from ctssl.files.weights import read_shapes, read_weights
from ctssl.hub.client import CONFIG
from ctssl.hub.config import check_encoder_args
from ctssl.hub.folder import ModelFolder
from ctssl.hub.lookup import open_model

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # allowed dtypes of stored weights

if TYPE_CHECKING:
    from ctssl.encoders.swin import Swin
    from ctssl.encoders.vit import ViT
    from ctssl.heads.segmenter import Segmenter


def load(
    source: str | os.PathLike | ModelFolder,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    device: str | torch.device = "cpu",
    in_channels: int | None = None,
) -> Swin | ViT:
    """Load a pretrained encoder in evaluation mode; of a segmenter, its encoder.

    Args:
        source: a model name (`ctssl.list_models()`), a folder, or a Hub repository `owner/name`. A name takes
            precedence over a folder of the same name; write `./name` for the folder.
        revision: commit, tag or branch of a Hub repository; named models are pinned.
        offline: True never uses the network.
        device: where to put the model; "auto" uses a GPU if there is one.
        in_channels: channels of the image (PET and CT, two energies). The weights of the patch embedding are repeated
            and divided by their number. Default: as stored, one. `embed` and `segment` take one; give several to `forward`.

    Raises:
        FileNotFoundError: the model is not here and cannot be downloaded; the message says what to do.
        ValueError: the model is damaged or was changed.

    >>> load("swin-wild-mim").strides
    (4, 8, 16)
    """
    folder = open_model(source, revision=revision, offline=offline)
    encoder = build_encoder(folder)
    load_weights(encoder, folder.weights, within=_within(folder))
    encoder.spec = folder.spec
    if in_channels is not None:
        encoder = widen(encoder, in_channels)
    return encoder.to(choose_device(device)).eval()


def load_segmenter(
    source: str | os.PathLike | ModelFolder,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    device: str | torch.device = "cpu",
) -> Segmenter:
    """Load a fine-tuned segmenter in evaluation mode; arguments and errors as for `ctssl.load`."""
    folder = open_model(source, revision=revision, offline=offline)
    if folder.kind != "segmenter":
        raise ValueError(
            f"{folder.name} is an encoder, not a segmenter; ctssl.segmenter({folder.name!r}) adds an "
            "untrained head, `ctssl finetune` trains it"
        )
    from ctssl.heads.segmenter import Segmenter, segmenter_settings

    encoder = build_encoder(folder)
    encoder.spec = folder.spec
    model = Segmenter(encoder, **segmenter_settings(folder.config, folder.path))
    load_weights(model, folder.weights)
    return model.to(choose_device(device)).eval()


def load_model(source: str | os.PathLike | ModelFolder, *, device: str | torch.device = "cpu") -> Any:
    """Load an encoder or a segmenter, whichever the source is; arguments and errors as for `ctssl.load`."""
    folder = open_model(source)
    return (load if folder.kind == "encoder" else load_segmenter)(folder, device=device)


def segmenter(
    encoder: nn.Module | str | os.PathLike,
    *,
    head: str = "light",
    classes: int = 2,
    labels: dict[int, str] | None = None,
    window: int = 64,
    in_channels: int | None = None,
) -> Segmenter:
    """Return an encoder with an untrained segmentation head.

    Args:
        encoder: an encoder, or anything that `ctssl.load` accepts.
        head: key of `ctssl.heads.HEADS`.
        classes: number of classes, including the background.
        labels: name of each class but the background, `{1: "tumour"}`.
        window: side in voxels of the training crops and of the sliding window.
        in_channels: channels of the image; see `load`.
    """
    from ctssl.heads.segmenter import Segmenter

    if isinstance(encoder, (str, os.PathLike)):
        encoder = load(encoder)
    if in_channels is not None:
        encoder = widen(encoder, in_channels)
    return Segmenter(encoder, head=head, classes=classes, labels=labels, window=window)


def build_encoder(folder: ModelFolder) -> Any:
    """Build the encoder that a `config.json` describes, with initial weights.

    Raises `ValueError` unless the weights file has the same names and shapes.
    """
    kind, args, path = folder.config["encoder"], folder.config["encoder_args"], folder.path
    known = {**ENCODERS, "pixels": Pixels}
    if kind not in known:
        raise ValueError(
            f"{path} needs the encoder {kind!r}; this ctssl has {', '.join(sorted(known))}: update ctssl"
        )
    settings = plain_args(args)
    check_encoder_args(settings, path / CONFIG, weights=len(read_shapes(folder.weights)))
    try:
        with torch.device("meta"):  # shapes without memory: the config may describe any size
            sketch = known[kind](**settings)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"{path}/{CONFIG} does not describe a {kind} that this ctssl can build: {error}"
        ) from error
    within = _within(folder)
    shapes = {within + key: tuple(v.shape) for key, v in sketch.state_dict().items()}
    _check_shapes(shapes, folder.weights, within=within)
    return known[kind](**settings)


def _within(folder: ModelFolder) -> str:
    """Return what the names of the encoder's weights begin with."""
    return "encoder." if folder.kind == "segmenter" else ""


def _check_shapes(own: dict[str, tuple[int, ...]], path: Path, *, within: str = "") -> None:
    """Raise `ValueError` unless the weights named `within...` have the names and shapes of `own`."""
    stored = {key: shape for key, shape in read_shapes(path).items() if key.startswith(within)}
    wrong = sorted(set(own) ^ set(stored)) + [k for k in own if k in stored and own[k] != stored[k]]
    if wrong:
        raise ValueError(
            f"{path} does not match its config.json: {len(wrong)} weights differ, "
            f"first {wrong[0]!r}; the two files belong to different models"
        )


def load_weights(model: Any, path: Path, *, within: str = "") -> None:
    """Load the weights of a file into a model, strictly; of those in the file, the ones named `within...`.

    Raises `ValueError` for missing, unexpected, non-finite or non-floating-point weights.
    """
    own = model.state_dict()
    _check_shapes({within + key: tuple(value.shape) for key, value in own.items()}, path, within=within)
    stored = read_weights(path)
    state = {key.removeprefix(within): v for key, v in stored.items() if key.startswith(within)}
    other = [
        k
        for k, v in state.items()
        if v.dtype != own[k].dtype and not (own[k].is_floating_point() and v.dtype in FLOATS)
    ]
    if other:
        raise ValueError(
            f"{path} holds weights of type {state[other[0]].dtype}, first {other[0]!r}; download it again"
        )
    broken = [k for k, v in state.items() if not torch.isfinite(v).all()]
    if broken:
        raise ValueError(f"{path} holds infinite or NaN weights, first {broken[0]!r}; download it again")
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()}, strict=True)
    model.origin = path
