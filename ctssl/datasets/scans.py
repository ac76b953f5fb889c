"""Scans and masks of a folder, by name: one lister, one rule for names, for every command."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ctssl.files.walk import files_below, walk
from ctssl.scan_checks import ScanWarning
from ctssl.volume.channels import Channels
from ctssl.volume.foreign import ITK_FILES

NIFTI = (".nii", ".nii.gz")
NOT_DICOM = (*NIFTI, ".json", ".csv", ".md", ".txt", ".png", ".py", ".log")
MASKS = {"labels": "images", "labelsTr": "imagesTr", "labelsTs": "imagesTs"}
"""Folders of masks, and of the images that they lie beside."""


class Scan(NamedTuple):
    """A NIfTI file or the folder of a DICOM series, and whose it is."""

    path: Path
    patient: str


def stem(path: Path) -> str:
    """Return a file's name without `.nii` or `.nii.gz`, in whatever case.

    >>> stem(Path("P01_0000.nii.gz"))
    'P01_0000'
    """
    return re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def is_nifti(path: Path) -> bool:
    """Tell by its name whether a file is NIfTI; hidden files are not."""
    return path.name.lower().endswith(NIFTI) and not path.name.startswith(".")


def may_be_series(folder: Path) -> bool:
    """Tell whether a folder holds, at any depth, a file that DICOM could be; a folder of masks does not."""
    return any(
        not name.startswith(".") and not name.lower().endswith(NOT_DICOM) and Path(place, name).is_file()
        for place, _, names in walk(folder)  # which ends at the first one
        for name in names
    )


def list_scans(
    folder: Path,
    *,
    masks: dict[str, Path] | None = None,
    series: bool = False,
    unlabelled: bool = True,
    channels: bool = False,
) -> dict[str, Path]:
    """List the scans (or masks) that lie directly in a folder, by name.

    nnU-Net's `_0000` is not part of a name: where masks are known, unless it is in the mask's name too;
    elsewhere, where all files have it.

    Args:
        folder: the folder.
        masks: the masks of these scans, by name.
        series: list folders with DICOM files too.
        unlabelled: False for a folder of masks, whose subfolders are nobody's scans.
        channels: leave out the further channels of a case, which `channels_in` finds.

    Returns:
        Paths by name; empty where the folder holds nothing of the kind. NIfTI files in subfolders, and files of ITK
        (.mha, .nrrd), are left out with a `ScanWarning`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: two files mean one name, or (unless `channels`) a file is the second channel of a case.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files = [path for path in paths if is_nifti(path) and not path.is_dir()]
    if channels:
        aside = {path for further in channels_in(folder, masks).values() for path in further}
        files, paths = ([path for path in some if path not in aside] for some in (files, paths))
    if unlabelled:
        _check_channels(files, masks)
    numbered = all(stem(path).endswith("_0000") for path in files)
    found: dict[str, Path] = {}
    for path in paths:
        if path not in files and not (series and path.is_dir() and may_be_series(path)):
            continue
        name = stem(path)
        if (masks is not None and name not in masks) or (masks is None and numbered and unlabelled):
            name = name.removesuffix("_0000")
        if name in found:
            raise ValueError(
                f"{folder} holds {found[name].name} and {path.name}, which mean the same case; rename one"
            )
        found[name] = path
    if unlabelled:
        _warn_of_other_files(folder, paths)
        _warn_of_subfolders(folder, [path for path in paths if path.is_dir() and path not in found.values()])
    return found


def _warn_of_other_files(folder: Path, paths: list[Path]) -> None:
    """Warn of scans of another format, which only single files may have."""
    others = [path.name for path in paths if path.name.lower().endswith(ITK_FILES)]
    if others:
        warnings.warn(
            f"{folder} holds {len(others)} scans that are not NIfTI ({', '.join(others[:5])}{' ...' if others[5:] else ''}), "
            "which are left out; convert them to .nii.gz",
            ScanWarning,
            stacklevel=4,
        )


def require_scans(
    folder: Path, *, masks: dict[str, Path] | None = None, unlabelled: bool = True, channels: bool = False
) -> dict[str, Path]:
    """Call `list_scans`, and raise `FileNotFoundError` where there is no NIfTI file."""
    found = list_scans(folder, masks=masks, unlabelled=unlabelled, channels=channels)
    if not found:
        raise FileNotFoundError(f"no .nii or .nii.gz file in {folder}")
    return found


