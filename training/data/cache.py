"""Check and prepare scans once; memory-map them from then on.

`python -m training.data.cache --run RUN [--workers 8] [--folder runs/cache]` prepares the corpus of a run before the
training, `python -m training.data.cache SOURCE --spacing 1.5 --window -1000 400` any scans. Existing entries are reused;
unusable scans are listed and left out; deleting the folder costs time, nothing else.
"""

import argparse
import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import ctssl
from ctssl.files.atomic import write_whole
from ctssl.scan_checks import ScanWarning, check
from ctssl.volume.grids import prepare
from ctssl.volume.volume import files_of, voxel_hash
from ctssl.zoo import Preprocess
from training.data import corpora
from training.data.manifest import Scan, find_scans
from training.recipe import find_run

ROW = np.dtype([("file", "S40"), ("patient", "i4")])
LIMIT = 0.05  # share of scans that may be unusable


class Corpus:
    """Prepared scans by number. A worker holds only one memory-mapped table, whatever the number of scans."""

    def __init__(self, table: Path, scans: tuple[Scan, ...] = (), voxels: tuple[str, ...] = ()) -> None:
        self.table = table
        self.scans = scans  # in the first process alone, with the hash of each scan's voxels
        self.voxels = voxels
        self._rows: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"table": self.table, "scans": (), "voxels": (), "_rows": None}

    @property
    def rows(self) -> np.ndarray:
        if self._rows is None:
            self._rows = np.load(self.table, mmap_mode="r")
        return self._rows

    def __len__(self) -> int:
        return len(self.rows)

    def scan(self, number: int) -> np.ndarray:
        """Return `(X, Y, Z)` float16 0..1, as `encoder.preprocess` would give it, memory-mapped."""
        return np.load(self.table.parent / self.rows[number]["file"].decode(), mmap_mode="r")

    def patient(self, number: int) -> int:
        return int(self.rows[number]["patient"])


