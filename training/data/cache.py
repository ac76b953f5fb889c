"""Scans, prepared once and memory-mapped from then on."""

import hashlib
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

import ctssl
from ctssl.volume import prepare
from ctssl.zoo import Preprocess


def prepared(scans: list[Path], preprocess: Preprocess, folder: Path) -> list[np.ndarray]:
    """Each scan as `encoder.preprocess` gives it, `(X, Y, Z)` float16 0..1, memory-mapped from `folder`.

    An entry is made again when its scan or the preprocessing changes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{_key(scan, preprocess)}.npy" for scan in scans]
    missing = [(scan, file) for scan, file in zip(scans, files, strict=True) if not file.exists()]
    for scan, file in tqdm(missing, desc="preparing scans", disable=not missing):
        array = prepare(ctssl.read(scan), preprocess).array.astype(np.float16)
        part = file.with_suffix(f".part{os.getpid()}.npy")
        np.save(part, array)
        os.replace(part, file)
    return [np.load(file, mmap_mode="r") for file in files]


def _key(scan: Path, preprocess: Preprocess) -> str:
    state = scan.stat()
    text = f"{scan.resolve()} {state.st_size} {state.st_mtime_ns} {preprocess}"
    return f"{scan.name.split('.')[0]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
