"""Encoders and segmenters from verified folders, and back. Strict, safetensors only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ctssl import hub
from ctssl.encoders import ENCODERS
from ctssl.encoders.pixels import Pixels
from ctssl.files.atomic import file_sha256, write_weights, write_whole
from ctssl.hub.config import plausible, preparation
from ctssl.hub.provenance import fingerprint_of, lineage, read_metadata
from ctssl.zoo import MODELS, ModelSpec, Preprocess

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # that weights may be stored as

if TYPE_CHECKING:
    from ctssl.encoders.swin import Swin
    from ctssl.encoders.vit import ViT
    from ctssl.heads.segmenter import Segmenter


def load(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    device: str | torch.device = "cpu",
) -> Swin | ViT:
    """A pretrained encoder, in `.eval()`.

    Args: source: a name (`ctssl.list_models()`), a folder, or a Hub repository `owner/name`. A name wins over
        a folder
            of the same name; write `./name` for the folder.
        revision: commit, tag or branch of a Hub repository; models of the table have theirs pinned. offline:
        True never asks the network.

    Raises `FileNotFoundError` (not there, with what to do) or `ValueError` (damaged, changed, or not an
    encoder).
    """
    folder = hub.find(source, revision=revision, offline=offline)
    config = hub.read_config(folder)
    if config["kind"] != "encoder":
        raise ValueError(
            f"{source} is a {config['kind']}; give the name of an encoder, or load it with "
            f"ctssl.load_segmenter({str(source)!r})"
        )
    encoder = build_encoder(config, folder)
    fill(encoder, folder)
    encoder.spec = spec_of(config)
    return encoder.to(device_named(device)).eval()


def load_segmenter(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    device: str | torch.device = "cpu",
) -> Segmenter:
    """A fine-tuned segmenter, in `.eval()`; arguments and errors as for `ctssl.load`."""
    folder = hub.find(source, revision=revision, offline=offline)
    config = hub.read_config(folder)
    if config["kind"] != "segmenter":
        raise ValueError(
            f"{source} is an encoder without a head; ctssl.segmenter({str(source)!r}) puts an untrained "
            "one on it, `ctssl finetune` trains it"
        )
    from ctssl.heads.segmenter import Segmenter, segmenter_settings

    encoder = build_encoder(config, folder)
    encoder.spec = spec_of(config)
    model = Segmenter(encoder, **segmenter_settings(config, folder))
    fill(model, folder)
    return model.to(device_named(device)).eval()


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


def build_encoder(config: dict[str, Any], folder: Path) -> Any:
    """The encoder that a `config.json` describes, with initial weights."""
    kind, args = config["encoder"], config["encoder_args"]
    known = {**ENCODERS, "pixels": Pixels}
    if kind not in known:
        raise ValueError(f"{folder} needs the encoder {kind!r}; this ctssl has {sorted(known)}: update it")
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in args.items()}
    plausible(settings, folder / hub.CONFIG, weights=len(shapes_of(folder / hub.WEIGHTS)))
    try:
        with torch.device("meta"):  # shapes without memory: what config.json describes may be of any size
            sketch = known[kind](**settings)
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"{folder}/config.json does not describe a {kind} that this ctssl can build: {error}"
        ) from error
    within = "encoder." if config["kind"] == "segmenter" else ""
    _same({within + key: tuple(v.shape) for key, v in sketch.state_dict().items()}, folder, within=within)
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


def _same(own: dict[str, tuple[int, ...]], folder: Path, *, within: str = "") -> None:
    """Raise `ValueError` unless the weights whose names begin with `within` have the names and shapes of
    `own`."""
    path = folder / hub.WEIGHTS
    found = {key: shape for key, shape in shapes_of(path).items() if key.startswith(within)}
    wrong = sorted(set(own) ^ set(found)) + [k for k in own if k in found and own[k] != found[k]]
    if wrong:
        raise ValueError(
            f"{path} holds another model than its config.json describes: {len(wrong)} weights differ, "
            f"first {wrong[0]!r}; the two files belong to different models"
        )


def fill(model: nn.Module, folder: Path) -> None:
    """Put the weights of a folder into a model: every one of them, and no other."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path, own = folder / hub.WEIGHTS, model.state_dict()
    _same({key: tuple(value.shape) for key, value in own.items()}, folder)
    try:
        state = load_file(path)
    except (
        SafetensorError,
        OSError,
        KeyError,
        ValueError,
    ) as error:  # KeyError: of a type that torch does not have
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
    told: Any = read_metadata(path)
    model.origin = (told, fingerprint_of(model)) if told else None  # type: ignore[assignment]


