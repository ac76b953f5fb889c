"""A folder of scans to a folder of masks, and the record beside each mask.

Beside `NAME.nii.gz` stands `NAME.ctssl.json`: which model made it, how, of which scan, and the hashes of the files that were
written. It is written twice: without hashes before the first result (so that a run that was killed knows its own leftovers),
and whole after the last one. A mask is taken over by `resume` only where the whole record says that it is the one wanted now.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.datasets.scans import list_scans, stem, with_channels
from ctssl.files.atomic import check_apart, disk_is_full, file_sha256, write_whole
from ctssl.files.names import check_case_name, check_path, check_writable, safe_label
from ctssl.files.running import clear_parts
from ctssl.files.text import read_json
from ctssl.files.versions import versions
from ctssl.hub.provenance import weights_of
from ctssl.inference.masks import Network, mask_and_maps, segment, slices_within_memory
from ctssl.inference.masks import probabilities as compute_maps
from ctssl.inference.memory import read_within
from ctssl.inference.windows import Windows
from ctssl.scan_checks import ScanWarning
from ctssl.volume.channels import Channels
from ctssl.volume.volume import Volume, files_of, read
from ctssl.zoo import Preprocess, channels_of

WRITING, WHOLE = "writing", "whole"  # state of a record
LATER = ("window", "preprocess")  # not in the records of earlier versions
OPTIONAL = ("bf16", "compiled")  # windows: a record names them where they were used
TODO, MAPS, DONE = "to do", "maps are missing", "done"  # state of the results of a scan


@dataclass(frozen=True)
class Target:
    """Where the results of one scan go: the mask, the map of each label, the record."""

    mask: Path
    maps: Mapping[str, Path] = field(default_factory=dict)

    @property
    def record(self) -> Path:
        """`NAME.ctssl.json` beside the mask."""
        return self.mask.with_name(f"{stem(self.mask)}.ctssl.json")


def target_of(model: Network, mask: Path, *, maps_in: Path | None = None, with_maps: bool = False) -> Target:
    """Name the files of one scan. Raises `ValueError` where two labels would share a file, and for names
    that are too long.

    Args:
        mask: file of the mask.
        maps_in: folder for the maps. None: beside the mask.
        with_maps: whether there are maps of probabilities, `NAME_LABEL.nii.gz`.
    """
    if not with_maps:
        return _writable(Target(mask))
    folder = maps_in or mask.parent
    maps = {label: folder / f"{stem(mask)}_{safe_label(label)}.nii.gz" for label in model.labels.values()}
    if len(set(maps.values())) < len(maps):
        raise ValueError(f"the labels {list(maps)} would share files; give them names that differ in letters")
    return _writable(Target(mask, maps))


def _writable(target: Target) -> Target:
    for path in (target.mask, target.record, *target.maps.values()):
        check_path(path)
    return target


def segment_folder(
    model: Network,
    scans: str | Path | Mapping[str, Path],
    out: str | Path,
    *,
    windows: Windows = Windows(),
    probabilities: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, str]:
    """Segment every scan of a folder.

    Writes `out/NAME.nii.gz`, `NAME.ctssl.json` and, with `probabilities`, `out/probabilities/NAME_LABEL.nii.gz`.
    A scan that fails does not stop the others, a full disk does (`OSError`).

    Args:
        model: a segmenter.
        scans: a folder with NIfTI files and DICOM series, or paths by name.
        out: folder for the masks.
        windows: how a scan goes through the model.
        probabilities: also write a map of each label.
        resume: leave results that are whole and of this model, these settings and this very scan.
        overwrite: replace results that are there.

    Returns:
        Why scans failed, by name; empty where all have their mask.

    Raises:
        FileExistsError: there are results, and neither `resume` nor `overwrite` is set.
        FileNotFoundError: there are no scans.
        ValueError: before any work, where results would replace the scans themselves, or where a result to
            go on from was made by another model, with other settings or of another scan.
    """
    from tqdm import tqdm

    out, wanted = Path(out), channels_of(model)
    listed = scans if isinstance(scans, Mapping) else list_scans(Path(scans), series=True, channels=True)
    if not listed:
        raise FileNotFoundError(
            f"no scans in {scans}: give .nii, .nii.gz, a DICOM series, or a folder of them"
        )
    targets = {
        name: target_of(
            model,
            out / f"{check_case_name(name)}.nii.gz",
            maps_in=out / "probabilities",
            with_maps=probabilities,
        )
        for name in listed
    }
    _check_targets(targets, resume=resume and not overwrite)
    check_apart([file for one in targets.values() for file in (one.mask, one.record)], list(listed.values()))
    sources = with_channels(listed)
    _check_channels(listed, sources, wanted)
    there = [name for name, one in targets.items() if one.mask.exists()]
    if there and not resume and not overwrite:
        raise FileExistsError(
            f"{out} holds masks of {len(there)} of these scans; add --resume or --overwrite"
        )
    check_writable(out)
    states = {
        name: TODO if overwrite else _state(one, model, windows, sources[name])
        for name, one in targets.items()
    }
    (out / "probabilities" if probabilities else out).mkdir(parents=True, exist_ok=True)
    failed = {}
    for name, source in tqdm(sources.items(), desc="scans", disable=not progress):
        if states[name] == DONE:
            continue
        try:
            if states[name] == MAPS:
                _write_maps(model, source, targets[name], windows)
            else:
                write_mask(model, source, targets[name], windows=windows, overwrite=overwrite or resume)
        except (ValueError, OSError, EOFError, RuntimeError, MemoryError, ImportError) as error:
            if disk_is_full(error):  # hours of work for nothing, if it went on
                raise
            failed[name] = str(error) or type(error).__name__
            if progress:
                tqdm.write(f"{name}: {failed[name]}", file=sys.stderr)
    return failed


def _check_targets(targets: Mapping[str, Target], *, resume: bool) -> None:
    """Raise `ValueError` where the results of two scans would share a file, such as a map of `P1_left` and one of `P1`, and
    `FileExistsError` where a resumed run would replace a map that is not of an earlier one."""
    owner: dict[Path, str] = {}
    for name, target in targets.items():
        for path in (target.mask, target.record, *target.maps.values()):
            if owner.setdefault(path, name) != name:
                raise ValueError(
                    f"{name} and {owner[path]} would share {path.name}; rename one of these scans"
                )
    for target in targets.values() if resume else ():
        told = read_json(target.record) if target.record.is_file() else {}
        begun = isinstance(told, dict) and told.get("state") == WRITING
        known = told.get("files", {}) if isinstance(told, dict) else {}
        for path in target.maps.values():
            if path.exists() and not begun and path.name not in known:
                raise FileExistsError(
                    f"{path} is not of an earlier run; move it, choose another folder, or add --overwrite"
                )


def _check_channels(listed: Mapping[str, Path], sources: Mapping[str, Any], wanted: int) -> None:
    """Raise `ValueError` for a scan with another number of channels than the model takes."""
    for name, source in sources.items():
        count = len(source.images) if isinstance(source, Channels) else 1
        if count != wanted:
            cure = "name those of a case CASE_0000.nii.gz, CASE_0001.nii.gz, ..."
            if count > 1:
                cure = "if CASE_0000, CASE_0001, ... are scans of their own, rename them, such as CASE-0000.nii.gz"
            raise ValueError(f"{listed[name]}: {count} channels, the model takes {wanted}; {cure}")


def write_mask(
    model: Network,
    source: Path | Channels | Volume,
    target: Target | Path,
    *,
    windows: Windows = Windows(),
    overwrite: bool = False,
    picture: Path | None = None,
    draw: Callable[[Volume, Volume, Path], object] | None = None,
    progress: bool = False,
) -> tuple[Volume, dict[str, Any]]:
    """Segment one scan and write its mask, the maps that `target` names, a picture if there is one to `draw` (scan,
    mask, file), and the record, in this order.

    Returns:
        The mask, and the record (labels, volumes in ml, model, settings, hashes).

    Raises `FileExistsError` for files that are there, unless they may be overwritten, or are what a run that was
    killed left of this mask.
    """
    target = target if isinstance(target, Target) else Target(target)
    if is_unfinished(target, picture):
        overwrite = True
        clear_leftovers(target, picture)
    taken = [path for path in (target.mask, target.record, *target.maps.values()) if path.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{taken[0]} exists; choose another name, or overwrite it on purpose")
    maps_kept = len(model.labels) if target.maps else 0
    scan, _ = read_within(
        source, lambda grid: slices_within_memory(model, grid, windows.max_memory_gb, maps=maps_kept)
    )
    facts, began = made_by(model, windows, source), time.monotonic()
    if target.maps:
        mask, maps = mask_and_maps(model, scan, windows, progress=progress)
    else:
        mask, maps = segment(model, scan, windows, progress=progress), {}
    volumes = {
        label: round(float((mask.array == k).sum()) * mask.voxel_ml, 6) for k, label in model.labels.items()
    }
    network: Any = model
    record = {
        "labels": model.labels,
        "volume_ml": volumes,
        "scan": scan.name,
        "model": model.spec.name if model.spec else "",
        **facts,
        "device": str(next(network.parameters()).device),
        "seconds": round(time.monotonic() - began, 1),
        "versions": versions(),
    }
    begin(target, record, picture)
    mask.save(target.mask, overwrite=overwrite)
    for label, one in maps.items():
        one.save(target.maps[label], overwrite=overwrite)
    if picture is not None and draw is not None:
        draw(scan, mask, picture)
    hashes = {path.name: file_sha256(path) for path in (target.mask, *target.maps.values())}
    record |= {"files": hashes, "state": WHOLE}
    write_whole(target.record, json.dumps(record, indent=1) + "\n")  # last: what it names is complete
    return mask, record


def begin(target: Target, record: dict[str, Any], picture: Path | None) -> None:
    """Write the record of results that are about to be written, so that a run that is killed knows its own leftovers."""
    begun = {**record, "picture": str(picture and picture.absolute()), "state": WRITING}
    write_whole(target.record, json.dumps(begun, indent=1) + "\n")


def clear_leftovers(target: Target, picture: Path | None) -> None:
    """Remove what killed runs left of the files of these results while they wrote them."""
    for path in (target.mask, target.record, *target.maps.values(), *([picture] if picture else [])):
        clear_parts(path.parent, path.name)


def is_unfinished(target: Target, picture: Path | None = None) -> bool:
    """Return whether a run was killed while it wrote these results: its record says so."""
    if not target.record.is_file():
        return False
    told = read_json(target.record)
    if not isinstance(told, dict) or told.get("state") != WRITING:
        return False
    return picture is None or not picture.exists() or told.get("picture") == str(picture.absolute())


def made_by(model: Network, windows: Windows, source: Path | Channels | Volume) -> dict[str, Any]:
    """Return what a mask depends on: model, threshold, windows, and the content of the scan."""
    return {
        "sha256": weights_of(model),
        "threshold": model.threshold,
        "window": model.window,
        "preprocess": json.loads(json.dumps((model.spec.preprocess if model.spec else Preprocess()).entry())),
        "overlap": windows.overlap,
        "tta": windows.tta,
        **{key: True for key in OPTIONAL if getattr(windows, key)},
        "scan_sha256": scan_sha256(source),
    }


def scan_sha256(source: Path | Channels | Volume) -> str:
    """Hash the file of a scan, the files of a series or of all channels, or a volume's voxels and affine."""
    if isinstance(source, Channels):
        hashes = "".join(
            scan_sha256(image if isinstance(image, Volume) else Path(image)) for image in source.images
        )
        return hashlib.sha256(hashes.encode()).hexdigest()
    if isinstance(source, Volume):
        digest = hashlib.sha256(str((source.shape, np.round(source.affine, 4).tolist())).encode())
        for array in (source.array, *source.extra):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
    files = [file for file in files_of(Path(source)) if file.is_file()]
    if len(files) == 1 and files[0] == Path(source):
        return file_sha256(files[0])
    return hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()


