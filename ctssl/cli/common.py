"""What several commands share: arguments, and looking at an output before the work."""

from __future__ import annotations

import argparse
from pathlib import Path

from ctssl.files.names import check_path, check_writable

LABELLED = "folder (images/ and labels/, nnU-Net, Decathlon, TotalSegmentator, DICOM patients) or CSV"
"""What `ctssl.datasets.layouts` reads, for the help of a command."""


def add_roi(sub: argparse.ArgumentParser) -> None:
    """Add `--roi`."""
    sub.add_argument(
        "--roi", help="name of the structure, if an RTSTRUCT, a SEG or segmentations/ holds several"
    )


def common(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--series", help="SeriesInstanceUID, if a DICOM folder holds several")
    add_device(sub)
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")


def add_device(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)"
    )


def add_grid(sub: argparse.ArgumentParser, *, spacing: str, window: str) -> None:
    """Add `--spacing` and `--window`, with these words of help."""
    sub.add_argument("--spacing", type=float, metavar="MM", help=spacing)
    sub.add_argument("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help=window)


def add_hold_out(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--hold-out",
        help="share of the patients, or case names separated by commas (default: the cases that a column split "
        "calls test, or 0.2)",
    )


def hold_out(text: str | None) -> float | list[str] | None:
    """Return a share, or case names separated by commas as a list; None for no text."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return [name.strip() for name in (text or "").split(",") if name.strip()]


def add_memory(sub: argparse.ArgumentParser, use: str = "") -> None:
    """Add `--max-memory`; `use`: what the memory is for."""
    sub.add_argument(
        "--max-memory",
        type=float,
        default=8.0,
        metavar="GB",
        help=f"memory limit in GB{use} (default: %(default)s)",
    )


def add_speed(sub: argparse.ArgumentParser, what: str) -> None:
    """Add `--bf16` and `--compile`. `what`: the results that `--bf16` changes slightly."""
    sub.add_argument(
        "--bf16", action="store_true", help=f"half precision: faster on a GPU, and slightly other {what}"
    )
    sub.add_argument(
        "--compile",
        action="store_true",
        help="compile the encoder first (torch.compile; needs a C++ compiler): for many scans, or a GPU",
    )


def check_output(path: str, overwrite: bool, *endings: str) -> None:
    """Raise an error unless a file with one of `endings` can be written to `path`: before hours of work, not after."""
    if not path.endswith(endings):
        raise ValueError(f"cannot write {path}: its name must end in {' or '.join(endings)}")
    if check_path(path).exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name, or add --overwrite")
    check_writable(Path(path).absolute().parent)
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {Path(path).parent} to write {Path(path).name} in; make it first")


def raise_if_failed(failed: dict[str, str]) -> None:
    """Raise `RuntimeError` for the scans of a folder that failed, each with the reason, once the others are done."""
    if failed:
        raise RuntimeError(
            f"{len(failed)} scans failed:\n" + "\n".join(f"  {n}: {why}" for n, why in failed.items())
        )
