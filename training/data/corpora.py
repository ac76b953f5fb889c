"""The corpora and splits of our own data. Reads `cases.csv` of the data folder (`CTSSL_DATA`); no corpus
holds test cases.

`python -m training.data.corpora` writes both splits again (they are the same each time).
"""

import csv
import json
import os
from pathlib import Path

import numpy as np

NAMES = ("wild", "wild46", "lung", "sarcoma")
SPLIT = Path(__file__).with_name("sarcoma_split.json")
LUNG = Path(__file__).with_name("lung_split.json")
NODULES = Path(__file__).with_name("nodule_split.json")


def data_folder() -> Path:
    """Return the data folder. Raises `FileNotFoundError` unless `CTSSL_DATA` is set to it."""
    folder = os.environ.get("CTSSL_DATA")
    if not folder or not Path(folder, "cases.csv").is_file():
        raise FileNotFoundError(f"CTSSL_DATA is {folder!r}; set it to the folder that holds cases.csv")
    return Path(folder)


def cases(group: str) -> list[dict[str, str]]:
    """Return the rows of one group of `cases.csv`."""
    with open(data_folder() / "cases.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["group"] == group]


def split(side: str) -> list[str]:
    """Return case ids of the sarcoma data: `"train"` (26) or `"test"` (12)."""
    return json.loads(SPLIT.read_text())[side]


def nodule_split(side: str) -> list[str]:
    """Return case ids of the lung nodules: `"train"` or `"test"` (a third)."""
    return json.loads(NODULES.read_text())[side]


def lung_split() -> dict[str, list[str]]:
    """Return case ids of NSCLC-Radiomics: `"train"` (150), and `"choose"` (40) to choose recipes by."""
    return json.loads(LUNG.read_text())


def corpus(name: str) -> list[Path]:
    """Return the pretraining scans of `"wild"` or `"wild46"` (26 or 46 uncurated public CTs), `"lung"` (training
    side of the lung tumours) or `"sarcoma"` (that of the sarcoma data).
    """
    return [data_folder() / row["image"] for row in _rows(name)]


def provenance(name: str) -> list[dict[str, str]]:
    """Return the sources and licences of the scans of a corpus."""
    return [
        {key: row[key] for key in ("id", "collection", "source", "licence", "body_part")}
        for row in _rows(name)
    ]


def _rows(name: str) -> list[dict[str, str]]:
    if name == "wild":
        return cases("wild")
    if name == "wild46":
        return cases("wild") + cases("wild2")
    if name == "lung":
        train = set(lung_split()["train"])
        return [row for row in cases("lung_radiomics_nc") if row["id"] in train]
    if name == "sarcoma":
        train = set(split("train"))
        return [row for row in cases("sarcoma") if row["id"] in train]
    raise ValueError(f"unknown corpus {name!r}; use {', '.join(map(repr, NAMES[:-1]))} or {NAMES[-1]!r}")


def make_split(seed: int = 0, per_kernel: int = 6) -> dict[str, list[str]]:
    """Draw six SOFT and six STANDARD test cases, but not STS_008, whose DICOM series is in the data too."""
    rng, test = np.random.default_rng(seed), []
    rows = cases("sarcoma")
    for kernel in ("SOFT", "STANDARD"):
        ids = sorted(row["id"] for row in rows if row["kernel"] == kernel and "STS_008" not in row["id"])
        test += rng.choice(ids, per_kernel, replace=False).tolist()
    train = sorted(row["id"] for row in rows if row["id"] not in test)
    return {"train": train, "test": sorted(test)}


def make_nodule_split(seed: int = 0) -> dict[str, list[str]]:
    """Draw a third of the patients for testing; each has one nodule."""
    ids = sorted(row["id"] for row in cases("lung_nodules"))
    test = np.random.default_rng(seed).choice(ids, len(ids) // 3, replace=False).tolist()
    return {"train": [name for name in ids if name not in test], "test": sorted(test)}


def make_lung_split(seed: int = 0, choose: int = 40) -> dict[str, list[str]]:
    """Draw the patients of NSCLC-Radiomics that choose recipes."""
    ids = sorted(row["id"] for row in cases("lung_radiomics_nc"))
    drawn = np.random.default_rng(seed).choice(ids, choose, replace=False).tolist()
    return {"train": [name for name in ids if name not in drawn], "choose": sorted(drawn)}


if __name__ == "__main__":
    for path, made in ((SPLIT, make_split()), (NODULES, make_nodule_split()), (LUNG, make_lung_split())):
        path.write_text(json.dumps({"seed": 0, **made}, indent=1) + "\n")
        print(f"{path}: {', '.join(f'{len(ids)} {side}' for side, ids in made.items())}")
