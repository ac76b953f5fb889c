"""Check names from untrusted files before they become file names here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

LONGEST = (
    150  # bytes; with `.part-PID-` in front and `_LABEL.nii.gz` behind, a name must stay below 255 bytes
)
PART = len(".part-4194304-")  # what `write_whole` puts in front of a name
REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)  # owner/name, neither is `..`


def check_case_name(name: str, *, where: str = "") -> str:
    """Return a case name unchanged. Raises `ValueError` unless it can name a file inside one folder.

    >>> check_case_name("case-7")
    'case-7'
    """
    said = f"{where}: {name[:60]!r}" if where else repr(name[:60])
    if not name or name.startswith(".") or re.search(r"[/\\]", name):
        raise ValueError(f"{said} cannot be the name of a case; remove '/', '\\' and a leading '.'")
    if not name.isprintable():
        raise ValueError(f"{said} cannot be the name of a case; remove the characters that cannot be printed")
    if len(name.encode("utf-8", "surrogateescape")) > LONGEST:
        raise ValueError(
            f"{said}... cannot be the name of a case: it has {len(name)} characters (at most {LONGEST} bytes)"
        )
    return name


def check_label_names(names: Mapping[int, str]) -> None:
    """Raise `ValueError` for two labels of one name: their volumes, maps and scores could not be told apart."""
    for name in names.values():
        if len(both := [label for label, other in names.items() if other == name]) > 1:
            raise ValueError(
                f"labels {both[0]} and {both[1]} are both called {name!r}; give each a name of its own"
            )


def safe_label(label: str) -> str:
    """Return a label as part of a file name: only letters, digits, `_`, `.` and `-`, at most 60 characters.

    >>> safe_label("left kidney/cyst")
    'left_kidney_cyst'
    """
    return re.sub(r"[^A-Za-z0-9_.-]", "_", label)[:60]


def check_writable(folder: Path) -> None:
    """Raise `PermissionError` for a folder that may not be written to, or made, and `FileExistsError` where a file is in its
    place or in that of a folder above: before the work, and not after it."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise FileExistsError(f"{there} is a file, not a folder; choose another output folder")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"you may not write to {there}; choose another output folder")


def check_path(path: str | os.PathLike) -> Path:
    """Return an output path. Raises `ValueError` for names that are too long to write: before the work, which
    may take hours, and not after it.

    >>> check_path("mask.nii.gz").name
    'mask.nii.gz'
    """
    found = Path(path)
    *folders, name = (len(os.fsencode(part)) for part in found.absolute().parts)
    if max([*folders, name + PART]) > 255 or len(os.fsencode(found.absolute())) + PART > 4095:
        raise ValueError(
            f"the name {found.name[:40]!r}... is too long to write ({name} bytes, at most {255 - PART}; a path has "
            "at most 4081); choose a shorter one"
        )
    return found
