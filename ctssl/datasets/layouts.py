"""Labelled scans as people keep them on disk -> a list of cases."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from ctssl.datasets.case import Case, Dataset
from ctssl.datasets.manifest import read_manifest
from ctssl.datasets.scans import channels_in, check_masks, list_scans, require_scans, stem
from ctssl.files.names import check_case_name, check_label_names
from ctssl.files.text import read_json
from ctssl.files.walk import files_below, walk
from ctssl.volume.dicom_checks import MaskWarning

FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))
LAYOUTS = """
  images/ and labels/ with the same file names (--images A --labels B for folders apart)
  nnU-Net: imagesTr/ (CASE_0000.nii.gz; further channels CASE_0001.nii.gz, ...), labelsTr/, dataset.json
  Medical Segmentation Decathlon: dataset.json with "training"
  a CSV with the columns image and label (and image2, image3, ... for further channels, id, patient, split, anything else)
  TotalSegmentator: a folder for each scan, with ct.nii.gz and segmentations/STRUCTURE.nii.gz
  DICOM: a folder for each patient, with a CT series and an RTSTRUCT or SEG"""
SCAN, STRUCTURES = "ct.nii.gz", "segmentations"  # of TotalSegmentator


def find_cases(
    data: str | os.PathLike | None = None,
    *,
    images: str | os.PathLike | None = None,
    labels: str | os.PathLike | None = None,
    roi: str | None = None,
) -> Dataset:
    """Find the labelled scans of a folder or CSV in any known layout (see `LAYOUTS`), or of two folders. Only names
    are read.

    Args:
        data: folder or CSV.
        images, labels: folders of scans and masks with the same names, instead of `data`.
        roi: structure to take, where RTSTRUCT or SEG files or folders of TotalSegmentator hold several.

    Raises:
        FileNotFoundError: a folder, a file or a mask is missing.
        ValueError: arguments or files do not fit together.
    """
    found = _find(data, images, labels, roi)
    if roi and not any(case.roi for case in found.cases):
        raise ValueError(
            f"roi {roi!r} names a structure of an RTSTRUCT, a SEG or {STRUCTURES}/, and these masks are none of these; "
            "leave it out"
        )
    return found


def _find(data: Any, images: Any, labels: Any, roi: str | None) -> Dataset:
    if data is not None and (images is not None or labels is not None):
        raise ValueError("give one folder with images/ and labels/, or the two folders apart, not both")
    if data is None:
        if images is None or labels is None:
            raise ValueError("give a folder with images/ and labels/, or both --images and --labels")
        return _dataset(_pairs(Path(images), Path(labels)))
    root = Path(data)
    if root.suffix.lower() == ".csv":
        return _table(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    description = _description(root)
    if "training" in description:
        return _dataset(_decathlon(root, description["training"]), description)
    folders = [(root / i, root / k) for i, k in FOLDERS if (root / i).is_dir() and (root / k).is_dir()]
    if folders:
        return _dataset(_pairs(*folders[0]), description)
    cases = _structures(root, roi) or _dicom(root, roi)
    if not cases:
        raise FileNotFoundError(f"{root} holds no labelled scans in a layout that ctssl knows:{LAYOUTS}")
    return Dataset(cases, {1: structure} if (structure := cases[0].roi) else {})


def _dataset(cases: list[Case], description: dict[str, Any] | None = None) -> Dataset:
    """Return cases with the names that `dataset.json` gives. Raises `ValueError` for cases of different numbers of
    channels."""
    known, most = _channels(description or {}), max(cases, key=lambda case: len(case.channels), default=None)
    count = len(known) if known is not None else len(most.channels) if most else 0
    if odd := next((case for case in cases if len(case.channels) != count), None):
        who = f"{most.name if most else ''} has" if known is None else "dataset.json names"
        raise ValueError(
            f"{odd.name} has {1 + len(odd.channels)} {'channels' if odd.channels else 'channel'}, {who} {1 + count}; give every "
            f"case the same channels, each as a file ({odd.name}_0000.nii.gz, {odd.name}_0001.nii.gz), not as a 4D image"
        )
    names = tuple(f"channel {number}" for number in range(2, 2 + count)) if known is None else known
    return Dataset(cases, _names(description or {}), names)


def _channels(description: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the names of the channels beside the CT, from `channel_names` (nnU-Net 2) or `modality` (nnU-Net 1,
    Decathlon); None where neither is there."""
    given = description.get("channel_names") or description.get("modality")
    if isinstance(given, dict):  # in the order of their numbers
        given = [given[key] for key in sorted(given, key=lambda key: (len(str(key)), str(key)))]
    if not isinstance(given, list) or not given:
        return None
    names = [str(name) for name in given]
    if odd := [name for name in names if not name.isprintable()]:
        raise ValueError(
            f"dataset.json: the channel {odd[0][:60]!r} cannot be printed; name it in plain text"
        )
    return tuple(names[1:])


