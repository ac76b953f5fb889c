"""Search a folder to the bottom, links to folders included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def walk(folder: str | os.PathLike) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield what `os.walk` does, in order, through links to folders too. A folder that was there before, by another link or
    around a loop, is left out.

    The list of subfolders may be shortened, as with `os.walk`.
    """
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        own = os.path.realpath(place)
        if own in seen:
            folders[:] = []
            continue
        seen.add(own)
        folders.sort()
        yield place, folders, sorted(names)


def files_below(folder: str | os.PathLike) -> list[Path]:
    """Return every file of a folder and its subfolders, sorted."""
    return sorted(Path(place, name) for place, _, names in walk(folder) for name in names)
