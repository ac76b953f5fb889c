"""What several commands share: arguments, the scans of a folder, and looking at an output before the work."""

from __future__ import annotations

import argparse
from pathlib import Path


def common(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--series", help="SeriesInstanceUID, when a DICOM folder holds several")
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")


def free(path: str, overwrite: bool, *endings: str) -> None:
    """Complain about an output before hours of work, not after."""
    if not path.endswith(endings):
        raise ValueError(f"cannot write {path}: its name must end in {' or '.join(endings)}")
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name, or add --overwrite")
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {Path(path).parent} to write {Path(path).name} in; make it first")


def complain(failed: dict[str, str]) -> None:
    """Raise `RuntimeError` with the scans of a folder that failed, and why, once the others are done."""
    if failed:
        raise RuntimeError(
            f"{len(failed)} scans failed:\n" + "\n".join(f"  {n}: {why}" for n, why in failed.items())
        )


NOT_DICOM = (".nii", ".nii.gz", ".json", ".csv", ".md", ".txt", ".png", ".py", ".log")


def may_be_series(folder: Path) -> bool:
    """Whether a folder holds, at any depth, a file that DICOM could be; one of masks, say, does not."""
    return any(
        file.is_file() and not file.name.startswith(".") and not file.name.lower().endswith(NOT_DICOM)
        for file in folder.rglob("*")
    )


def scans_of(folder: Path) -> dict[str, Path]:
    """The NIfTI files of a folder and its folders (DICOM series) by name; empty for a file or the folder of
    one series."""
    if not folder.is_dir():
        return {}
    from ctssl.datasets.layouts import stem

    found: dict[str, Path] = {}
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files = [path for path in paths if path.name.endswith((".nii", ".nii.gz"))]
    channels = all(
        stem(path).endswith("_0000") for path in files
    )  # as nnU-Net names them; else it is a number of their own
    for path in paths:
        if path in files or (path.is_dir() and may_be_series(path)):
            name = stem(path).removesuffix("_0000") if channels else stem(path)
            if name in found:
                raise ValueError(
                    f"{path.name} and {found[name].name} would both be written as {name}.nii.gz; rename one"
                )
            found[name] = path
    return found
