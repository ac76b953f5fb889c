"""Encoders and segmenters from verified folders. Strict, safetensors only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ctssl.encoders import ENCODERS
from ctssl.encoders.pixels import Pixels
from ctssl.hub.client import CONFIG
from ctssl.hub.config import plausible
from ctssl.hub.folder import ModelFolder
from ctssl.hub.lookup import open_model

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # that weights may be stored as

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
) -> Swin | ViT:
    """A pretrained encoder, in `.eval()`.

    Args:
        source: a name (`ctssl.list_models()`), a folder, or a Hub repository `owner/name`. A name wins over a
            folder of the same name; write `./name` for the folder.
        revision: commit, tag or branch of a Hub repository; models of the table have theirs pinned.
        offline: True never asks the network.

    Raises `FileNotFoundError` (not there, with what to do) or `ValueError` (damaged, changed, or not an
    encoder).
    """
    folder = open_model(source, revision=revision, offline=offline)
    if folder.kind != "encoder":
        raise ValueError(
            f"{folder.name} is a {folder.kind}; give the name of an encoder, or load it with "
            f"ctssl.load_segmenter({folder.name!r})"
        )
    encoder = build_encoder(folder)
    fill(encoder, folder.weights)
    encoder.spec = folder.spec
    return encoder.to(device_named(device)).eval()


def load_segmenter(
    source: str | os.PathLike | ModelFolder,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    device: str | torch.device = "cpu",
) -> Segmenter:
    """A fine-tuned segmenter, in `.eval()`; arguments and errors as for `ctssl.load`."""
    folder = open_model(source, revision=revision, offline=offline)
    if folder.kind != "segmenter":
        raise ValueError(
            f"{folder.name} is an encoder without a head; ctssl.segmenter({folder.name!r}) puts an untrained "
            "one on it, `ctssl finetune` trains it"
        )
    from ctssl.heads.segmenter import Segmenter, segmenter_settings

    encoder = build_encoder(folder)
    encoder.spec = folder.spec
    model = Segmenter(encoder, **segmenter_settings(folder.config, folder.path))
    fill(model, folder.weights)
    return model.to(device_named(device)).eval()


def load_model(source: str | os.PathLike | ModelFolder, *, device: str | torch.device = "cpu") -> Any:
    """Load an encoder or a segmenter, whichever the source is; arguments and errors as for `ctssl.load`."""
    folder = open_model(source)
    return (load if folder.kind == "encoder" else load_segmenter)(folder, device=device)


def device_named(name: str | torch.device) -> torch.device:
    """A device; "auto" is a GPU where there is one. Raises `ValueError` for one that is not there."""
    there = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if there else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"no device is called {name!r}; there are cpu, cuda, cuda:1, mps, ...") from error
    if (device.type == "cuda" and not there) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    ):
        raise ValueError(
            f"device {name}: this machine, or this PyTorch, has no {device.type.upper()}; leave --device out, or "
            "give cpu"
        )
    return device


def segmenter(
    encoder: nn.Module | str | os.PathLike,
    *,
    head: str = "light",
    classes: int = 2,
    labels: dict[int, str] | None = None,
    window: int = 64,
) -> Segmenter:
    """An encoder with an untrained head of `ctssl.heads.HEADS`. `classes` counts the background.

    `encoder` is an encoder or what `ctssl.load` takes; `labels` names the classes, `{1: "tumour"}`; `window`:
    voxels along each side of the crops it is trained on, and of the pieces in which it segments.
    """
    from ctssl.heads.segmenter import Segmenter

    if isinstance(encoder, (str, os.PathLike)):
        encoder = load(encoder)
    return Segmenter(encoder, head=head, classes=classes, labels=labels, window=window)


def build_encoder(folder: ModelFolder) -> Any:
    """Build the encoder that a `config.json` describes, with initial weights."""
    kind, args, path = folder.config["encoder"], folder.config["encoder_args"], folder.path
    known = {**ENCODERS, "pixels": Pixels}
    if kind not in known:
        raise ValueError(f"{path} needs the encoder {kind!r}; this ctssl has {sorted(known)}: update it")
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in args.items()}
    plausible(settings, path / CONFIG, weights=len(shapes_of(folder.weights)))
    try:
        with torch.device("meta"):  # shapes without memory: what config.json describes may be of any size
            sketch = known[kind](**settings)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"{path}/{CONFIG} does not describe a {kind} that this ctssl can build: {error}"
        ) from error
    within = "encoder." if folder.kind == "segmenter" else ""
    shapes = {within + key: tuple(v.shape) for key, v in sketch.state_dict().items()}
    _check_shapes(shapes, folder.weights, within=within)
    return known[kind](**settings)


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a safetensors file, from its header alone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again"
        ) from error


def _check_shapes(own: dict[str, tuple[int, ...]], path: Path, *, within: str = "") -> None:
    """Raise `ValueError` unless the weights whose names begin with `within` have the names and shapes of
    `own`."""
    found = {key: shape for key, shape in shapes_of(path).items() if key.startswith(within)}
    wrong = sorted(set(own) ^ set(found)) + [k for k in own if k in found and own[k] != found[k]]
    if wrong:
        raise ValueError(
            f"{path} holds another model than its config.json describes: {len(wrong)} weights differ, "
            f"first {wrong[0]!r}; the two files belong to different models"
        )


def fill(model: Any, path: Path) -> None:
    """Put the weights of a file into a model: every one of them, and no other."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    own = model.state_dict()
    _check_shapes({key: tuple(value.shape) for key, value in own.items()}, path)
    try:
        state = load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:  # KeyError: a type unknown to torch
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again"
        ) from error
    other = [
        k
        for k, v in state.items()
        if v.dtype != own[k].dtype and not (own[k].is_floating_point() and v.dtype in FLOATS)
    ]
    if other:
        raise ValueError(
            f"{path} holds weights of the type {state[other[0]].dtype}, first {other[0]!r}; get the file again"
        )
    broken = [k for k, v in state.items() if not torch.isfinite(v).all()]
    if broken:
        raise ValueError(f"{path} holds infinite or NaN weights, first {broken[0]!r}; get the file again")
    model.load_state_dict({key: value.to(own[key].dtype) for key, value in state.items()}, strict=True)
    model.origin = path
