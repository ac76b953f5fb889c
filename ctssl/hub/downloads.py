"""Download models in advance: to the cache, or to plain folders for a machine without a network."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ctssl import hub
from ctssl.files.names import REPOSITORY
from ctssl.hub.client import explain_local
from ctssl.zoo import MODELS


def download(
    source: str,
    *,
    to: str | os.PathLike | None = None,
    revision: str | None = None,
    offline: bool | None = None,
) -> Path:
    """Make a model available on this machine and return its verified folder.

    A verified copy that is already there is kept.

    Args:
        source: a model name, or a Hub repository `owner/name`.
        to: a folder; the model is written to `to/name`, completely or not at all, and `CTSSL_MODELS=to` makes
            it available. Default: it stays in the package or in the Hub cache.
        revision: commit, tag or branch of the repository.
        offline: True never uses the network.

    Raises:
        FileExistsError: `to/name` exists and is another model.
        ValueError: neither a known name nor `owner/name`.
    """
    if source not in MODELS and not REPOSITORY.fullmatch(source):
        raise ValueError(
            f"unknown model {source!r}; use a name from `ctssl list` or a Hub repository owner/name"
        )
    model = hub.open_model(source, revision=revision, offline=offline)
    if to is None:
        return model.path
    name = source.split("/")[-1]
    if name in MODELS:  # a name of the table always means the model of the table
        hub.open_published(model.path, MODELS[name])
    target = Path(to) / name
    if _holds_model(model, target):
        return target
    try:
        Path(to).mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".part-{name}-", dir=to))
    except OSError as error:
        raise explain_local(error, to, "choose another --to") or error from error
    try:
        for file in sorted(model.path.iterdir()):
            if file.is_file():
                shutil.copyfile(file, part / file.name)  # follows the cache's links; default permissions
        hub.open_folder(part, sha256=model.config["sha256"])
        part.chmod(0o777 & ~_umask())
        os.rename(part, target)  # replaces an empty folder, fails on a full one
    except OSError as error:
        if target.is_dir() and _holds_model(model, target):  # another process was faster
            return target
        raise explain_local(error, to, "choose another --to") or error from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _holds_model(model: hub.ModelFolder, target: Path) -> bool:
    """Return whether the target holds this very model. Raises `FileExistsError` if it holds anything else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        hub.open_folder(target, sha256=model.config["sha256"])
    except (ValueError, OSError) as error:
        raise FileExistsError(
            f"{target} exists and is not this model ({error}); it was not changed: move it away, or choose "
            "another --to"
        ) from error
    return True


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
