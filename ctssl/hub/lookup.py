"""From a name, a folder or a Hub repository to a verified local folder.

Names of the table are looked for in `CTSSL_MODELS` (a folder of model folders), in the package, in the local
Hub cache, on the Hub at the revision of the table. `HF_HOME`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` are
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
from ctssl.hub.folder import _cure, bundled, read_config, verified
from ctssl.zoo import MODELS, ModelSpec, unknown


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
    """The folder, once its weights and its settings are those of the table; `ValueError` when they are
    not."""
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
