"""Labelled scans as people keep them on disk -> a checked list of cases."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctssl.volume import Volume, read

LAYOUTS = (("images", "labels"), ("imagesTr", "labelsTr"))  # plain folders; nnU-Net and the Decathlon


@dataclass(frozen=True)
class Case:
    """One scan and its mask."""

    name: str
    image: Path
    label: Path


def find_cases(data: str | os.PathLike | None = None, *, images: str | os.PathLike | None = None,
               labels: str | os.PathLike | None = None) -> list[Case]:  # fmt: skip
    """The cases of a folder with `images/` and `labels/` (or `imagesTr/`, `labelsTr/`), or of two folders.

    A mask has the name of its scan (nnU-Net's `_0000` is left out). Raises `FileNotFoundError` or `ValueError` saying
    which file is missing.
    """
    if data is not None and (images is not None or labels is not None):
        raise ValueError("give one folder with images/ and labels/, or the two folders apart, not both")
    if data is not None:
        root = Path(data)
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {root}")
        found = [(root / i, root / k) for i, k in LAYOUTS if (root / i).is_dir() and (root / k).is_dir()]
        if not found:
            raise FileNotFoundError(f"{root} holds neither images/ and labels/ nor imagesTr/ and labelsTr/; "
                                    "name the two folders apart (--images A --labels B)")  # fmt: skip
        image_folder, label_folder = found[0]
    elif images is not None and labels is not None:
        image_folder, label_folder = Path(images), Path(labels)
    else:
        raise ValueError("give a folder with images/ and labels/, or both --images and --labels")
    scans, masks = niftis(image_folder, image=True), niftis(label_folder)
    lonely = sorted(set(scans) - set(masks))
    if lonely:
        raise FileNotFoundError(f"{len(lonely)} scans in {image_folder} have no mask of their name in {label_folder}: "
                                f"{', '.join(lonely[:5])}{' ...' if len(lonely) > 5 else ''}")  # fmt: skip
    return [Case(name, path, masks[name]) for name, path in sorted(scans.items())]


def niftis(folder: Path, *, image: bool = False) -> dict[str, Path]:
    """The NIfTI files of a folder by case name; of an `image`, nnU-Net's `_0000` is no part of it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.endswith((".nii", ".nii.gz")):
            continue
        name = path.name.removesuffix(".gz").removesuffix(".nii")
        name = name.removesuffix("_0000") if image else name
        if name in found:
            raise ValueError(f"{folder} holds {found[name].name} and {path.name}, which mean the same case")
        found[name] = path
    if not found:
        raise FileNotFoundError(f"no .nii or .nii.gz file in {folder}")
    return found


def read_case(case: Case) -> tuple[Volume, Volume]:
    """Scan (HU) and mask (uint8) of a case, on one grid. Raises `ValueError` where they do not fit."""
    scan, mask = read(case.image), read(case.label)
    if scan.shape != mask.shape:
        raise ValueError(f"{case.name}: the scan has shape {scan.shape}, its mask {mask.shape}; resample the mask")
    corners = np.array(
        [[x, y, z, 1] for x in (0, scan.shape[0]) for y in (0, scan.shape[1]) for z in (0, scan.shape[2])]
    )
    apart = float(np.abs(corners @ (scan.affine - mask.affine).T).max())
    if apart > 0.5 * min(scan.spacing_mm):
        raise ValueError(f"{case.name}: scan and mask lie up to {apart:.1f} mm apart (their affines differ); "
                         "write the mask with the scan's affine")  # fmt: skip
    values = np.unique(mask.array)
    if (values < 0).any() or (values != np.round(values)).any() or values.max() > 255:
        raise ValueError(f"{case.name}: a mask holds whole numbers 0..255, this one has {values[:6]}")
    return scan, Volume(mask.array.astype(np.uint8), scan.affine, mask.name)
