"""A folder of scans to a folder of masks, and what stands beside each mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctssl.files.atomic import apart, disk_is_full, write_whole
from ctssl.files.names import file_name, part_of_name
from ctssl.files.text import read_json
from ctssl.volume.volume import Volume, read

if TYPE_CHECKING:
    from ctssl.heads.segmenter import Segmenter
from ctssl.inference.masks import mask_and_maps, probabilities, segment
from ctssl.inference.memory import MEMORY_GB


def segment_all(
    model: Segmenter,
    scans: dict[str, Path],
    out: Path,
    *,
    overlap: float = 0.5,
    tta: bool = False,
    max_memory_gb: float = MEMORY_GB,
    with_probabilities: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, str]:
    """Write `out/NAME.nii.gz` (and `NAME.ctssl.json`, `probabilities/NAME_LABEL.nii.gz`) for every scan; what
    went wrong with which.

    A scan that fails does not stop the others, a full disk does (`OSError`). `resume` leaves masks that are
    there as they are, and makes what maps are missing where they are wanted. Raises `ValueError`, before any
    work, where `out` is the folder of the scans themselves, and for masks to go on from that another model or
    other settings made.
    """
    from tqdm import tqdm

    targets = [out / f"{file_name(name)}.nii.gz" for name in scans]
    apart(targets, list(scans.values()))
    for target in targets:
        if (
            resume
            and target.exists()
            and (why := of_another(target, made_by(model, overlap=overlap, tta=tta)))
        ):
            raise ValueError(
                f"{target} was made otherwise: {why}; choose another folder, or overwrite the masks"
            )
    out.mkdir(parents=True, exist_ok=True)
    maps = out / "probabilities"
    if with_probabilities:
        maps.mkdir(exist_ok=True)
    failed = {}
    for name, path in tqdm(scans.items(), desc="scans", disable=not progress):
        target = out / f"{name}.nii.gz"
        places, masked = maps_of(model, maps, name) if with_probabilities else {}, resume and target.exists()
        if masked and all(file.exists() for file in places.values()):
            continue
        try:
            scan, how = read(path), {"overlap": overlap, "tta": tta, "max_memory_gb": max_memory_gb}
            if masked:  # a mask that is there stays as it is
                for label, one in probabilities(model, scan, **how).items():
                    one.save(places[label], overwrite=True)
                continue
            write_mask(
                model,
                scan,
                target,
                maps_in=maps,
                with_probabilities=with_probabilities,
                overwrite=overwrite or resume,
                **how,
            )
        except (ValueError, OSError, EOFError, RuntimeError, MemoryError, ImportError) as error:
            if disk_is_full(error):  # hours of work for nothing, if it went on
                raise
            failed[name] = f"{type(error).__name__}: {error}" if not str(error) else str(error)
    return failed


def maps_of(model: Segmenter, folder: Path, name: str) -> dict[str, Path]:
    """Where the maps of a scan's labels go."""
    return {label: folder / f"{name}_{part_of_name(label)}.nii.gz" for label in model.labels.values()}


def write_mask(
    model: Segmenter,
    scan: Volume,
    target: Path,
    *,
    overlap: float = 0.5,
    tta: bool = False,
    max_memory_gb: float = MEMORY_GB,
    with_probabilities: bool = False,
    maps_in: Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> tuple[Volume, dict[str, Any]]:
    """The mask as `target`, beside it what it holds as JSON (labels, ml, model), and on demand a map of each
    label, there too or in the folder `maps_in`."""
    how: dict[str, Any] = {
        "overlap": overlap,
        "tta": tta,
        "max_memory_gb": max_memory_gb,
        "progress": progress,
    }
    folder, name = target.parent, target.name.removesuffix(".gz").removesuffix(".nii")
    maps: dict[str, Volume] = {}
    places = maps_of(model, maps_in or folder, name)
    if with_probabilities and len(set(places.values())) < len(model.labels):
        raise ValueError(
            f"the labels {list(model.labels.values())} would share files; give them names that differ in letters"
        )
    taken = [path for path in (target, *(places.values() if with_probabilities else ())) if path.exists()]
    if taken and not overwrite:
        raise FileExistsError(f"{taken[0]} exists; choose another name, or overwrite it on purpose")
    if with_probabilities:
        mask, maps = mask_and_maps(model, scan, **how)
    else:
        mask = segment(model, scan, **how)
    ml = abs(float(np.linalg.det(mask.affine[:3, :3]))) / 1000
    volumes = {label: round(float((mask.array == k).sum()) * ml, 3) for k, label in model.labels.items()}
    facts = {
        "labels": model.labels,
        "volume_ml": volumes,
        "scan": scan.name,
        "model": model.spec.name if model.spec else "",
        **made_by(model, overlap=overlap, tta=tta),
    }
    for label, one in maps.items():
        one.save(places[label], overwrite=overwrite)
    write_whole(folder / f"{name}.ctssl.json", json.dumps(facts, indent=1) + "\n")
    mask.save(target, overwrite=overwrite)  # last: a mask that is there is complete
    return mask, facts


def made_by(model: Segmenter, *, overlap: float, tta: bool) -> dict[str, Any]:
    """What a mask follows from, beside the scan; it stands beside the mask."""
    return {
        "sha256": model.spec.sha256 if model.spec else "",
        "threshold": model.threshold,
        "overlap": overlap,
        "tta": tta,
    }


def of_another(target: Path, wanted: dict[str, Any]) -> str:
    """In what a mask that is there was made otherwise than is wanted now; empty if in nothing."""
    beside = target.with_name(f"{target.name.removesuffix('.nii.gz')}.ctssl.json")
    told = read_json(beside) if beside.is_file() else None
    if not isinstance(told, dict):
        return f"nothing beside it says what made it ({beside.name} is missing)"
    names = {"sha256": "model"}
    away = [
        f"{names.get(key, key)} {str(told.get(key, value))[:12]}, now {str(value)[:12]}"
        for key, value in wanted.items()
        if told.get(key, value) != value
    ]
    return "; ".join(away)
