"""Files that are whole or not there: written beside their place, then renamed. A full disk is said in
words."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, content: str | bytes | Callable[[Path], Any]) -> Path:
    """Write `path`, from text, bytes or a function that writes the file it is given; whatever happens, never
    half of it.

    Raises `OSError` (ENOSPC) with what to do when the disk is full.
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


def disk_is_full(error: BaseException) -> bool:
    """Whether an error of the system, or of safetensors, which has words alone, means that."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return type(error).__name__ == "SafetensorError" and "No space left" in str(error)


def write_weights(path: Path, state: dict[str, Any], *, metadata: dict[str, str] | None = None) -> Path:
    """Tensors as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    return write_whole(path, lambda part: save_file(state, part, metadata=metadata))


def apart(targets: list[Path], scans: list[Path]) -> None:
    """Refuse to write over scans that are read, whatever may be overwritten. Raises `ValueError`."""
    own = {os.path.realpath(path) for path in scans}
    for path in targets:
        if os.path.realpath(path) in own:
            raise ValueError(f"{path} is a scan that is read; choose another place to write to")


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
