"""Which scans to train on: a corpus of ours, a CSV, or any folder with NIfTI files and DICOM series."""

from pathlib import Path

from ctssl.datasets import manifest, scans
from ctssl.datasets.scans import Scan
from training.data import corpora


def find_scans(source: str | Path) -> list[Scan]:
    """Return the scans of `"wild"` or `"self"`, of a CSV, or of a folder (searched to the bottom).

    Each scan counts as its own patient unless a column `patient` or the DICOM header says otherwise. Of a CSV
    with a column `split`, only the training scans are taken; a patient in two splits is an error.
    """
    if source in corpora.NAMES:
        return [Scan(path, path.name.split(".")[0]) for path in corpora.corpus(str(source))]
    path = Path(source)
    try:
        if path.is_file() and path.suffix.lower() == ".csv":
            return _from_csv(path)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if not path.is_dir():
        raise SystemExit(
            f"no data at {source}: give {' or '.join(map(repr, corpora.NAMES))}, a CSV or a folder of scans"
        )
    found = scans.find_scans(path)
    if not found:
        raise SystemExit(f"{path} holds no .nii, .nii.gz or DICOM series")
    return found


def _from_csv(path: Path) -> list[Scan]:
    rows = manifest.read_manifest(path)
    named = [(row.patient or str(row.image), row.split or "train") for row in rows]
    manifest.check_patients(named, where=str(path))
    chosen = [Scan(row.image, who) for row, (who, split) in zip(rows, named, strict=True) if split == "train"]
    if not chosen:
        raise SystemExit(f"{path} has no row of the split train")
    return chosen