def _write_maps(model: Network, source: Path | Channels, target: Target, windows: Windows) -> None:
    """Add the maps to a mask that stays as it is."""
    record = read_json(target.record)
    record["files"] |= {
        path.name: None for path in target.maps.values()
    }  # so that they are known after a kill
    write_whole(target.record, json.dumps(record, indent=1) + "\n")
    hashes = {}
    for label, one in compute_maps(model, source, windows).items():
        one.save(target.maps[label], overwrite=True)
        hashes[target.maps[label].name] = file_sha256(target.maps[label])
    record["files"] |= hashes
    write_whole(target.record, json.dumps(record, indent=1) + "\n")


def _state(target: Target, model: Network, windows: Windows, scan: Path | Channels) -> str:
    """Return what is left to do for a scan. Raises `ValueError` for results that were made otherwise."""
    if not target.mask.exists() and not target.record.exists():
        return TODO
    told = read_json(target.record) if target.record.is_file() else None
    if not isinstance(told, dict) or told.get("state") not in (WRITING, WHOLE):
        raise ValueError(
            f"{target.mask if target.mask.exists() else target.record}: nothing beside it says what made it "
            f"({target.record.name} is missing, or is not of ctssl); choose another folder, or overwrite it"
        )
    if told["state"] == WRITING:
        return TODO  # of a run that was killed: begun again
    names = {"sha256": "model", "scan_sha256": "scan"}
    away = [
        f"{names.get(key, key)} {str(told.get(key))[:12]}, now {str(value)[:12]}"
        for key, value in made_by(model, windows, scan).items()
        if told.get(key) != value and not (key in LATER and key not in told)
    ]
    away += [f"made with {key}" for key in OPTIONAL if told.get(key) and not getattr(windows, key)]
    if away:
        raise ValueError(
            f"{target.mask} was made otherwise: {'; '.join(away)}; choose another folder, or overwrite the masks"
        )
    files = told.get("files")
    files = files if isinstance(files, dict) else {}
    results = [target.mask, *target.maps.values()]
    for path in results:
        if path.exists() and files.get(path.name) and file_sha256(path) != files[path.name]:
            try:
                read(path)
            except (ValueError, OSError, EOFError) as error:
                raise ValueError(
                    f"{path} was damaged after it was written; remove it and start again ({error})"
                ) from error
            warnings.warn(
                f"{path} was changed after it was written; it is left as it is", ScanWarning, stacklevel=3
            )
    if not target.mask.exists() or target.mask.name not in files:
        return TODO
    return DONE if all(path.exists() and files.get(path.name) for path in results) else MAPS