def _pairs(image_folder: Path, label_folder: Path) -> list[Case]:
    """Pair scans and masks of the same names; nnU-Net's `_0000` is not part of a scan's name."""
    masks = require_scans(label_folder, unlabelled=False)
    scans = require_scans(image_folder, masks=masks, channels=True)
    check_masks(scans, masks, image_folder, label_folder)
    others = channels_in(image_folder, masks)
    return [
        Case(name, path, masks[name], patient=name, channels=others.get(path, ()))
        for name, path in sorted(scans.items())
    ]


def _description(root: Path) -> dict[str, Any]:
    """Read `dataset.json` of nnU-Net or the Decathlon; empty where there is none."""
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object, as nnU-Net and the Decathlon write it")
    return found


def _names(description: dict[str, Any]) -> dict[int, str]:
    """Return the names of the labels, from `{"tumour": 1}` (nnU-Net) or `{"1": "tumour"}` (Decathlon).

    Raises `ValueError` unless they are 1, 2, ...
    """
    labels, names = description.get("labels") or {}, {}
    for key, value in labels.items() if isinstance(labels, dict) else ():
        number, name = (value, key) if isinstance(value, int) else (key, value)
        if not re.fullmatch("[0-9]{1,3}", str(number)) or int(number) > 255 or not isinstance(name, str):
            raise ValueError(
                f"dataset.json: the label {str(key)[:60]!r}: {str(value)[:60]!r} is no number (0 to 255) and name; "
                "regions are not supported"
            )
        if not name.isprintable():
            raise ValueError(
                f"dataset.json: the label {name[:60]!r} cannot be printed; write it in plain text"
            )
        if int(number) > 0 and name != "ignore":
            names[int(number)] = name
    check_label_names(names)
    if set(names) == {255}:  # as `read_case` reads masks of 0 and 255
        return {1: names[255]}
    if sorted(names) != list(range(1, 1 + len(names))):
        raise ValueError(
            f"dataset.json names the labels {', '.join(map(str, sorted(names)))}; number them 1 to {len(names)}, there and in "
            "the masks, as nnU-Net needs it too: a model would learn, and mark, the numbers between"
        )
    return names


def _decathlon(root: Path, entries: Any) -> list[Case]:
    cases, folders = [], {}
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in ("image", "label")):
            raise ValueError(
                f"{root / 'dataset.json'}: an entry of training needs image and label, got {str(entry)[:80]}"
            )
        image, label = root / entry["image"], root / entry["label"]
        name = check_case_name(stem(image), where=str(root / "dataset.json"))
        first, channels = image.with_name(image.name.replace(name, f"{name}_0000", 1)), ()
        if not _is_there(image) and _is_there(first):  # nnU-Net 1 lists cases, and keeps channels
            if first.parent not in folders:
                folders[first.parent] = channels_in(first.parent)
            image, channels = first, folders[first.parent].get(first, ())
        cases.append(Case(name, image, label, patient=name, channels=channels))
    return _existing(cases, root / "dataset.json")


def _table(path: Path) -> Dataset:
    """Read the labelled scans of a CSV."""
    cases = [
        Case(
            row.name,
            row.image,
            row.label,
            row.patient or _patient_in(row.image) or row.name,
            row.split,
            row.facts,
            channels=row.channels,
        )
        for row in read_manifest(path, labels=True)
        if row.label is not None
    ]
    return _dataset(_existing(cases, path))


