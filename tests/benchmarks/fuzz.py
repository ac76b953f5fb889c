"""Thousands of damaged files: each is refused in words, or read right. `python -m tests.benchmarks.fuzz [--count N] [--seed S]`.

N files of each kind. A file must end in `ValueError`, `FileNotFoundError` or another `OSError` with words, or be read as an
independent reader reads it (nibabel, a few lines of our own); within a time limit for each, and a memory limit for all.
Prints counts for each kind and the way to make every file that failed again: its kind and its number.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ctssl
from ctssl import hub
from ctssl.datasets.layouts import find_cases
from ctssl.files.atomic import file_sha256
from ctssl.files.names import check_case_name
from ctssl.phantom import phantom
from tests.support import mutation

SECONDS, MEMORY = 10.0, 1 << 30  # for each file; beyond what the libraries take
Attempt = Callable[[np.random.Generator], None]


class TooLong(BaseException):
    """Not an `Exception`, so that nothing takes it for one of its own."""


def kinds(home: Path) -> dict[str, Attempt]:
    """For each kind of file what damages one, has ctssl read it, and checks what it read."""
    model, segmenter = small_models(home)
    labelled = small_data(home)
    return {
        "config": lambda rng: config(model, rng, ctssl.load),
        "config of a segmenter": lambda rng: config(segmenter, rng, ctssl.load_segmenter),
        "safetensors": lambda rng: weights(model, rng),
        "nifti": lambda rng: nifti(home, labelled, rng, packed=False),
        "nifti.gz": lambda rng: nifti(home, labelled, rng, packed=True),
        "dicom": lambda rng: dicom(home, rng),
        "rtstruct, seg": lambda rng: drawn(home, rng),
        "csv": lambda rng: table(labelled, rng),
        "dataset.json": lambda rng: description(labelled, rng),
        "manifest": lambda rng: manifest(labelled, rng),
    }


def small_models(home: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    encoder = ctssl.Swin(12, depths=(1, 1), heads=(2, 4), window=4, patch=2, merge_last=False)
    vit = ctssl.ViT(24, depth=3, heads=2, patch=8, grid=(4, 4, 4), maps=3)
    vit.save_pretrained(home / "vit")
    return home / "vit", ctssl.segmenter(encoder, head="linear").save_pretrained(home / "segmenter")


def small_data(home: Path) -> Path:
    scan, truth = phantom(16.0)
    for i in range(3):
        for kind, volume in (("imagesTr", scan), ("labelsTr", truth)):
            (home / "data" / kind).mkdir(parents=True, exist_ok=True)
            volume.save(home / "data" / kind / f"case{i}.nii.gz")
    return home / "data"


def config(folder: Path, rng: np.random.Generator, load: Callable) -> None:
    path = folder / hub.CONFIG
    good = path.read_bytes()
    try:
        path.write_bytes(mutation.json_text(json.loads(good), rng))
        model = load(folder)
        with torch.inference_mode():
            found = model(torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)))
        maps = found if isinstance(found, list) else [found]
        assert all(torch.isfinite(one).all() for one in maps), "NaN"
    finally:
        path.write_bytes(good)


def weights(folder: Path, rng: np.random.Generator) -> None:
    """The sha256 of the damaged file is in the config: whoever changes one changes the other."""
    path, described = folder / hub.WEIGHTS, folder / hub.CONFIG
    good = path.read_bytes(), described.read_text()
    try:
        path.write_bytes(mutation.safetensors(good[0], rng))
        described.write_text(json.dumps(json.loads(good[1]) | {"sha256": file_sha256(path)}))
        state = ctssl.load(folder).state_dict()
        (length,) = struct.unpack("<Q", path.read_bytes()[:8])
        body = path.read_bytes()[8:]
        for key, entry in json.loads(body[:length]).items():
            if key != "__metadata__":
                start, end = entry["data_offsets"]
                kind = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": None}[entry["dtype"]]
                values = np.frombuffer(body[length:][start:end], kind).reshape(entry["shape"])
                np.testing.assert_array_equal(state[key].numpy(), values.astype(np.float32), err_msg=key)
    finally:
        path.write_bytes(good[0])
        described.write_text(good[1])


def nifti(home: Path, data: Path, rng: np.random.Generator, *, packed: bool) -> None:
    import gzip

    import nibabel

    good = gzip.decompress((data / "imagesTr" / "case0.nii.gz").read_bytes())
    path = home / ("scan.nii.gz" if packed else "scan.nii")
    if packed and rng.random() < 0.5:
        path.write_bytes(mutation.damaged(mutation.packed(good), rng))
    else:
        changed = mutation.nifti(good, rng)
        path.write_bytes(mutation.packed(changed) if packed else changed)
    scan = ctssl.read(path)
    assert np.isfinite(scan.array).all() and np.isfinite(scan.affine).all() and min(scan.spacing_mm) > 0
    image: Any = nibabel.load(path)
    theirs = np.asarray(image.dataobj, np.float32)
    np.testing.assert_array_equal(scan.array, theirs.reshape(theirs.shape[:3]))
    np.testing.assert_array_equal(scan.affine, image.affine)


def dicom(home: Path, rng: np.random.Generator) -> None:
    from tests.support.dicom import write_series

    base, folder = home / "series", home / "damaged"
    if not base.exists():
        write_series(base)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    files = sorted(folder.iterdir())
    everywhere, seed = rng.random() < 0.4, int(rng.integers(2**31))
    for file in files if everywhere else [mutation.one_of(rng, files)]:
        file.write_bytes(mutation.dicom(file.read_bytes(), np.random.default_rng(seed)))
    scan = ctssl.read(folder)
    assert np.isfinite(scan.array).all() and np.isfinite(scan.affine).all() and min(scan.spacing_mm) > 0
    assert scan.shape[2] == len(files), f"{scan.shape}: a slice less, and nobody said so"


def drawn(home: Path, rng: np.random.Generator) -> None:
    from ctssl.volume.dicom_masks import read_annotation
    from tests.support.dicom import grid_in_lps, square, write_rtstruct, write_segmentation

    base = {"rs": home / "rs.dcm", "seg": home / "seg.dcm"}
    if not base["rs"].exists():
        write_rtstruct(base["rs"], {"tumour": [square(1.5, 4.5, 0.0), square(1.5, 4.5, 2.0)]})
        write_segmentation(base["seg"])
    path = home / "drawn.dcm"
    path.write_bytes(mutation.dicom(base[mutation.one_of(rng, ("rs", "seg"))].read_bytes(), rng))
    scan = grid_in_lps()
    mask = read_annotation(path, scan)
    assert mask.shape == scan.shape and mask.array.max() <= 1


def described(found: Any, data: Path) -> None:
    """Cases that name files which are there, once each, and that cannot name files anywhere else."""
    names = [case.name for case in found.cases]
    assert names and len(set(names)) == len(names)
    assert all(
        check_case_name(name) == name == Path(name).name and case.image.exists() and case.label.exists()
        for name, case in zip(names, found.cases, strict=True)
    )
    assert all(0 < number <= 255 for number in found.names)


def table(data: Path, rng: np.random.Generator) -> None:
    rows = [f"case{i},imagesTr/case{i}.nii.gz,labelsTr/case{i}.nii.gz,p{i},train,B30f" for i in range(3)]
    path = data / "cases.csv"
    path.write_bytes(mutation.table_text("\n".join(["id,image,label,patient,split,kernel", *rows]), rng))
    described(find_cases(path), data)


def description(data: Path, rng: np.random.Generator) -> None:
    entries = [
        {"image": f"./imagesTr/case{i}.nii.gz", "label": f"./labelsTr/case{i}.nii.gz"} for i in range(3)
    ]
    nnunet = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "tumour": 1}, "numTraining": 3}
    decathlon = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "cancer"}, "training": entries}
    path = data / "dataset.json"
    path.write_bytes(mutation.json_text(mutation.one_of(rng, (nnunet, decathlon)), rng))
    try:
        described(find_cases(data), data)
    finally:
        path.unlink()


def manifest(data: Path, rng: np.random.Generator) -> None:
    """What the recipes read ends the program with words: `SystemExit`."""
    from training.data.manifest import find_scans

    rows = [f"imagesTr/case{i}.nii.gz,p{i},train" for i in range(3)]
    path = data / "manifest.csv"
    path.write_bytes(mutation.table_text("\n".join(["image,patient,split", *rows]), rng))
    try:
        assert all(isinstance(scan.patient, str) and scan.patient for scan in find_scans(path))
    except SystemExit as error:
        raise ValueError(str(error.code)) from error


def outcome(attempt: Attempt, rng: np.random.Generator) -> str:
    """ "read", "refused", or what is wrong."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        attempt(rng)
    except (ValueError, OSError) as error:
        words = str(error)
        bad = len(words) < 10 or ("Errno" in words.split("(")[0] and not words.isprintable())
        return (
            f"no words: {words!r}"
            if bad
            else "memory: " + words
            if "more memory than" in words or "not enough memory" in words
            else "refused"
        )
    except TooLong:
        return f"more than {SECONDS:g} seconds"
    except BaseException as error:
        return f"{type(error).__name__}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[-4:])}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "read"