def spec_of(config: dict[str, Any]) -> ModelSpec:
    """What `encoder.spec` says: the table's entry, or what `config.json` tells of a model outside it."""
    table = MODELS.get(config["name"])
    if table is not None and table.sha256 == config["sha256"]:
        return table
    preprocess = Preprocess(*preparation(config))
    known = (
        "name",
        "kind",
        "encoder",
        "encoder_args",
        "corpus",
        "pretext",
        "parameters",
        "sha256",
        "licence",
        "data",
        "head",
        "labels",
    )
    return ModelSpec(preprocess=preprocess, **{key: config[key] for key in known if key in config})


def write_folder(
    model: nn.Module,
    folder: str | os.PathLike,
    config: dict[str, Any],
    *,
    half: bool = False,
    overwrite: bool = False,
    extra: Mapping[str, str | bytes] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A model folder, complete or not at all. `config` gets the format and the sha256; `extra` are more
    files.

    `metadata`: where the weights come from (`ctssl.hub.provenance.facts`), for their header; None: what is
    known of the model.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite and (not folder.is_dir() or any(map(_kept, folder.iterdir()))):
        raise FileExistsError(
            f"{folder} exists and is not empty; choose another folder, or overwrite it on purpose "
            "(overwrite=True)"
        )
    told = (
        lineage(model, licence=config.get("licence", ""), pretext=config.get("pretext", ""))
        if metadata is None
        else metadata
    )
    part = (
        folder / f".part-{os.getpid()}"
    )  # within: beside it may be another file system, or one that is not ours
    shutil.rmtree(part, ignore_errors=True)  # of a process of the same number that was killed
    part.mkdir(parents=True)
    try:
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        if half:
            state = {
                key: value.half() if value.is_floating_point() else value for key, value in state.items()
            }
        write_weights(part / hub.WEIGHTS, state, metadata={"format": "pt", **told})
        config = {"format": hub.FORMAT, **config, "sha256": file_sha256(part / hub.WEIGHTS)}
        write_whole(part / hub.CONFIG, json.dumps(config, indent=1) + "\n")
        for name, content in (extra or {}).items():
            write_whole(part / name, content)
        (part / hub.WEIGHTS).chmod(
            (part / hub.CONFIG).stat().st_mode
        )  # safetensors writes files that nobody else can read
        for file in sorted(part.iterdir(), key=lambda f: f.name == hub.CONFIG):  # the config comes last
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _kept(path: Path) -> bool:
    """Whether a file is more than what a process that was killed left half done."""
    return not path.name.startswith(".part-")


def encoder_config(encoder: Any, *, name: str) -> dict[str, Any]:
    """`config.json` of an encoder, without format and sha256."""
    spec = encoder.spec or ModelSpec(name=name, kind="encoder", encoder=type(encoder).__name__.lower())
    return {
        "name": name,
        "kind": "encoder",
        "encoder": type(encoder).__name__.lower(),
        "encoder_args": encoder.config,
        "preprocess": asdict(spec.preprocess),
        "corpus": spec.corpus,
        "pretext": spec.pretext,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "licence": spec.licence,
        "data": spec.data,
    }
