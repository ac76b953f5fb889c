"""Labelled scans as people keep them on disk -> a list of cases, and what is wrong with them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.files.names import file_name
from ctssl.files.text import read_json, read_table
from ctssl.lint import Finding, lint, outside_body
from ctssl.volume.volume import Volume, read

FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))
MISSING = 20  # labels that a few cases may lack
RARE = 5  # cases from which a label in one of them alone is odd
SEEN = "seen.json"  # in a model's folder: hashes of the scans that it was pretrained on
LAYOUTS = """
  images/ and labels/ with the same file names (--images A --labels B for folders apart)
  nnU-Net: imagesTr/ (CASE_0000.nii.gz), labelsTr/, dataset.json
  Medical Segmentation Decathlon: dataset.json with "training"
  a CSV with the columns image and label (and id, patient, split, anything else)
  DICOM: a folder for each patient, with a CT series and an RTSTRUCT or SEG"""


@dataclass(frozen=True)
class Case:
    """One scan and its mask. `label` is a NIfTI file, or the RTSTRUCT or SEG of a DICOM `series`; `roi` names its structure.

    `patient` is the same for all scans of a person. `facts`: further columns of a table, for strata.
    """

    name: str
    image: Path
    label: Path
    patient: str = ""
    split: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    series: str | None = None
    roi: str | None = None


@dataclass(frozen=True)
class Dataset:
    """`names`: of the labels, where the data says them."""

    cases: list[Case]
    names: dict[int, str] = field(default_factory=dict)


def find_cases(
    data: str | os.PathLike | None = None,
    *,
    images: str | os.PathLike | None = None,
    labels: str | os.PathLike | None = None,
    roi: str | None = None,
) -> Dataset:
    """The cases of a folder or CSV in any known layout (see `LAYOUTS`), or of two folders. Nothing is read but names.

    `roi` is the structure to take from RTSTRUCT or SEG files that hold several. Raises `FileNotFoundError` or
    `ValueError` saying what is missing.
    """
    if data is not None and (images is not None or labels is not None):
        raise ValueError("give one folder with images/ and labels/, or the two folders apart, not both")
    if data is None:
        if images is None or labels is None:
            raise ValueError("give a folder with images/ and labels/, or both --images and --labels")
        return Dataset(_pairs(Path(images), Path(labels)))
    root = Path(data)
    if root.suffix.lower() == ".csv":
        return _table(root)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    description = _description(root)
    if "training" in description:
        return Dataset(_decathlon(root, description["training"]), _names(description))
    folders = [(root / i, root / k) for i, k in FOLDERS if (root / i).is_dir() and (root / k).is_dir()]
    if folders:
        return Dataset(_pairs(*folders[0]), _names(description))
    cases = _dicom(root, roi)
    if not cases:
        raise FileNotFoundError(f"{root} holds no labelled scans in a layout that ctssl knows:{LAYOUTS}")
    return Dataset(cases, {1: roi} if roi else {})


def _pairs(image_folder: Path, label_folder: Path) -> list[Case]:
    """Scans and masks of the same names; nnU-Net's `_0000` is no part of a scan's."""
    masks = niftis(label_folder)
    scans = niftis(image_folder, masks=masks)
    lonely = sorted(set(scans) - set(masks))
    if lonely:
        raise FileNotFoundError(
            f"{len(lonely)} scans in {image_folder} have no mask of their name in {label_folder}: "
            f"{', '.join(lonely[:5])}{' ...' if len(lonely) > 5 else ''}"
        )
    return [Case(name, path, masks[name], patient=name) for name, path in sorted(scans.items())]


def niftis(folder: Path, *, masks: dict[str, Path] | None = None) -> dict[str, Path]:
    """The NIfTI files of a folder by case name; of scans with these `masks`, nnU-Net's `_0000` is no part of it, unless it is in
    the mask's name too."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    paths = [path for path in paths if path.name.endswith((".nii", ".nii.gz"))]
    found: dict[str, Path] = {}
    for path in paths:
        name = stem(path)
        if masks is not None and name not in masks:
            whose, _, number = name.rpartition("_")
            if number in ("0001", "0002") and whose in masks:
                raise ValueError(
                    f"{path} is a second channel; ctssl takes one CT for each case, CASE_0000.nii.gz alone"
                )
            name = name.removesuffix("_0000")
        if name in found:
            raise ValueError(f"{folder} holds {found[name].name} and {path.name}, which mean the same case")
        found[name] = path
    if not found:
        raise FileNotFoundError(f"no .nii or .nii.gz file in {folder}")
    return found


