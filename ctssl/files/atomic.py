"""Write files atomically: to a temporary file in the same folder, then rename. A full disk gets a clear
message.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ctssl.files.running import clear_parts

FULL = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, content: str | bytes | Callable[[Path], Any]) -> Path:
    """Write a file completely or not at all, and return its path.

    Args:
        path: file to write; an existing one is replaced.
        content: text, bytes, or a function that writes the (temporary) file it is given.

    Raises:
        OSError: the disk is full (ENOSPC); the message says what to do.
    """
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        if callable(content):
            content(part)
        else:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(part, path)
    except Exception as error:
        if disk_is_full(error):
            raise OSError(
                errno.ENOSPC,
                f"the disk is full: {path} was not written; free some space and start the same command again",
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)
    return path


BEGUN = ".part-of-a-whole"


@contextmanager
def beginning(folder: Path) -> Iterator[None]:
    """Mark a folder while several files that belong together are written to it: what a killed process left
    there may be written again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if is_begun(folder):
        clear_parts(folder)
    (folder / BEGUN).touch()
    yield
    (folder / BEGUN).unlink(missing_ok=True)


def check_empty(folder: Path, *, overwrite: bool) -> None:
    """Raise `FileExistsError` for a file, and, unless `overwrite`, for a folder that holds more than what killed runs left."""
    held = folder.is_dir() and any(not path.name.startswith(".part-") for path in folder.iterdir())
    if folder.exists() and (not folder.is_dir() or (held and not overwrite)):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise FileExistsError(
            f"{folder} exists and {what}; choose another folder, or overwrite=True (--overwrite)"
        )


def is_begun(folder: Path) -> bool:
    """Return whether a process was killed while it wrote to a folder (see `beginning`)."""
    return (folder / BEGUN).exists()


def disk_is_full(error: BaseException) -> bool:
    """Return whether an error means a full disk."""
    return isinstance(error, OSError) and error.errno in FULL


def check_apart(targets: list[Path], scans: list[Path]) -> None:
    """Raise `ValueError` if an output would replace an input, such as a scan, even where overwriting is allowed."""
    own = {os.path.realpath(path) for path in scans}
    series = tuple(path + os.sep for path in own if os.path.isdir(path))
    for path in targets:
        place = os.path.realpath(path)
        if place in own:
            what = "a table that is read" if place.lower().endswith(".csv") else "an input scan"
            raise ValueError(f"{path} is {what}; choose another output path")
        written = (".nii", ".nii.gz", ".json", ".png", ".npy", ".csv")  # earlier results next to the slices
        if place.startswith(series) and os.path.exists(place) and not place.lower().endswith(written):
            raise ValueError(f"{path} is a file of an input scan; choose another output path")


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
