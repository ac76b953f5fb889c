"""A folder of scans under shifts, as files; a folder that was begun is finished."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ctssl.datasets.scans import list_scans
from ctssl.files.atomic import check_apart, disk_is_full
from ctssl.lint import ScanWarning, check
from ctssl.shifts import SHIFTS, check_shift, shift_all
from ctssl.shifts.stamps import CLEAN, content, differs, named, stamp_in, stamp_of, stamped, together
from ctssl.volume.volume import Volume, read


class Shifted(NamedTuple):
    """`written`: the files that are there now. `failed`: why a scan failed, by name."""

    written: list[Path]
    failed: dict[str, str]


def every_shift(
    names: Iterable[str] = tuple(SHIFTS), severities: Iterable[int] = (1, 3, 5)
) -> dict[str, dict[str, int]]:
    """Return every shift at every severity, by the name of its folder, for `shift_folder`; `clean` is first.

    >>> list(every_shift(["dose"], [2]))
    ['clean', 'dose-2']
    """
    severities = tuple(severities)
    for name in (names := tuple(names)):
        for severity in severities:
            check_shift(name, severity)
    return {CLEAN: {}} | {named(name, s): {name: s} for name in names for s in severities}


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

    Files that an earlier call wrote of the same scan, with the same shifts and seed, are left.

    Args:
        scans: a folder with NIfTI files and DICOM series, or paths by name.
        out: folder for the results, `out/PLACE/NAME.nii.gz`.
        shifts: by place (a folder in `out`; "" for `out` itself), severities (1 to 5) by the name of the
            shift; see `every_shift`.
        seed: of the noise.
        overwrite: replace what an earlier call wrote otherwise.

    Raises:
        FileExistsError: a file is there that was not written by this function, or otherwise.
        ValueError: a result would replace a scan that is read, or there is no such shift.
        OSError: the disk is full. A scan that fails otherwise does not stop the others.
    """
    out = Path(out)
    listed = scans if isinstance(scans, Mapping) else list_scans(Path(scans), series=True)
    targets = {(place, name): out / place / f"{name}.nii.gz" for name in listed for place in shifts}
    check_apart(list(targets.values()), list(listed.values()))
    stamps = {path: stamp_of(together(dict(shifts[place])), seed, "") for (place, _), path in targets.items()}
    known = _known(stamps, overwrite)
    written, failed = [], {}
    bar = tqdm(total=len(targets), desc="shifting", disable=not progress)
    for name, path in listed.items():
        try:
            scan = check(read(path))
            for place, severities in shifts.items():
                target = targets[place, name]
                stamp = stamp_of(together(dict(severities)), seed, content(scan))
                if not overwrite and known.get(target, stamp) != stamp:
                    raise FileExistsError(
                        f"{target} exists, made of another scan; choose another folder, or add --overwrite"
                    )
                if overwrite or target not in known:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    found = shift_all(scan, dict(severities), seed=seed)
                    warn_if_unchanged(scan, found, dict(severities))
                    stamped(found, stamp).save(target, overwrite=overwrite)
                written.append(target)
                bar.update()
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and disk_is_full(error):
                raise
            failed[name] = str(error)
    bar.close()
    return Shifted(written, failed)


def warn_if_unchanged(scan: Volume, found: Volume, severities: dict[str, int]) -> None:
    """Warn (`ScanWarning`) where shifts left a scan as it was, as its voxels are too coarse for them."""
    if severities and (found.array == scan.array).all():
        text = " x ".join(f"{s:.3g}" for s in scan.spacing_mm)
        message = f"{scan.name}: {together(severities)} changes nothing on voxels of {text} mm"
        warnings.warn(message, ScanWarning, stacklevel=3)


def _known(wanted: Mapping[Path, str], overwrite: bool) -> dict[Path, str]:
    """The files that are there already, with their stamps. `wanted`: stamps without their scan. Raises
    `FileExistsError` for what was not written here, such as masks, and, unless it is replaced, for what was
    written otherwise."""

    def told(path: Path) -> str:
        try:
            return stamp_in(read(path))
        except (ValueError, OSError):  # no scan at all
            return ""

    known = {path: told(path) for path in wanted if path.exists()}
    for path, stamp in known.items():
        if not stamp:
            raise FileExistsError(
                f"{path} exists, and nothing in it proves that `ctssl shift` wrote it; choose another folder"
            )
        why = differs(stamp.rpartition(" of ")[0] + " of ", wanted[path])
        if why and not overwrite:
            raise FileExistsError(f"{path} exists, and {why}; choose another folder, or add --overwrite")
    return known
