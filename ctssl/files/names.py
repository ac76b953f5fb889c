"""Names that come out of files which others wrote, and that become names of files here."""

from __future__ import annotations

import re

LONGEST = 150  # bytes; with `.part-PID-` before it and `_LABEL.nii.gz` behind it, a name must stay under the system's 255
REPOSITORY = re.compile(
    r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII
)  # owner/name, neither of them `..`


def file_name(name: str, *, where: str = "") -> str:
    """The name of a case, once it can name a file in one folder and nowhere else; `ValueError` otherwise."""
    said = f"{where}: {name[:60]!r}" if where else repr(name[:60])
    if not name or name.startswith(".") or re.search(r"[/\\]", name):
        raise ValueError(f"{said} cannot be the name of a case; leave out '/', '\\' and a '.' in front")
    if not name.isprintable():
        raise ValueError(f"{said} cannot be the name of a case: it holds characters that cannot be printed")
    if len(name.encode("utf-8", "surrogateescape")) > LONGEST:
        raise ValueError(
            f"{said}... cannot be the name of a case: it has {len(name)} characters; give it a shorter one"
        )
    return name


def part_of_name(label: str) -> str:
    """A label's name as a part of a file's name: only letters, digits, `_`, `.` and `-`, and not too long."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", label)[:60]