def _patient_in(image: Path) -> str:
    """Return the PatientID of a DICOM series; "" for a file, and where there is none."""
    if not image.is_dir():
        return ""
    from ctssl.volume.dicom_file import get_text, read_header

    headers = map(read_header, files_below(image))
    return next(
        (name for header in headers if header is not None and (name := get_text(header, "PatientID"))), ""
    )


def _existing(cases: list[Case], path: Path) -> list[Case]:
    """Return the cases unchanged. Raises `ValueError` or `FileNotFoundError` unless each is there once, with all its
    files."""
    if not cases:
        raise ValueError(f"{path} names no case")
    files = (file for case in cases for file in (case.image, case.label, *case.channels))
    missing = [file for file in files if not _is_there(file)]
    if missing:
        raise FileNotFoundError(
            f"{path} names {len(missing)} files that are not there, first {str(missing[0])[:300]}"
        )
    doubled = sorted(name for name, count in Counter(case.name for case in cases).items() if count > 1)
    if doubled:
        raise ValueError(
            f"{path} names {', '.join(doubled[:5])} more than once; give the cases ids of their own"
        )
    return cases


def _is_there(file: Path) -> bool:
    try:
        return file.exists()
    except (OSError, ValueError):  # a name that is too long for a file
        return False


def _structures(root: Path, roi: str | None) -> list[Case]:
    """Return a case for each folder as TotalSegmentator keeps its scans, with the mask of one structure.

    Raises `ValueError` where there are several structures and `roi` does not say which.
    """
    folders = [path.parent for path in sorted(root.glob(f"*/{SCAN}")) if (path.parent / STRUCTURES).is_dir()]
    masks = {folder: list_scans(folder / STRUCTURES, unlabelled=False) for folder in folders}
    known = sorted({name for own in masks.values() for name in own})
    if known and (roi not in known if roi else len(known) != 1):
        raise ValueError(
            f"{root}: {f'no structure {roi!r}' if roi else 'several structures'} in {STRUCTURES}/; name one with --roi (roi=): "
            f"{', '.join(known[:20])}{', ...' if len(known) > 20 else ''}"
        )
    if not known:
        return []
    wanted = roi or known[0]
    if bare := [folder.name for folder in folders if wanted not in masks[folder]]:
        _warn(bare, f"no {STRUCTURES}/{wanted}, and are left out")
    return [
        Case(
            check_case_name(folder.name, where=str(root)),
            folder / SCAN,
            masks[folder][wanted],
            patient=folder.name,
            roi=wanted,
        )
        for folder in folders
        if wanted in masks[folder]
    ]


def _dicom(root: Path, roi: str | None) -> list[Case]:
    """Return a case for each patient's folder that holds a CT series and one RTSTRUCT or SEG.

    Warns of CTs without either, and where there are both, of which the RTSTRUCT is taken.
    """
    cases: list[Case] = []
    bare: list[str] = []
    both: list[str] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name.startswith(".") or not any(names for _, _, names in walk(folder)):
            continue
        from ctssl.volume.dicom import find_series, match_annotation
        from ctssl.volume.dicom_file import get_text

        found = find_series(folder)
        if not found["RTSTRUCT"] and not found["SEG"]:
            bare += [folder.name] if found["CT"] else []
            continue
        both += [folder.name] if found["RTSTRUCT"] and found["SEG"] else []
        name = check_case_name(folder.name, where=str(root))
        (image, header), (label, _) = match_annotation(found, folder)
        cases.append(
            Case(
                name,
                image,
                label,
                patient=get_text(header, "PatientID") or name,
                series=get_text(header, "SeriesInstanceUID"),
                roi=roi,
            )
        )
    if cases and bare:
        _warn(bare, "a CT and no RTSTRUCT or SEG, and are left out")
    if both:
        _warn(
            both,
            "an RTSTRUCT and a SEG, and the RTSTRUCT is taken; remove it where the SEG is the one to take",
        )
    return cases


def _warn(patients: list[str], what: str) -> None:
    named = ", ".join(patients[:5]) + (", ..." if len(patients) > 5 else "")
    warnings.warn(f"{len(patients)} patients have {what}: {named}", MaskWarning, stacklevel=4)
