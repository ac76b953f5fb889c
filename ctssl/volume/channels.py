"""Several images of one scan: a CT and, on its grid, a PET, a second energy, or whatever else was acquired."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

NUMBERED = re.compile(r"(?P<case>.+)_(?P<number>\d{4})(?P<end>\.nii(\.gz)?)", re.IGNORECASE)


class Channels:
    """The images of one scan, for every function that takes a scan: the CT in HU first, then others on its grid.

    Args:
        images: what `ctssl.read` takes, each.

    >>> Channels("ct.nii.gz", "pet.nii.gz").name
    'ct.nii.gz'
    """

    def __init__(self, *images: Any) -> None:
        if not images:
            raise ValueError("give at least one image: Channels(ct, pet)")
        self.images = images

    @property
    def paths(self) -> list[Path]:
        """Return the images that are files or folders."""
        return [Path(image) for image in self.images if isinstance(image, (str, Path))]

    @property
    def name(self) -> str:
        """Return the name of the first image."""
        first = self.images[0]
        return Path(first).name if isinstance(first, (str, Path)) else getattr(first, "name", "array")

    def __repr__(self) -> str:
        return f"Channels({', '.join(map(repr, self.images))})"


def is_further(path: Path) -> bool:
    """Tell whether a file is the second or a later channel of a case, `CASE_0001.nii.gz` beside `CASE_0000.nii.gz`."""
    match = NUMBERED.fullmatch(path.name)
    return match is not None and int(match["number"]) > 0 and _sibling(path, 0).exists()


def further(path: Path) -> tuple[Path, ...]:
    """Return the channels `_0001`, `_0002`, ... of a case that lie beside its `_0000`; none for any other name.

    Raises `FileNotFoundError` where one between them is missing.
    """
    match = NUMBERED.fullmatch(path.name)
    if match is None or int(match["number"]) != 0:
        return ()
    found = sorted(other for other in path.parent.glob("*") if _same_case(other, match["case"]))
    wanted = tuple(_sibling(path, number) for number in range(1, len(found) + 1))
    if missing := [one for one in wanted if one not in found]:
        raise FileNotFoundError(f"{missing[0]} is missing, but {found[-1].name} is there; add it")
    return wanted


def source_of(path: Path) -> Path | Channels:
    """Return the path of a scan, or its channels if there are several (`further`)."""
    others = further(path)
    return Channels(path, *others) if others else path


def _same_case(path: Path, case: str) -> bool:
    match = NUMBERED.fullmatch(path.name)
    return match is not None and match["case"] == case and int(match["number"]) > 0


def _sibling(path: Path, number: int) -> Path:
    return path.with_name(
        re.sub(r"_\d{4}(?=\.nii)", f"_{number:04d}", path.name, count=1, flags=re.IGNORECASE)
    )
