"""Find the verified local folder of a model name, a folder or a Hub repository.

A name of the model table is searched in `CTSSL_MODELS` (a folder of model folders), in the package, in the
local Hub cache, and on the Hub at the pinned revision. `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` are
respected.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from pathlib import Path

from ctssl.files.names import REPOSITORY
from ctssl.hub.client import CONFIG, WEIGHTS, fetch
from ctssl.hub.folder import ModelFolder, _remedy, bundled, open_folder
from ctssl.zoo import MODELS, ModelSpec, explain_unknown

TINY = Path(__file__).parents[1] / "tiny"
"""Folder of tiny models with random weights, for tests of other software: `swin-tiny-random`, `vit-tiny-random`."""


def open_model(
    source: str | os.PathLike | ModelFolder, *, revision: str | None = None, offline: bool | None = None
) -> ModelFolder:
    """Find a model, read its config and verify its weights.

    Args:
        source: a model name, a folder, or a Hub repository `owner/name`. A `ModelFolder` is returned
            unchanged.
        revision: commit, tag or branch of a Hub repository.
        offline: True never uses the network.

    Raises:
        FileNotFoundError: the model is not here and cannot be downloaded; the message says what to do.
        ValueError: the folder is damaged, or differs from the model table.
    """
    if isinstance(source, ModelFolder):
        return source
    name = os.fspath(source)
    if name in MODELS and revision is None:
        return open_published(_find_by_name(name, offline), MODELS[name])
    root, folder = os.environ.get("CTSSL_MODELS"), Path(name).expanduser()
    if re.fullmatch(r"[a-z]+-tiny-random", name) and (TINY / name / CONFIG).is_file():
        folder = TINY / name
    elif root and re.fullmatch(r"\w[\w.-]*", name) and Path(root, name, CONFIG).is_file():
        folder = Path(root, name)
    if folder.is_dir() and revision is None:
        return open_folder(folder, name=name)
    if folder.is_dir() and name not in MODELS and not REPOSITORY.fullmatch(name):
        raise ValueError(f"revision={revision!r}: {folder} is a folder, which has no revisions; omit it")
    if folder.is_file():
        raise ValueError(f"{name} is a file; give the folder that holds {CONFIG} and {WEIGHTS}")
    return open_folder(_from_hub(name, folder, revision, offline), name=name)


def _from_hub(name: str, folder: Path, revision: str | None, offline: bool | None) -> Path:
    """Return the cached folder of a model that is not a local folder."""
    repo = str(MODELS[name].repo) if name in MODELS and MODELS[name].repo else name
    if not REPOSITORY.fullmatch(repo):
        if revision is not None and name in MODELS:
            raise ValueError(
                f"revision={revision!r}: {name} has not been published on the Hub, so it has no "
                "revisions; omit it"
            )
        raise FileNotFoundError(explain_unknown(name))
    try:
        return fetch(repo, revision=revision, offline=offline)
    except (FileNotFoundError, PermissionError, ConnectionError) as error:
        raise type(error)(f"{error}. There is no folder {folder} here either") from error


def find(source: str | os.PathLike, *, revision: str | None = None, offline: bool | None = None) -> Path:
    """Return the path of a verified model folder; arguments and errors as for `open_model`."""
    return open_model(source, revision=revision, offline=offline).path


def open_published(path: Path, spec: ModelSpec) -> ModelFolder:
    """Open a folder that must hold a model of the table: weights and settings are compared with the table.

    Raises `ValueError` if they differ, `FileNotFoundError` if a file is missing.
    """
    folder, wanted = (
        open_folder(path, sha256=spec.sha256, name=spec.name),
        json.loads(json.dumps({**asdict(spec), "preprocess": spec.preprocess.entry()})),
    )
    keys = ["name", "kind", "encoder", "encoder_args", "preprocess"]
    keys += ["head", "labels"] if spec.kind == "segmenter" else []
    changed = [key for key in keys if folder.config.get(key) != wanted[key]]
    if changed:
        raise ValueError(
            f"{path / CONFIG} differs from {spec.name}: {', '.join(changed)} differ; {_remedy(path)}"
        )
    return folder


def _find_by_name(name: str, offline: bool | None) -> Path:
    spec, root = MODELS[name], os.environ.get("CTSSL_MODELS")
    for place in ([Path(root)] if root else []) + [bundled()]:
        if (place / name / CONFIG).is_file() or (place / name / WEIGHTS).is_file():
            return place / name
    if spec.repo is None:
        looked = f"{root} (CTSSL_MODELS) and {bundled()}" if root else str(bundled())
        cure = "install the ctssl wheel that contains it, or set CTSSL_MODELS to a folder of model folders"
        if not spec.in_package:
            cure = (
                "the repository of ctssl holds it: set CTSSL_MODELS to the folder model_cards of a checkout"
            )
        raise FileNotFoundError(
            f"{name} is not in {looked}, and it has not been published on the Hub yet; {cure}"
        )
    return fetch(spec.repo, revision=spec.revision, offline=offline)
