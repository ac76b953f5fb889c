"""Several images of one scan: a CT and, on its grid, a PET, a second energy, or whatever else was acquired."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
    def name(self) -> str:
        """Return the name of the first image."""
        first = self.images[0]
        return Path(first).name if isinstance(first, (str, Path)) else getattr(first, "name", "array")

    def __repr__(self) -> str:
        return f"Channels({', '.join(map(repr, self.images))})"
