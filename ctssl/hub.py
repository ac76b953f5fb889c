"""From a name, a folder or a Hub repository to a verified local folder.

A model folder holds `config.json` and `model.safetensors`, the same in the wheel, on the Hub and in `save_pretrained`.
Names of the table are looked for in `CTSSL_MODELS` (a folder of model folders), in the package, in the local Hub
cache, on the Hub at the revision of the table. `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` are respected.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctssl.configs import of_right_types
from ctssl.files.names import REPOSITORY
from ctssl.files.text import read_json
from ctssl.remote import CONFIG, WEIGHTS, fetch
from ctssl.zoo import MODELS, ModelSpec, unknown

FORMAT = "ctssl-1"


def find(source: str | os.PathLike, *, revision: str | None = None, offline: bool | None = None) -> Path:
    """The verified folder of a model. `offline=True` never asks the network.

    Raises `FileNotFoundError` for what is not there and `ValueError` for what is damaged, saying what to do.
    """
    name = os.fspath(source)
    if name in MODELS and revision is None:
        return as_published(_named(name, offline), MODELS[name])
    root, folder = os.environ.get("CTSSL_MODELS"), Path(name).expanduser()
    if root and re.fullmatch(r"\w[\w.-]*", name) and Path(root, name, CONFIG).is_file():
        folder = Path(root, name)
    if folder.is_dir() and revision is None:
        return verified(folder)
    if folder.is_dir() and name not in MODELS and not REPOSITORY.fullmatch(name):
        raise ValueError(f"revision={revision!r}: {folder} is a folder, which has no revisions; leave it out")
    if folder.is_file():
        raise ValueError(f"{name} is a file; give the folder that holds {CONFIG} and {WEIGHTS}")
    if name in MODELS and MODELS[name].repo:
        name = str(MODELS[name].repo)
    if not REPOSITORY.fullmatch(name):
        if revision is not None and name in MODELS:
            raise ValueError(
                f"revision={revision!r}: {name} has not been published on the Hub, so it has no revisions"
            )
        raise FileNotFoundError(unknown(name))
    try:
        return verified(fetch(name, revision=revision, offline=offline))
    except (FileNotFoundError, PermissionError, ConnectionError) as error:
        raise type(error)(f"{error}. There is no folder {folder} here either") from error


def as_published(folder: Path, spec: ModelSpec) -> Path:
    """The folder, once its weights and its settings are those of the table; `ValueError` when they are not."""
    config, wanted = read_config(folder), json.loads(json.dumps(asdict(spec)))
    keys = [
        "name",
        "kind",
        "encoder",
        "encoder_args",
        "preprocess",
        *(["head", "labels"] if spec.kind == "segmenter" else []),
    ]
    changed = [key for key in keys if config.get(key) != wanted[key]]
    if changed:
        raise ValueError(
            f"{folder / CONFIG} is not that of {spec.name}: {', '.join(changed)} differ; {_cure(folder)}"
        )
    return verified(folder, sha256=spec.sha256)


def bundled() -> Path:
    """The models that came with the package: `ctssl/_models` in a wheel, `model_cards` in a checkout."""
    package = Path(__file__).parent
    inside, beside = package / "_models", package.parent / "model_cards"
    return beside if not inside.is_dir() and beside.is_dir() else inside


def _named(name: str, offline: bool | None) -> Path:
    spec, root = MODELS[name], os.environ.get("CTSSL_MODELS")
    for place in ([Path(root)] if root else []) + [bundled()]:
        if (place / name / CONFIG).is_file() or (place / name / WEIGHTS).is_file():
            return place / name
    if spec.repo is None:
        looked = f"{root} (CTSSL_MODELS) and {bundled()}" if root else str(bundled())
        raise FileNotFoundError(
            f"{name} is not in {looked}, and it has not been published on the Hub yet; "
            "install the ctssl wheel that carries it, or point CTSSL_MODELS to a folder of model folders"
        )
    return fetch(spec.repo, revision=spec.revision, offline=offline)


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


def verified(folder: Path, *, sha256: str | None = None) -> Path:
    """The folder, once its weights have the expected sha256.

    That of the table proves that the weights are the published ones; that of `config.json`, used for everything else,
    shows damage but not malice.
    """
    config, weights = read_config(folder), folder / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"no {WEIGHTS} in {folder}; {_cure(folder)}")
    expected = sha256 or config["sha256"]
    found = file_sha256(weights)
    if found != expected:
        whose = "the published model" if sha256 else CONFIG
        raise ValueError(
            f"{weights} is damaged or was changed: its sha256 is {found[:12]}..., {whose} says {str(expected)[:12]}...; "
            f"{_cure(folder)}"
        )
    return folder


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
