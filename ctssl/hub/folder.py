"""Read, verify and write a model folder: `config.json` and `model.safetensors`.

The same format is used in the wheel, on the Hub and by `save_pretrained`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctssl.files.atomic import check_empty, file_sha256, write_whole
from ctssl.files.text import read_json
from ctssl.files.weights import write_weights
from ctssl.hub.client import CONFIG, WEIGHTS
from ctssl.hub.config import check_types, read_preprocess
from ctssl.hub.provenance import holds, lineage
from ctssl.zoo import MODELS, ModelSpec

if TYPE_CHECKING:
    from torch import nn

FORMAT = "ctssl-1"
MODEL_TYPE = "ctssl"  # as transformers calls it, see `ctssl.hf`
SEEN = "seen.json"
ABOUT = (
    "README.md",
    "best.png",
    "cases.csv",
    "curves.png",
    "features.png",
    "import.json",
    "loss.png",
    "median.png",
    "report.json",
    SEEN,
    "training.json",
    "worst.png",
)
"""Files beside the weights that say where these come from and how good they are."""
PROCESSOR = "preprocessor_config.json"  # transformers reads the preparation of a scan from it


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that was read and verified once.

    Attributes:
        path: the folder.
        config: its `config.json`.
        name: the name, path or repository that the model was requested by.
    """

    path: Path
    config: dict[str, Any]
    name: str

    @property
    def kind(self) -> str:
        """Return "encoder" or "segmenter"."""
        return self.config["kind"]

    @property
    def weights(self) -> Path:
        """Return the path of the weights, whose sha256 is `config["sha256"]`."""
        return self.path / WEIGHTS

    @cached_property
    def spec(self) -> ModelSpec:
        """Return the entry of the model table, or for a model outside it the spec from its `config.json`.

        Raises `ValueError` for a spacing or a window that cannot prepare a CT.
        """
        return spec_of(self.config)


def bundled() -> Path:
    """Return the folder of the models that come with the package: `ctssl/_models` in a wheel, `model_cards`
    in a checkout.
    """
    package = Path(__file__).parents[1]
    inside, beside = package / "_models", package.parent / "model_cards"
    return beside if not inside.is_dir() and beside.is_dir() else inside


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a model folder.

    Raises `FileNotFoundError` if there is none, `ValueError` if required entries are missing or have the
    wrong type.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}; a model folder holds {CONFIG} and {WEIGHTS}")
    config = read_json(path, cure=_remedy(folder))
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        given = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise ValueError(
            f"{path} is not a ctssl model (format {given!r}, expected {FORMAT!r}); update ctssl if it "
            "is newer"
        )
    missing = {"name", "kind", "encoder", "encoder_args", "preprocess", "parameters", "sha256"} - set(config)
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}; {_remedy(folder)}")
    return check_types(config, path)


def open_folder(path: Path, *, sha256: str | None = None, name: str = "") -> ModelFolder:
    """Read the config of a model folder and verify its weights.

    Args:
        path: the folder.
        sha256: expected sha256 from the model table, which proves that the weights are the published ones.
            Default: that of `config.json`, which detects damage but not tampering.
        name: name for messages. Default: the path.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the config does not describe a model, or the weights are damaged or were changed.
    """
    config, weights = read_config(path), path / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"no {WEIGHTS} in {path}; {_remedy(path)}")
    expected = sha256 or config["sha256"]
    actual = file_sha256(weights)
    if actual != expected:
        whose = "the published model" if sha256 else CONFIG
        raise ValueError(
            f"{weights} is damaged or was changed: its sha256 is {actual[:12]}..., {whose} says "
            f"{str(expected)[:12]}...; {_remedy(path)}"
        )
    return ModelFolder(path, config, name or str(path))


def _remedy(folder: Path) -> str:
    if bundled() in folder.parents:
        return (
            "reinstall ctssl, for example pip install --force-reinstall --no-deps . in its checkout "
            "(there, git checkout model_cards)"
        )
    if folder.parent.name == "snapshots":  # links into blobs/, which a new download would reuse
        return (
            f"remove {folder.parent.parent} and load the model again to download it afresh; if that does not "
            "help, the repository itself is wrong: use another revision, or ask its owner"
        )
    return "copy or export the folder again"


def spec_of(config: dict[str, Any]) -> ModelSpec:
    """Return the model's entry in the table, or the spec that `config.json` gives for a model outside it."""
    table = MODELS.get(config["name"])
    if table is not None and table.sha256 == config["sha256"]:
        return table
    preprocess = read_preprocess(config)
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
    """Write a model folder completely or not at all, and return its path.

    Args:
        model: module whose state dict becomes `model.safetensors`.
        folder: where to write.
        config: entries of `config.json`; format and sha256 are added.
        half: store floating-point weights as fp16.
        overwrite: write into a folder that is not empty. What ctssl wrote there of other weights goes (`ABOUT`).
        extra: more files, content by name. The list of scans that the model has seen goes with it (`seen.json`), unless given.
        metadata: provenance for the header of the weights (`ctssl.hub.provenance.facts`). Default: what is
            known about the model.

    Raises:
        FileExistsError: the folder is not empty and `overwrite` is False.
    """
    folder = Path(folder)
    check_empty(folder, overwrite=overwrite)
    provenance = (
        lineage(model, licence=config.get("licence", ""), pretext=config.get("pretext", ""))
        if metadata is None
        else metadata
    )
    # inside the folder: its parent may be on another file system, or not writable
    part = folder / f".part-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)  # left by a killed process with the same id
    part.mkdir(parents=True)
    try:
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        if half:
            state = {
                key: value.half() if value.is_floating_point() else value for key, value in state.items()
            }
        write_weights(part / WEIGHTS, state, metadata={"format": "pt", **provenance})
        config = {"format": FORMAT, "model_type": MODEL_TYPE, **config, "sha256": file_sha256(part / WEIGHTS)}
        write_whole(part / CONFIG, json.dumps(config, indent=1) + "\n")
        write_whole(part / PROCESSOR, processor_text(config))
        files = dict(extra or {})
        if SEEN not in files:
            files |= _seen(model)
        for name, content in files.items():
            write_whole(part / name, content)
        (part / WEIGHTS).chmod(
            (part / CONFIG).stat().st_mode
        )  # safetensors writes files only the owner can read
        if (folder / CONFIG).is_file() and not holds(folder / WEIGHTS, model):
            for name in ABOUT:
                (folder / name).unlink(missing_ok=True)
        for file in sorted(part.iterdir(), key=lambda f: f.name == CONFIG):  # the config comes last
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _seen(model: Any) -> dict[str, str]:
    """Return `seen.json` of the folder that a model, or else its encoder, was loaded from; marked as incomplete where its
    weights have changed since. Empty where there is none."""
    part = model if getattr(model, "origin", None) else getattr(model, "encoder", None)
    source: Path | None = getattr(part, "origin", None)
    record = read_json(source.with_name(SEEN)) if source and source.with_name(SEEN).is_file() else None
    if not isinstance(record, dict) or source is None:
        return {}
    whole = {} if holds(source, part) else {"partial": True}
    return {SEEN: json.dumps({**record, **whole}, indent=1) + "\n"}


def processor_text(config: dict[str, Any]) -> str:
    """Return `preprocessor_config.json` for a `config.json`."""
    return (
        json.dumps({"image_processor_type": "CtsslImageProcessor", **config["preprocess"]}, indent=1) + "\n"
    )
