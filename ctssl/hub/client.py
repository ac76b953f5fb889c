"""Talk to the Hub: download a repository to the local cache, upload a model, explain every failure.

Progress bars, locks, `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_TOKEN` and `hf auth login` are those of
huggingface_hub.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

from ctssl.files.names import REPOSITORY

CONFIG, WEIGHTS = "config.json", "model.safetensors"
COMMIT = r"[0-9a-f]{40}"
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT)
SIGN_IN = "`hf auth login`, or set HF_TOKEN to a token of https://huggingface.co/settings/tokens"


def fetch(repo: str, *, revision: str | None = None, offline: bool | None = None) -> Path:
    """Return the cached folder of a repository; download it if it is missing.

    A commit that is already cached needs no network.

    Args:
        repo: `owner/name`.
        revision: commit, tag or branch. Default: the newest commit of the default branch.
        offline: True never uses the network.

    Raises:
        FileNotFoundError: no such repository or revision, or not cached and the network is off.
        PermissionError: the repository is gated, or the cache is not writable.
        ConnectionError: the download failed.
        OSError: the disk is full.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted: dict[str, Any] = dict(revision=revision, allow_patterns=["*.json", WEIGHTS, "README.md"])
    silent = bool(offline or constants.HF_HUB_OFFLINE)
    if silent or (revision and re.fullmatch(COMMIT, revision)):
        try:
            folder = Path(snapshot_download(repo, local_files_only=True, **wanted))
            if (folder / WEIGHTS).exists() and (folder / CONFIG).exists():
                return folder
        except HFValidationError as error:
            raise ValueError(f"{repo!r} is not a Hub repository: {error}") from error
        except failures():
            pass  # not cached, or incomplete
    if silent:
        which = f" at revision {revision}" if revision else ""
        raise FileNotFoundError(
            f"{repo}{which} is not in the local cache ({constants.HF_HUB_CACHE}) and the network is off "
            "(offline=True or HF_HUB_OFFLINE); load it once with a network, or run "
            f"`ctssl download {repo} --to FOLDER` on a machine that has one, copy FOLDER here and set "
            "CTSSL_MODELS to it"
        )
    try:
        return Path(snapshot_download(repo, **wanted))
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is not a Hub repository: {error}") from error
    except failures() as error:
        raise explain(error, repo, revision) from error


def failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that huggingface_hub raises for external failures, whichever HTTP library it
    uses.
    """
    from huggingface_hub import errors

    types = [
        OSError,
        RuntimeError,
        *errors.HfHubHTTPError.__bases__,
        getattr(errors, "XetDownloadError", OSError),
    ]
    return tuple(dict.fromkeys(types))


def explain(error: Exception, repo: str, revision: str | None) -> OSError:
    """Return the same failure as an exception whose message says what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if trouble := explain_local(
        error, constants.HF_HUB_CACHE, f"set HF_HOME to another folder, and load {repo} again"
    ):
        return trouble
    if isinstance(error, GatedRepoError):
        return PermissionError(f"{repo} requires you to accept its terms: do so on its page, then {SIGN_IN}")
    missing = (
        isinstance(error, RevisionNotFoundError) or _status(error) == 404 or _status(error.__cause__) == 404
    )
    known = isinstance(error, RepositoryNotFoundError) and revision is not None and _exists(repo)
    if known or (missing and not isinstance(error, RepositoryNotFoundError)):
        return FileNotFoundError(
            f"{repo} on {constants.ENDPOINT} has no revision {revision!r}; omit it for the newest, or "
            f"use a tag or commit from {constants.ENDPOINT}/{repo}/commits/main"
        )
    if isinstance(error, RepositoryNotFoundError):
        which = f" (or not at revision {revision!r})" if revision else ""
        return FileNotFoundError(
            f"no repository {repo} on {constants.ENDPOINT}{which}, or it is private: check the name, "
            f"then {SIGN_IN}"
        )
    return ConnectionError(
        f"cannot download {repo} from {constants.ENDPOINT} ({type(error).__name__}); no incomplete model "
        "was kept: check the network and HF_ENDPOINT and try again, or give the model's folder"
    )


def explain_local(error: Exception, place: str | os.PathLike, cure: str) -> OSError | None:
    """Return an exception for a full disk or an unwritable folder; None for any other error."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return OSError(
            f"the disk of {place} is full; no incomplete model was kept: free some space, or {cure}"
        )
    if number in UNWRITABLE:
        return PermissionError(f"cannot write to {place} ({os.strerror(number)}); {cure}")
    return None


def _status(error: BaseException | None) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _exists(repo: str) -> bool:
    """Return whether a repository answers at all: some mirrors report a missing revision as a missing
    repository.
    """
    from huggingface_hub import HfApi

    try:
        return bool(HfApi().repo_info(repo, revision="main"))
    except failures():
        return False


def push(model: Any, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload weights, config and a generated card in one commit; returns the URL of the commit.

    No picture, case name, table or list of hashes of the training data is uploaded.

    Args:
        model: an encoder or a segmenter.
        repo: `owner/name`; created if missing.
        private: create it as a private repository.
        token: Hub token. Default: that of HF_TOKEN or `hf auth login`.

    Raises:
        ValueError: `repo` is not `owner/name`, or exists and is public although `private` is True.
        PermissionError: the token may not write there.
        ConnectionError: the upload failed.
    """
    import tempfile

    from ctssl.files.weights import read_metadata
    from ctssl.hub.card import card
    from ctssl.hub.folder import SEEN

    if not REPOSITORY.fullmatch(repo):
        raise ValueError(f"{repo!r} is not a Hub repository; write owner/name")
    with tempfile.TemporaryDirectory() as place:
        folder = model.save_pretrained(Path(place, repo.split("/")[1]))
        (folder / SEEN).unlink(missing_ok=True)
        (folder / "README.md").write_text(
            card(folder, repo, read_metadata(folder / WEIGHTS)), encoding="utf-8"
        )
        return upload(folder, repo, private=private, token=token, message="Upload with ctssl").commit_url


def upload(folder: Path, repo: str, *, private: bool = False, token: str | None = None, message: str) -> Any:
    """Upload a folder as one commit of a repository, created if missing; returns huggingface_hub's
    `CommitInfo`.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import LocalTokenNotFoundError

    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo, revision="main").private:
            raise ValueError(
                f"{repo} exists and is public; choose another name, or make it private on its page first"
            )
        return api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except failures() as error:
        if _status(error) in (401, 403) or isinstance(error, LocalTokenNotFoundError):
            raise PermissionError(
                f"{constants.ENDPOINT} does not let you write to {repo}; use a token with write "
                f"access: {SIGN_IN}"
            ) from error
        raise ConnectionError(
            f"cannot push to {repo} ({type(error).__name__}: {error}); check the network and HF_ENDPOINT"
        ) from error
