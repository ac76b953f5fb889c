"""A model folder: `config.json` and `model.safetensors`, the same in the wheel, on the Hub and in
`save_pretrained`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctssl.files.atomic import file_sha256, write_weights, write_whole
from ctssl.files.text import read_json
from ctssl.hub.client import CONFIG, WEIGHTS
from ctssl.hub.config import of_right_types, preparation
from ctssl.hub.provenance import lineage
from ctssl.zoo import MODELS, ModelSpec, Preprocess

if TYPE_CHECKING:
    from torch import nn

FORMAT = "ctssl-1"


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that was read and verified: opened once, then handed on.

    `config`: its `config.json`. `name`: how the model was asked for.
    """

    path: Path
    config: dict[str, Any]
    name: str

    @property
    def kind(self) -> str:
        """Either "encoder" or "segmenter"."""
        return self.config["kind"]

    @property
    def weights(self) -> Path:
        """The file of the weights, whose sha256 is `config["sha256"]`."""
        return self.path / WEIGHTS

    @cached_property
    def spec(self) -> ModelSpec:
        """The entry of the table, or what `config.json` says of a model outside it.

        Raises `ValueError` for a spacing or a window that cannot prepare a CT.
        """
        return spec_of(self.config)


def bundled() -> Path:
    """The models that came with the package: `ctssl/_models` in a wheel, `model_cards` in a checkout."""
    package = Path(__file__).parents[1]
    inside, beside = package / "_models", package.parent / "model_cards"
    return beside if not inside.is_dir() and beside.is_dir() else inside


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder, checked for what every model has."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}: a model folder holds {CONFIG} and {WEIGHTS}")
    config = read_json(path, cure=_cure(folder))
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        found = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ValueError(
            f"{path} is not a ctssl model (format {found!r}, expected {FORMAT!r}); update ctssl if it is newer"
        )
    missing = {"name", "kind", "encoder", "encoder_args", "preprocess", "parameters", "sha256"} - set(config)
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}; {_cure(folder)}")
    return of_right_types(config, path)


def open_folder(path: Path, *, sha256: str | None = None, name: str = "") -> ModelFolder:
    """Read the config of a model folder and verify its weights.

    Args:
        path: the folder.
        sha256: that of the table, which proves that the weights are the published ones. None: that of
            `config.json`, which shows damage but not malice.
        name: how the model was asked for, for messages. Default: the folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the config is not that of a model, or the weights are damaged or were changed.
    """
    config, weights = read_config(path), path / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"no {WEIGHTS} in {path}; {_cure(path)}")
    expected = sha256 or config["sha256"]
    found = file_sha256(weights)
    if found != expected:
        whose = "the published model" if sha256 else CONFIG
        raise ValueError(
            f"{weights} is damaged or was changed: its sha256 is {found[:12]}..., {whose} says "
            f"{str(expected)[:12]}...; {_cure(path)}"
        )
    return ModelFolder(path, config, name or str(path))


def _cure(folder: Path) -> str:
    if bundled() in folder.parents:
        return (
            "install ctssl again from where it came, such as pip install --force-reinstall --no-deps . in its checkout "
            "(there, git checkout model_cards)"
        )
    if folder.parent.name == "snapshots":  # links into blobs/, which a new download would take as they are
        return (
            f"remove {folder.parent.parent} and load the model again to download it afresh; if that changes nothing, the "
            "repository itself is wrong: take another revision, or ask its owner"
        )
    return "copy or export the folder again"


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

    `metadata`: where the weights come from (`ctssl.provenance.facts`), for their header; None: what is
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
        write_weights(part / WEIGHTS, state, metadata={"format": "pt", **told})
        config = {"format": FORMAT, **config, "sha256": file_sha256(part / WEIGHTS)}
        write_whole(part / CONFIG, json.dumps(config, indent=1) + "\n")
        for name, content in (extra or {}).items():
            write_whole(part / name, content)
        (part / WEIGHTS).chmod(
            (part / CONFIG).stat().st_mode
        )  # safetensors writes files that nobody else can read
        for file in sorted(part.iterdir(), key=lambda f: f.name == CONFIG):  # the config comes last
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _kept(path: Path) -> bool:
    """Whether a file is more than what a process that was killed left half done."""
    return not path.name.startswith(".part-")
