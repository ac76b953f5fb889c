"""Record the scans that a pretraining saw; `ctssl check --model` and `ctssl finetune` read the record."""

import json
from pathlib import Path

from tqdm import tqdm

import ctssl
from ctssl.datasets.seen import SCHEME, incomplete, salted, scan_hash, scheme_of, seen_by
from ctssl.volume.dicom import find_series
from ctssl.volume.dicom_file import get_text
from training.data.cache import Corpus
from training.data.corpora import NAMES, data_folder
from training.data.manifest import Scan, find_scans
from training.recipe import Run


def seen(run: Run, corpus: Corpus | None = None) -> str:
    """Return salted hashes of the scans of a run, and their DICOM series where known, as JSON.

    `ctssl check` uses them to warn about testing on training data. The scans of the starting weights are
    included; of a file of weights these are not known, and the record says that it is incomplete.

    Args:
        run: the settings.
        corpus: the scans of the run with the hashes of their voxels. None: all scans are found and read. They are read in any
            case where the starting weights have hashes of an earlier scheme.
    """
    before = {} if run.init.endswith(".safetensors") else seen_by(run.init or None)
    salt, scans = before.get("salt", run.name), corpus.scans if corpus is not None else find_scans(run.corpus)
    if corpus is None or scheme_of(before) == 1:
        bar = tqdm(scans, desc="hashing scans")
        hashes = {scan_hash(ctssl.read(scan.path), before, salt) for scan in bar}
    else:
        hashes = {salted(one, salt) for one in corpus.voxels}
    hashes |= set(before.get("voxels", []))
    folders = [scan.path if scan.path.is_dir() else original(scan, run.corpus) for scan in scans]
    series = {uid for folder in folders if folder is not None for uid in series_uids(folder)}
    series |= set(before.get("series", []))
    record: dict[str, object] = {"scheme": SCHEME} if scheme_of(before) == SCHEME else {}
    record |= {"partial": True} if run.init and incomplete(before) else {}
    return (
        json.dumps({**record, "salt": salt, "voxels": sorted(hashes), "series": sorted(series)}, indent=1)
        + "\n"
    )


def original(scan: Scan, corpus: str) -> Path | None:
    """Return the DICOM folder that one of our own scans was made from, if the data contain it."""
    folder = data_folder() / "dicom" / scan.patient if corpus in NAMES else None
    return folder if folder is not None and folder.is_dir() else None


def series_uids(folder: Path) -> list[str]:
    """Return the SeriesInstanceUID of each CT series below a folder."""
    return [get_text(header, "SeriesInstanceUID") for _, header in find_series(folder)["CT"]]