def fuzz(count: int, *, seed: int = 0, only: str | None = None, first: int = 0) -> dict[str, Any]:
    """Counts for each kind, seconds, and the failures: kind, number, what."""

    def too_long(*_: Any) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, too_long)
    counts: dict[str, Counter[str]] = {}
    failures, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for kind, attempt in kinds(Path(home)).items():
            if only and kind != only:
                continue
            counts[kind] = Counter()
            for number in range(first, first + count):
                found = outcome(attempt, np.random.default_rng([seed, number]))
                counts[kind][found if found in ("read", "refused") else "failed"] += 1
                if found not in ("read", "refused"):
                    failures.append({"kind": kind, "number": number, "what": found})
    return {
        "counts": counts,
        "failures": failures,
        "seconds": round(time.monotonic() - began, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def limit_memory() -> None:
    """From here on: what is mapped now and `MEMORY` more."""
    with open("/proc/self/statm", encoding="ascii") as status:
        mapped = int(status.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY,) * 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=500, help="files of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to see one failure again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one kind")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ctssl.load  # noqa: B018  (what is imported late counts as what the libraries take)
    import highdicom  # noqa: F401
    import nibabel  # noqa: F401

    if os.path.exists("/proc/self/statm"):
        limit_memory()
    found = fuzz(args.count, seed=args.seed, only=args.only, first=args.first)
    if args.json:
        print(json.dumps(found))
        return
    for kind, numbers in found["counts"].items():
        print(f"{kind:24} " + "  ".join(f"{numbers[key]:6} {key}" for key in ("refused", "read", "failed")))
    for failure in found["failures"][:50]:
        print(f"\n{failure['kind']} {failure['number']}: {failure['what']}")
    print(
        f"{sum(sum(c.values()) for c in found['counts'].values())} files, {len(found['failures'])} failures, "
        f"{found['seconds']} s, peak {found['peak_mb']} MB"
    )


if __name__ == "__main__":
    main()