def stem(path: Path) -> str:
    """The file's name without `.nii.gz`."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _description(root: Path) -> dict[str, Any]:
    """`dataset.json` of nnU-Net or the Decathlon; empty where there is none."""
    path = root / "dataset.json"
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold an object, as nnU-Net and the Decathlon write it")
    channels = found.get("channel_names") or found.get("modality") or {}
    if isinstance(channels, (dict, list)) and len(channels) > 1:
        raise ValueError(
            f"{path} has {len(channels)} channels ({channels}); ctssl takes one CT for each case"
        )
    return found


def _names(description: dict[str, Any]) -> dict[int, str]:
    """Names of the labels, from `{"tumour": 1}` (nnU-Net) or `{"1": "tumour"}` (Decathlon)."""
    labels, names = description.get("labels") or {}, {}
    for key, value in labels.items() if isinstance(labels, dict) else ():
        number, name = (value, key) if isinstance(value, int) else (key, value)
        if not re.fullmatch("[0-9]{1,3}", str(number)) or int(number) > 255 or not isinstance(name, str):
            raise ValueError(
                f"dataset.json: the label {str(key)[:60]!r}: {str(value)[:60]!r} is no number (0 to 255) and name; "
                "regions are not supported"
            )
        if int(number) > 0 and name != "ignore":
            names[int(number)] = name
    return names


def _decathlon(root: Path, entries: Any) -> list[Case]:
    cases = []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in ("image", "label")):
            raise ValueError(
                f"{root / 'dataset.json'}: an entry of training needs image and label, got {str(entry)[:80]}"
            )
        image, label = root / entry["image"], root / entry["label"]
        name = file_name(stem(image), where=str(root / "dataset.json"))
        first = image.with_name(image.name.replace(name, f"{name}_0000", 1))
        if not _is_there(image) and _is_there(first):  # nnU-Net 1 lists cases, and keeps channels
            image = first
        cases.append(Case(name, image, label, patient=name))
    return _existing(cases, root / "dataset.json")


def _table(path: Path) -> Dataset:
    """A CSV; files are found from its own folder."""
    columns, rows = read_table(path)
    if not {"image", "label"} <= set(columns):
        raise ValueError(f"{path} has the columns {columns}; needed: image, label")
    key = next((c for c in ("id", "case") if c in columns), None)
    cases = []
    for line, row in rows:
        if not row["image"] or not row["label"]:
            raise ValueError(f"{path}, line {line}: image or label is missing")
        image, label = path.parent / row["image"], path.parent / row["label"]
        name = file_name((row[key] if key else "") or stem(image), where=f"{path}, line {line}")
        facts = {c: v for c, v in row.items() if c not in ("image", "label", "patient", "split", key)}
        patient, split = row.get("patient") or name, row.get("split", "")
        cases.append(Case(name, image, label, patient=patient, split=split, facts=facts))
    return Dataset(_existing(cases, path))


def _existing(cases: list[Case], path: Path) -> list[Case]:
    """The cases, once each, with files that are there."""
    if not cases:
        raise ValueError(f"{path} names no case")
    missing = [file for case in cases for file in (case.image, case.label) if not _is_there(file)]
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


def _dicom(root: Path, roi: str | None) -> list[Case]:
    """A case for each patient's folder that holds a CT series and one RTSTRUCT or SEG."""
    cases = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name.startswith(".") or not any(file.is_file() for file in folder.rglob("*")):
            continue
        from ctssl.volume.dicom import drawn_on, find_series
        from ctssl.volume.dicom_file import text

        found = find_series(folder)
        if not found["RTSTRUCT"] and not found["SEG"]:
            continue
        name = file_name(folder.name, where=str(root))
        (image, header), (label, _) = drawn_on(found, folder)
        cases.append(
            Case(
                name,
                image,
                label,
                patient=text(header, "PatientID") or name,
                series=text(header, "SeriesInstanceUID"),
                roi=roi,
            )
        )
    return cases