def check_masks(scans: dict[str, Path], masks: dict[str, Path], images: Path, labels: Path) -> None:
    """Raise `FileNotFoundError` unless every scan of the folder `images` has a mask of its name in `labels`; warn of masks
    without a scan."""
    lonely = sorted(set(scans) - set(masks))
    if lonely:
        raise FileNotFoundError(
            f"{len(lonely)} scans in {images} have no mask of their name in {labels}: "
            f"{', '.join(lonely[:5])}{' ...' if len(lonely) > 5 else ''}"
        )
    if spare := sorted(set(masks) - set(scans)):
        warnings.warn(
            f"{len(spare)} masks in {labels} have no scan of their name in {images} and are left out: "
            f"{', '.join(spare[:5])}{' ...' if len(spare) > 5 else ''}",
            ScanWarning,
            stacklevel=3,
        )


def find_scans(folder: Path) -> list[Scan]:
    """Search a folder to the bottom: every NIfTI file but masks beside images, and every folder of CT images.

    Each scan counts as its own patient (by its path), unless the DICOM header has a PatientID.
    """
    from ctssl.volume.dicom_file import get_text

    found: list[Scan] = []
    for place, folders, names in walk(folder):
        folders[:] = [name for name in folders if not (name in MASKS and MASKS[name] in folders)]
        files = [Path(place, name) for name in names if not name.startswith(".")]
        found += [Scan(path, str(path.relative_to(folder))) for path in files if is_nifti(path)]
        images = [path for path in files if not path.name.lower().endswith(NOT_DICOM)]
        if (header := _first_ct(images)) is not None:
            own = get_text(header, "PatientID") or str(Path(place).relative_to(folder))
            found.append(Scan(Path(place), own))
    return found


def _first_ct(files: list[Path]) -> Any:
    """Return the header of the first file of a CT; None where there is none: no masks, no PET, no MR, no DICOMDIR."""
    from ctssl.volume.dicom_file import DIRECTORY, get_text, read_header

    for header in map(read_header, files):
        if header is None or get_text(header.file_meta, "MediaStorageSOPClassUID") == DIRECTORY:
            continue
        if get_text(header, "Modality", "CT") == "CT":
            return header
    return None


def channels_in(folder: Path, masks: Mapping[str, Path] | None = None) -> dict[Path, tuple[Path, ...]]:
    """Find the channels `CASE_0001`, `CASE_0002`, ... beside each `CASE_0000` of a folder, as nnU-Net names them.

    Args:
        folder: the folder.
        masks: the masks of these scans, by name. A scan with a mask of its very name is a case of its own.

    Returns:
        The further channels by the first one; only of cases that have any.

    Raises `FileNotFoundError` where a channel between two others is missing.
    """
    of_case: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"(.+)_(\d{4})", stem(path))
        if match and is_nifti(path) and stem(path) not in (masks or {}):
            of_case.setdefault(match[1], {})[int(match[2])] = path
    found = {}
    for name, numbered in of_case.items():
        if 0 not in numbered or len(numbered) == 1:
            continue
        if missing := [n for n in range(len(numbered)) if n not in numbered]:
            last = numbered[max(numbered)]
            raise FileNotFoundError(
                f"{folder}: {name}_{missing[0]:04d} is missing, but {last.name} is there; add it"
            )
        found[numbered[0]] = tuple(numbered[n] for n in range(1, len(numbered)))
    return found


def with_channels(scans: Mapping[str, Path]) -> dict[str, Path | Channels]:
    """Return scans by name, those with further channels beside them (`channels_in`) as `Channels`."""
    folders = {path.parent for path in scans.values() if is_nifti(path)}
    others = {
        first: rest for folder in folders if folder.is_dir() for first, rest in channels_in(folder).items()
    }
    return {name: Channels(path, *others[path]) if path in others else path for name, path in scans.items()}


def _check_channels(files: list[Path], masks: dict[str, Path] | None) -> None:
    """Raise `ValueError` for the second channel of a case, as nnU-Net writes it."""
    names = {stem(path) for path in files}
    for path in files:
        whose, _, number = stem(path).rpartition("_")
        second = re.fullmatch(r"\d{4}", number) and number != "0000" and stem(path) not in (masks or {})
        if second and (f"{whose}_0000" in names or whose in (masks or {})):
            cure = (
                "this takes one CT for each case, CASE_0000.nii.gz alone"
                if masks is None
                else "give it a mask of its name if it is a scan of its own; the mask of CASE_0000.nii.gz and its further "
                "channels is CASE.nii.gz"
            )
            raise ValueError(f"{path} is a second channel; {cure}")


def _warn_of_subfolders(folder: Path, subfolders: list[Path]) -> None:
    inside = [path for sub in subfolders for path in files_below(sub) if is_nifti(path)]
    if inside:
        warnings.warn(
            f"{folder}: left out {len(inside)} NIfTI files in subfolders, first {inside[0].relative_to(folder)}; "
            "move them up to use them",
            ScanWarning,
            stacklevel=3,
        )
