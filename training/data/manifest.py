"""Find the scans to train on: one of our corpora, a CSV, or any folder with NIfTI files and DICOM series."""

from pathlib import Path

from ctssl.datasets import manifest, scans
from ctssl.datasets.scans import Scan
from training.data import corpora


def find_scans(source: str | Path) -> list[Scan]:
    """Return the scans of a corpus such as `"wild"`, of a CSV, or of a folder (searched recursively).

    Each scan counts as its own patient unless a `patient` column or the DICOM header says otherwise. Of a CSV
    with a `split` column, only the training scans are used. Exits if a patient is in two splits, or if there
    is no scan.
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
            f"no data at {source}; give {' or '.join(map(repr, corpora.NAMES))}, a CSV or a folder of scans"
        )
    listed = scans.find_scans(path)
    if not listed:
        raise SystemExit(f"{path} holds no scans; give a folder with .nii, .nii.gz or DICOM files")
    return listed


def _from_csv(path: Path) -> list[Scan]:
    rows = manifest.read_manifest(path)
    named = [(row.patient or str(row.image), row.split or "train") for row in rows]
    manifest.check_patients(named, where=str(path))
    chosen = [Scan(row.image, who) for row, (who, split) in zip(rows, named, strict=True) if split == "train"]
    if not chosen:
        raise SystemExit(f"{path} has no row with split train; add training scans")
    return chosen