def read_case(case: Case) -> tuple[Volume, Volume]:
    """Scan (HU) and mask (uint8) of a case, on one grid. Raises `ValueError` where they do not fit."""
    scan = read(case.image, series=case.series)
    if case.series is not None:
        from ctssl.volume.dicom_masks import read_drawn

        return scan, read_drawn(case.label, scan, roi=case.roi)
    mask = read(case.label)
    if scan.shape != mask.shape:
        raise ValueError(
            f"{case.name}: the scan has shape {scan.shape}, its mask {mask.shape}; resample the mask"
        )
    corners = np.array(
        [[x, y, z, 1] for x in (0, scan.shape[0]) for y in (0, scan.shape[1]) for z in (0, scan.shape[2])]
    )
    apart = float(np.abs(corners @ (scan.affine - mask.affine).T).max())
    if apart > 0.5 * min(scan.spacing_mm):
        raise ValueError(
            f"{case.name}: scan and mask lie up to {apart:.1f} mm apart (their affines differ); "
            "write the mask with the scan's affine"
        )
    values = np.unique(mask.array)
    if (
        not np.isfinite(values).all()
        or (values < 0).any()
        or (values != np.round(values)).any()
        or values.max() > 255
    ):
        raise ValueError(f"{case.name}: a mask holds whole numbers 0..255, this one has {values[:6]}")
    return scan, Volume(mask.array.astype(np.uint8), scan.affine, mask.name)


@dataclass(frozen=True)
class Problem(Finding):
    """What is wrong with one case; see `Finding`."""

    case: str = ""


def problems(
    dataset: Dataset,
    *,
    model: str | os.PathLike | None = None,
    whole: bool = True,
    progress: bool = False,
    look: Callable[[Case, Volume, Volume, set[int]], object] | None = None,
) -> list[Problem]:
    """Read every case and say what is wrong with it, errors first. An empty list: nothing found.

    `whole`: False for a part of some data, in which a label may be missing. `look` is called with each case that could be read,
    its scan, its mask and the labels in it.

    Errors: unreadable, not a CT in HU, scan and mask on different grids, unknown label values, the same scan twice, a patient
    in two splits, labels that are not 1, 2, ... Warnings: an empty mask, one that lies outside the body, a label that no other
    case has, what `ctssl.lint` doubts, and a scan on which `model`, or the encoder that it came from, was trained (exact copies
    only: a model's folder holds salted hashes of voxels and the SeriesInstanceUIDs that are known).
    """
    from tqdm import tqdm

    found: list[Problem] = []
    first: dict[str, Case] = {}
    held: dict[str, set[int]] = {}
    pretrained = seen_by(model)
    if model is not None and not pretrained:
        text = "nothing says which scans it was pretrained on, if it was: whether these are among them cannot be told"
        found.append(Problem("warning", "unknown-pretraining", text, str(model)))
    salt = pretrained.get("salt", "")
    known, labelled, uids = (set(pretrained.get(key, [])) for key in ("voxels", "labelled", "series"))
    for case in tqdm(dataset.cases, desc="checking cases", disable=not progress):

        def say(level: str, code: str, message: str, name: str = case.name) -> None:
            found.append(Problem(level, code, message.removeprefix(f"{name}: "), name))

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scan, mask = read_case(case)
        except (ValueError, OSError, EOFError, ImportError, MemoryError) as error:
            say("error", "unreadable", str(error))
            continue
        for finding in lint(scan):
            say(finding.level, finding.code, finding.message)
        values = {int(v) for v in np.unique(mask.array)} - {0}
        if not values:
            say("warning", "empty", "the mask is empty: nothing to learn or to judge, if there is a tumour")
        elif outside_body(scan, mask):
            say(
                "warning",
                "outside",
                "the whole mask lies in the air around the body; is it that of another patient?",
            )
        held[case.name] = values
        if look is not None:
            look(case, scan, mask, values)
        unknown = sorted(values - set(dataset.names)) if dataset.names else []
        if unknown:
            say(
                "error",
                "labels",
                f"the mask holds {unknown}, but dataset.json names only {sorted(dataset.names)}",
            )
        own = voxel_hash(scan)
        if own in first:
            say(
                "error",
                "duplicate",
                f"the same scan as {first[own].name}, voxel by voxel; keep one of the two",
            )
        first.setdefault(own, case)
        salted = voxel_hash(scan, salt)
        if salted in labelled:
            text = f"{model} was trained on this very scan, and a mask of it: do not test on it"
            say("warning", "pretrained", text)
        elif salted in known or case.series in uids:
            say(
                "warning",
                "pretrained",
                f"{model} was pretrained on this very scan (without its mask): do not test on it. Only exact copies, and series "
                "that are known, are found",
            )
    found += [] if dataset.names else _odd_labels(held, missing=0 if whole else MISSING)
    splits: dict[str, Case] = {}
    for case in dataset.cases:
        other = splits.setdefault(case.patient, case)
        if other.split != case.split:
            text = f"patient {case.patient} is in {other.split or 'no split'!r} ({other.name}) and {case.split or 'no split'!r}"
            found.append(Problem("error", "patient", text, case.name))
    return sorted(found, key=lambda problem: problem.level != "error")


