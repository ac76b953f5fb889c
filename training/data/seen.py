"""Record the scans that a pretraining saw; `ctssl check --model` and `ctssl finetune` read the record."""

import json
from pathlib import Path

from tqdm import tqdm

import ctssl
from ctssl.datasets.seen import seen_by
from ctssl.volume.dicom import find_series
from ctssl.volume.dicom_file import get_text
from ctssl.volume.volume import voxel_hash
from training.data.corpora import NAMES, data_folder
from training.data.manifest import Scan, find_scans
from training.run import Run


def seen(run: Run) -> str:
    """Return salted hashes of the scans of a run, and their DICOM series where known, as JSON.

    `ctssl check` uses them to warn about testing on training data. The scans of the starting weights are
    included.
    """
    before = {} if run.init.endswith(".safetensors") else seen_by(run.init or None)
    salt, scans = before.get("salt", run.name), find_scans(run.corpus)
    voxels = {voxel_hash(ctssl.read(scan.path), salt) for scan in tqdm(scans, desc="hashing scans")}
    voxels |= set(before.get("voxels", []))
    folders = [scan.path if scan.path.is_dir() else original(scan, run.corpus) for scan in scans]
    series = {uid for folder in folders if folder is not None for uid in series_uids(folder)}
    series |= set(before.get("series", []))
    return json.dumps({"salt": salt, "voxels": sorted(voxels), "series": sorted(series)}, indent=1) + "\n"


def original(scan: Scan, corpus: str) -> Path | None:
    """Return the DICOM folder that one of our own scans was made from, if the data contain it."""
    folder = data_folder() / "dicom" / scan.patient if corpus in NAMES else None
    return folder if folder is not None and folder.is_dir() else None


def series_uids(folder: Path) -> list[str]:
    """Return the SeriesInstanceUID of each CT series below a folder."""
    return [get_text(header, "SeriesInstanceUID") for _, header in find_series(folder)["CT"]]
