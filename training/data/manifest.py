"""Which scans to train on: a corpus of ours, a CSV, or any folder with NIfTI files and DICOM series."""

import os
from pathlib import Path
from typing import NamedTuple

from ctssl.datasets.layouts import FOLDERS
from ctssl.files.text import read_table
from ctssl.volume.dicom_file import header_of, text
from training.data import corpora


class Scan(NamedTuple):
    """A NIfTI file or the folder of a DICOM series, and whose it is."""

    path: Path
    patient: str


MASKS = {masks: images for images, masks in (*FOLDERS, ("imagesTs", "labelsTs"))}
"""Folders of masks, and of the images that they lie beside."""


def find_scans(source: str | Path) -> list[Scan]:
    """The scans of `"wild"` or `"self"`, of a CSV, or of a folder (searched to the bottom, each scan a
    patient of its own).

    A CSV has the columns `image` (relative to the CSV or absolute) and, if known, `patient` and `split`: of
    several splits `train` is taken, and a patient in two of them is an error.
    """
    if source in corpora.NAMES:
        return [Scan(path, path.name.split(".")[0]) for path in corpora.corpus(str(source))]
    path = Path(source)
    if path.is_file() and path.suffix.lower() == ".csv":
        return _from_csv(path)
    if not path.is_dir():
        raise SystemExit(
            f"no data at {source}: give {' or '.join(map(repr, corpora.NAMES))}, a CSV or a folder of scans"
        )
    scans = _from_folder(path)
    if not scans:
        raise SystemExit(f"{path} holds no .nii, .nii.gz or DICOM series")
    return scans


def _from_csv(path: Path) -> list[Scan]:
    try:
        columns, listed = read_table(path)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if "image" not in columns:
        raise SystemExit(
            f"{path} has the columns {columns}: one named image is needed (patient, split: optional)"
        )
    rows = [row for _, row in listed if row["image"]]
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.get("patient") or row["image"], set()).add(row.get("split") or "train")
    torn = [patient for patient, found in splits.items() if len(found) > 1]
    if torn:
        raise SystemExit(
            f"{path}: patients in more than one split: {', '.join(torn[:5])} ({len(torn)} in all); give each one"
        )
    root = path.parent
    chosen = [row for row in rows if (row.get("split") or "train") == "train"]
    if not chosen:
        raise SystemExit(f"{path} has no row of the split train")
    return [Scan(root / row["image"], row.get("patient") or row["image"]) for row in chosen]


def _from_folder(path: Path) -> list[Scan]:
    """Every NIfTI file but masks beside images, and every folder of CT images; a DICOM patient has one
    name."""
    scans: list[Path] = []
    patients: dict[Path, str] = {}
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not (name in MASKS and MASKS[name] in folders))
        scans += [Path(folder, n) for n in sorted(names) if n.lower().endswith((".nii", ".nii.gz"))]
        if images := sorted(n for n in names if n.lower().endswith((".dcm", ".ima"))):
            header = header_of(Path(folder, images[0]))
            if header is not None and text(header, "Modality", "CT") == "CT":  # no masks, no PET, no MR
                patients[Path(folder)] = text(header, "PatientID")
                scans.append(Path(folder))
    return [Scan(scan, patients.get(scan) or str(scan.relative_to(path))) for scan in scans]