def prepare_corpus(scans: list[Scan], preprocess: Preprocess, folder: Path, *, workers: int = 1) -> Corpus:
    """Return the corpus of `scans`, preparing those that are missing.

    An entry is named by the content of its scan and by the preprocessing, so a changed scan never gets an old
    entry. `index.jsonl` stores the content hash of files by path, size and date.

    Args:
        scans: the scans.
        preprocess: working spacing and HU window.
        folder: the cache.
        workers: processes that prepare scans.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = hashlib.sha256(repr(preprocess).encode()).hexdigest()[:8]
    known, existing = _index(folder), set(os.listdir(folder))
    states = [_state(scan.path) for scan in scans]
    entries: list[dict | None] = [known.get((s, spec)) if s else {"error": "no such file"} for s in states]
    missing = [
        i
        for i, entry in enumerate(entries)
        if entry is None or ("file" in entry and (entry["file"] not in existing or "voxels" not in entry))
    ]
    jobs = [(scans[i].path, preprocess, folder, spec) for i in missing]
    with open(folder / "index.jsonl", "a") as index:
        done = tqdm(_run(jobs, workers), total=len(jobs), desc="preparing scans", disable=not jobs)
        for i, entry in zip(missing, done, strict=True):
            entries[i] = entry
            if entry.pop("passing", False):  # disk or network errors: tried again next time
                continue
            index.write(json.dumps({"state": states[i], "spec": spec, **entry}) + "\n")
            index.flush()
    bad = [
        f"{scan.path}: {entry['error']}"
        for scan, entry in zip(scans, entries, strict=True)
        if entry and "error" in entry
    ]
    if bad:
        print(
            f"left out {len(bad)} of {len(scans)} scans:\n  "
            + "\n  ".join(bad[:20])
            + ("\n  ..." if bad[20:] else "")
        )
    if len(bad) > LIMIT * len(scans):
        raise SystemExit(
            f"{len(bad)} of {len(scans)} scans are unusable, more than {LIMIT:.0%}; repair or remove them"
        )
    return _table(scans, entries, folder)


def _table(scans: list[Scan], entries: list[dict | None], folder: Path) -> Corpus:
    numbers: dict[str, int] = {}
    kept = [(scan, entry) for scan, entry in zip(scans, entries, strict=True) if entry and "file" in entry]
    rows = np.array(
        [(entry["file"], numbers.setdefault(scan.patient, len(numbers))) for scan, entry in kept], ROW
    )
    path = folder / f"table-{hashlib.sha256(rows.tobytes()).hexdigest()[:16]}.npy"
    if not path.exists():
        write_whole(path, lambda part: np.save(part, rows))
    return Corpus(path, tuple(scan for scan, _ in kept), tuple(entry["voxels"] for _, entry in kept))


def cache_folder(out: Path) -> Path:
    """Return the cache of a run: one for all runs below a folder `runs`, otherwise beside the run.

    >>> cache_folder(Path("runs/study/vit_wild_mim")).as_posix(), cache_folder(Path("mine/vit")).as_posix()
    ('runs/cache', 'mine/cache')
    """
    return next((folder for folder in out.parents if folder.name == "runs"), out.parent) / "cache"


def _run(jobs: list[tuple], workers: int) -> Iterator[dict]:
    if workers < 2 or len(jobs) < 2:
        yield from map(_prepare, jobs)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(_prepare, jobs, chunksize=1)


def _prepare(job: tuple[Path, Preprocess, Path, str]) -> dict:
    """Return `{"file": name}` of the prepared scan, or `{"error": why}`, with `passing` if it may succeed
    another time.
    """
    path, preprocess, folder, spec = job
    try:
        file = folder / f"{_content(path)}-{spec}.npy"
        note = file.with_name(
            f"{file.stem.rpartition('-')[0]}.voxels"
        )  # the hash, whatever the preprocessing
        if not file.exists() or not note.exists():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ScanWarning)
                scan = check(ctssl.read(path))
            write_whole(note, voxel_hash(scan))
            array = prepare(scan, preprocess).array.astype(np.float16)
            write_whole(file, lambda part: np.save(part, array))
    except (OSError, MemoryError, ImportError) as error:
        return {"error": str(error) or type(error).__name__, "passing": True}
    except ValueError as error:
        return {"error": str(error)}
    return {"file": file.name, "voxels": note.read_text()}


def _content(path: Path) -> str:
    """Return a hash of the content of a scan's files."""
    digest = hashlib.sha256()
    for file in files_of(path):
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:24]


def _state(path: Path) -> str | None:
    """Return path, size and date of a scan's files; None if there is none."""
    try:
        files = [file.stat() for file in files_of(path)]
        total, newest = sum(s.st_size for s in files), max((s.st_mtime_ns for s in files), default=0)
        count = f" {len(files)}" if path.is_dir() or len(files) > 1 else ""
        return f"{os.path.abspath(path)}{count} {total} {newest}"
    except OSError:
        return None


def _index(folder: Path) -> dict[tuple[str, str], dict]:
    known = {}
    path = folder / "index.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # last line of a killed run
            continue
        known[entry.pop("state"), entry.pop("spec")] = entry
    return known


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="?", help=f"{', '.join(corpora.NAMES)}, a CSV or a folder")
    parser.add_argument("--run", help="a file in training/runs, without .py: its scans, spacing and window")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/cache"), help="the cache (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="number of processes")
    parser.add_argument(
        "--spacing",
        type=float,
        default=Preprocess.spacing_mm,
        help="working spacing in mm (default: %(default)s)",
    )
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        default=Preprocess.window_hu,
        metavar=("LOW", "HIGH"),
        help="in HU (default: %(default)s)",
    )
    args = parser.parse_args()
    if bool(args.source) == bool(args.run):
        parser.error("give either scans or --run")
    run = find_run(args.run) if args.run else None
    source = run.corpus if run else args.source
    preprocess = run.preprocess if run else Preprocess(args.spacing, tuple(args.window))
    corpus = prepare_corpus(find_scans(source), preprocess, args.folder, workers=args.workers)
    print(f"{len(corpus)} scans are ready in {args.folder}")


if __name__ == "__main__":
    main()
