"""Write a folder of scans under shifts, as files; an interrupted run is completed."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ctssl.datasets.scans import list_scans
from ctssl.files.atomic import check_apart, disk_is_full
from ctssl.files.names import check_path
from ctssl.scan_checks import ScanWarning, check
from ctssl.shifts import SHIFTS, check_shift, shift_all
from ctssl.shifts.stamps import (
    CLEAN,
    add_stamp,
    combined_name,
    describe_difference,
    hash_content,
    make_stamp,
    read_stamp,
    shift_name,
)
from ctssl.volume.volume import Volume, read


class Shifted(NamedTuple):
    """Result of `shift_folder`: `written`, the files that exist now, and `failed`, the error of each failed
    scan by name.
    """

    written: list[Path]
    failed: dict[str, str]


def every_shift(
    names: Iterable[str] = tuple(SHIFTS), severities: Iterable[int] = (1, 3, 5)
) -> dict[str, dict[str, int]]:
    """Return every shift at every severity by folder name, for `shift_folder`; `clean` comes first.

    >>> list(every_shift(["dose"], [2]))
    ['clean', 'dose-2']
    """
    severities = tuple(severities)
    for name in (names := tuple(names)):
        for severity in severities:
            check_shift(name, severity)
    return {CLEAN: {}} | {shift_name(name, s): {name: s} for name in names for s in severities}


def shift_folder(
    scans: str | Path | Mapping[str, Path],
    out: str | Path,
    shifts: Mapping[str, Mapping[str, int]],
    *,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = False,
) -> Shifted:
    """Write every scan of a folder under shifts.

    Files that an earlier call wrote from the same scan, with the same shifts and seed, are kept.

    Args:
        scans: a folder with NIfTI files and DICOM series, or paths by name.
        out: folder for the results, `out/PLACE/NAME.nii.gz`.
        shifts: for each place (a folder in `out`; "" for `out` itself) the severity (1 to 5) of each shift;
            see `every_shift`.
        seed: seed of the noise.
        overwrite: replace files that an earlier call wrote with other settings.
        progress: show a progress bar.

    Returns:
        The files, and the scans that failed: a failing scan does not stop the others.

    Raises:
        FileExistsError: a file exists that this function did not write, or wrote with other settings.
        ValueError: a result would replace an input scan or has too long a name, or a shift is unknown.
        OSError: the disk is full.
    """
    out = Path(out)
    listed = scans if isinstance(scans, Mapping) else list_scans(Path(scans), series=True)
    targets = {(place, name): out / place / f"{name}.nii.gz" for name in listed for place in shifts}
    for target in targets.values():
        check_path(target)
    check_apart(list(targets.values()), list(listed.values()))
    stamps = {
        path: make_stamp(combined_name(dict(shifts[place])), seed, "") for (place, _), path in targets.items()
    }
    known = _known(stamps, overwrite)
    written, failed = [], {}
    bar = tqdm(total=len(targets), desc="shifting", disable=not progress)
    for name, path in listed.items():
        try:
            scan = check(read(path))
            for place, severities in shifts.items():
                target = targets[place, name]
                stamp = make_stamp(combined_name(dict(severities)), seed, hash_content(scan))
                if not overwrite and known.get(target, stamp) != stamp:
                    raise FileExistsError(
                        f"{target} exists and was made from another scan; choose another folder, or "
                        "pass --overwrite"
                    )
                if overwrite or target not in known:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shifted = shift_all(scan, dict(severities), seed=seed)
                    warn_if_unchanged(scan, shifted, dict(severities))
                    add_stamp(shifted, stamp).save(target, overwrite=overwrite)
                written.append(target)
                bar.update()
        except (ValueError, OSError) as error:
            if disk_is_full(error):
                raise
            failed[name] = str(error)
    bar.close()
    return Shifted(written, failed)


def warn_if_unchanged(scan: Volume, shifted: Volume, severities: dict[str, int]) -> None:
    """Warn (`ScanWarning`) if shifts did not change a scan because its voxels are too coarse."""
    if severities and (shifted.array == scan.array).all():
        text = " x ".join(f"{s:.3g}" for s in scan.spacing_mm)
        message = f"{scan.name}: {combined_name(severities)} has no effect on voxels of {text} mm"
        warnings.warn(message, ScanWarning, stacklevel=3)


def _known(wanted: Mapping[Path, str], overwrite: bool) -> dict[Path, str]:
    """Return the existing files with their stamps.

    `wanted`: stamps without their scan. Raises `FileExistsError` for files that were not written here, such
    as masks, and, unless `overwrite`, for files written with other settings.
    """

    def stamp_at(path: Path) -> str:
        try:
            return read_stamp(read(path))
        except (ValueError, OSError):  # not a scan
            return ""

    known = {path: stamp_at(path) for path in wanted if path.exists()}
    for path, stamp in known.items():
        if not stamp:
            raise FileExistsError(
                f"{path} exists but has no valid stamp of `ctssl shift`; choose another folder"
            )
        why = describe_difference(stamp.rpartition(" of ")[0] + " of ", wanted[path])
        if why and not overwrite:
            raise FileExistsError(f"{path} exists, but {why}; choose another folder, or pass --overwrite")
    return known
