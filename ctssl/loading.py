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
from ctssl.provenance import fingerprint_of, lineage, read_metadata
from ctssl.zoo import MODELS, ModelSpec, Preprocess

if TYPE_CHECKING:
    from ctssl.encoders.swin import Swin
    from ctssl.encoders.vit import ViT
    from ctssl.heads.segmenter import Segmenter


def load(source: str | os.PathLike, *, revision: str | None = None, offline: bool | None = None,
         device: str | torch.device = "cpu") -> Swin | ViT:  # fmt: skip
    """A pretrained encoder, in `.eval()`.

    Args:
        source: a name (`ctssl.list_models()`), a folder, or a Hub repository `owner/name`. A name wins over a folder
            of the same name; write `./name` for the folder.
        revision: commit, tag or branch of a Hub repository; models of the table have theirs pinned.
        offline: True never asks the network.

    Raises `FileNotFoundError` (not there, with what to do) or `ValueError` (damaged, changed, or not an encoder).
    """
    folder = hub.find(source, revision=revision, offline=offline)
    config = hub.read_config(folder)
    if config["kind"] != "encoder":
        raise ValueError(f"{source} is a {config['kind']}; load it with ctssl.load_segmenter({str(source)!r})")
    encoder = build_encoder(config, folder)
    fill(encoder, folder)
    encoder.spec = spec_of(config)
    return encoder.to(device).eval()


def load_segmenter(source: str | os.PathLike, *, revision: str | None = None, offline: bool | None = None,
                   device: str | torch.device = "cpu") -> Segmenter:  # fmt: skip
    """A fine-tuned segmenter, in `.eval()`; arguments and errors as for `ctssl.load`."""
    folder = hub.find(source, revision=revision, offline=offline)
    config = hub.read_config(folder)
    if config["kind"] != "segmenter":
        raise ValueError(f"{source} is an encoder without a head; ctssl.segmenter({str(source)!r}) puts an untrained "
                         "one on it, `ctssl finetune` trains it")  # fmt: skip
    from ctssl.heads.segmenter import Segmenter, segmenter_settings

    encoder = build_encoder(config, folder)
    encoder.spec = spec_of(config)
    model = Segmenter(encoder, **segmenter_settings(config, folder))
    fill(model, folder)
    return model.to(device).eval()


def segmenter(encoder: nn.Module | str | os.PathLike, *, head: str = "light", classes: int = 2,
              labels: dict[int, str] | None = None) -> Segmenter:  # fmt: skip
    """An encoder with an untrained head of `ctssl.heads.HEADS`. `classes` counts the background.

    `encoder` is an encoder or what `ctssl.load` takes; `labels` names the classes, `{1: "tumour"}`.
    """
    from ctssl.heads.segmenter import Segmenter

    if isinstance(encoder, (str, os.PathLike)):
        encoder = load(encoder)
    return Segmenter(encoder, head=head, classes=classes, labels=labels)


def build_encoder(config: dict[str, Any], folder: Path) -> Any:
    """The encoder that a `config.json` describes, with initial weights."""
    kind, args = config["encoder"], config["encoder_args"]
    known = {**ENCODERS, "pixels": Pixels}
    if kind not in known:
        raise ValueError(f"{folder} needs the encoder {kind!r}; this ctssl has {sorted(known)}: update it")
    try:
        return known[kind](**{key: tuple(v) if isinstance(v, list) else v for key, v in args.items()})
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(
            f"{folder}/config.json does not describe a {kind} that this ctssl can build: {error}"
        ) from error


def fill(model: nn.Module, folder: Path) -> None:
    """Put the weights of a folder into a model: every one of them, and no other."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / hub.WEIGHTS
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or download it again") from error
    own = model.state_dict()
    wrong = sorted(set(own) ^ set(state)) + [k for k in own if k in state and own[k].shape != state[k].shape]
    if wrong:
        raise ValueError(f"{path} holds another model than its config.json describes: {len(wrong)} weights differ, "
                         f"first {wrong[0]!r}; the two files belong to different models")  # fmt: skip
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
    pre = config["preprocess"]
    try:
        preprocess = Preprocess(float(pre["spacing_mm"]), tuple(float(v) for v in pre["window_hu"]))  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"config.json of {config['name']}: preprocess {pre!r} needs spacing_mm and window_hu"
        ) from error
    known = ("name", "kind", "encoder", "encoder_args", "corpus", "pretext", "parameters", "sha256", "licence", "data",
             "head", "labels")  # fmt: skip
    return ModelSpec(preprocess=preprocess, **{key: config[key] for key in known if key in config})


def write_folder(model: nn.Module, folder: str | os.PathLike, config: dict[str, Any], *, half: bool = False,
                 overwrite: bool = False, extra: Mapping[str, str | bytes] | None = None,
                 metadata: Mapping[str, str] | None = None) -> Path:  # fmt: skip
    """A model folder, complete or not at all. `config` gets the format and the sha256; `extra` are more files.

    `metadata`: where the weights come from (`ctssl.provenance.facts`), for their header; None: what is known of the model.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; choose another folder, or overwrite it on purpose "
                              "(overwrite=True)")  # fmt: skip
    told = (
        lineage(model, licence=config.get("licence", ""), pretext=config.get("pretext", ""))
        if metadata is None
        else metadata
    )
    part = folder.with_name(f".part-{os.getpid()}-{folder.name}")
    part.mkdir(parents=True)
    try:
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        if half:
            state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
        save_file(state, part / hub.WEIGHTS, metadata={"format": "pt", **told})
        config = {"format": hub.FORMAT, **config, "sha256": hub.file_sha256(part / hub.WEIGHTS)}
        (part / hub.CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        for name, content in (extra or {}).items():
            (part / name).write_bytes(content.encode() if isinstance(content, str) else content)
        (part / hub.WEIGHTS).chmod(
            (part / hub.CONFIG).stat().st_mode
        )  # safetensors writes files that nobody else can read
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(part.iterdir(), key=lambda f: f.name == hub.CONFIG):  # the config comes last
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def encoder_config(encoder: Any, *, name: str) -> dict[str, Any]:
    """`config.json` of an encoder, without format and sha256."""
    spec = encoder.spec or ModelSpec(name=name, kind="encoder", encoder=type(encoder).__name__.lower())
    return {
        "name": name, "kind": "encoder", "encoder": type(encoder).__name__.lower(), "encoder_args": encoder.config,
        "preprocess": asdict(spec.preprocess), "corpus": spec.corpus, "pretext": spec.pretext,
        "parameters": sum(p.numel() for p in encoder.parameters()), "licence": spec.licence, "data": spec.data,
    }  # fmt: skip
