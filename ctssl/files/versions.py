"""What a report was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

NAMES = ("ctssl", "torch", "monai", "numpy", "scipy", "nibabel")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result.

    >>> sorted(versions())[-1], versions()["python"].count(".")
    ('torch', 2)
    """
    found = {"python": platform.python_version()}
    for name in NAMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a folder that is not installed
            continue
    return found