def _odd_labels(held: dict[str, set[int]], *, missing: int) -> list[Problem]:
    """Where nothing says what the labels are: they must be 1, 2, ... (a mask of 0 and 255 has one label), none in one case
    alone. So many may be `missing`."""
    counts = Counter(value for values in held.values() for value in values)
    gaps = [value for value in counts if value > len(counts) + missing]
    found = []
    for name, values in held.items():
        if odd := sorted(values & set(gaps)):
            found.append(
                Problem(
                    "error",
                    "labels",
                    f"the mask holds {odd}, but the {len(counts)} labels of these masks must be "
                    f"{', '.join(map(str, range(1, len(counts) + 1)))}: renumber them",
                    name,
                )
            )
        elif lone := sorted(value for value in values if counts[value] == 1 and len(held) >= RARE):
            found.append(
                Problem("warning", "labels", f"no other mask holds {lone}; is it meant to be a label?", name)
            )
    return found


def refuse(found: list[Problem], cases: int) -> None:
    """Raise `ValueError` naming every error at once, if there is one."""
    errors = [f"  {p.case}: {p.message}" for p in found if p.level == "error"]
    if errors:
        broken = len({p.case for p in found if p.level == "error"})
        raise ValueError(f"{broken} of {cases} cases cannot be used:\n" + "\n".join(errors))


def voxel_hash(scan: Volume, salt: str = "") -> str:
    """sha256 of the HU values, rounded, and the shape."""
    digest = hashlib.sha256(f"{salt}{scan.shape}".encode())
    digest.update(np.clip(np.round(scan.array), -32768, 32767).astype("<i2").tobytes())
    return digest.hexdigest()


def seen_after(before: dict[str, Any], labelled: list[str], *, salt: str) -> str:
    """`seen.json` of what goes on from a model that has seen `before`, with scans of these salted hashes, and their masks."""
    found = {"salt": salt, "voxels": before.get("voxels", []), "series": before.get("series", [])}
    return (
        json.dumps({**found, "labelled": sorted({*before.get("labelled", []), *labelled})}, indent=1) + "\n"
    )


def seen_by(model: Any) -> dict[str, Any]:
    """`seen.json` of a model, or of the published encoder that it was fine-tuned from; empty where there is none."""
    from ctssl import hub
    from ctssl.zoo import MODELS

    if not isinstance(model, (str, os.PathLike)):
        return {}
    folder = hub.find(model)
    parent = hub.read_config(folder).get("parent")
    path = (hub.find(parent) if not (folder / SEEN).is_file() and parent in MODELS else folder) / SEEN
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or not all(
        isinstance(found.get(k, []), list) for k in ("voxels", "labelled", "series")
    ):
        raise ValueError(
            f"{path} is not the list of scans that a model was pretrained on; get the model again"
        )
    return found
