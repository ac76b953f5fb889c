"""Models fetched ahead: into the cache, or as plain folders for a machine without a network."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ctssl import hub
from ctssl.files.names import REPOSITORY
from ctssl.hub.client import local_trouble
from ctssl.zoo import MODELS


def download(
    source: str,
    *,
    to: str | os.PathLike | None = None,
    revision: str | None = None,
    offline: bool | None = None,
) -> Path:
    """The verified folder of a model, on this machine from now on.

    Args:
        source: a name, or a Hub repository `owner/name`.
        to: a folder; the model becomes `to/name` in it, complete or not at all, and `CTSSL_MODELS=to` serves
            it. None: it stays where it was found (it came with the package) or in the Hub cache.
        revision: commit, tag or branch of the repository.

    A verified copy that is already there is left; anything else there is kept, with `FileExistsError`.
    """
    if source not in MODELS and not REPOSITORY.fullmatch(source):
        raise ValueError(f"{source!r} is neither a name of `ctssl list` nor a Hub repository owner/name")
    found = hub.open_model(source, revision=revision, offline=offline)
    if to is None:
        return found.path
    name = source.split("/")[-1]
    if name in MODELS:  # under a name of the table only the table's model is ever loaded
        hub.as_published(found.path, MODELS[name])
    target = Path(to) / name
    if _same(found, target):
        return target
    try:
        Path(to).mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".part-{name}-", dir=to))
    except OSError as error:
        raise local_trouble(error, to, "choose another --to") or error from error
    try:
        for file in sorted(found.path.iterdir()):
            if file.is_file():
                shutil.copyfile(
                    file, part / file.name
                )  # what a link of the cache points to, with this user's permissions
        hub.open_folder(part, sha256=found.config["sha256"])
        part.chmod(0o777 & ~_umask())
        os.rename(part, target)  # an empty folder gives way, a full one does not
    except OSError as error:
        if target.is_dir() and _same(found, target):  # another process was faster
            return target
        raise local_trouble(error, to, "choose another --to") or error from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _same(found: hub.ModelFolder, target: Path) -> bool:
    """Whether the target holds this very model. Raises `FileExistsError` when it holds anything else."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    try:
        hub.open_folder(target, sha256=found.config["sha256"])
    except (ValueError, OSError) as error:
        raise FileExistsError(
            f"{target} exists and is not this model ({error}); it was left as it is: move it away, or choose another --to"
        ) from error
    return True


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
