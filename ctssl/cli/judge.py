"""`ctssl evaluate` and `ctssl compare`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctssl
from ctssl.cli.common import check_output


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `evaluate` and `compare`; `command(name, run, text)` is that of `ctssl.cli.main`."""
    sub = command(
        "evaluate", _evaluate, "score masks against the truth: per case, per stratum, and against other masks"
    )
    sub.add_argument("predictions", help="folder of masks")
    sub.add_argument("labels", help="folder of true masks with the same names")
    sub.add_argument(
        "--table",
        help="CSV with a row per case: id, patient (if several cases share one), and the columns of --by",
    )
    sub.add_argument(
        "--by", default="", help="columns of the table, separated by commas: a stratum for each value"
    )
    sub.add_argument("--against", help="folder of other masks for the same cases: paired tests")
    sub.add_argument(
        "--tolerance", type=float, default=2.0, help="of the surface Dice in mm (default: %(default)s)"
    )
    sub.add_argument(
        "--names",
        nargs="+",
        default=[],
        metavar="LABEL=NAME",
        help="names of the labels, such as 1=liver 2=tumour",
    )
    sub.add_argument(
        "--froc",
        metavar="PROBABILITIES",
        help="folder of probability maps, CASE_LABEL.nii.gz as of `ctssl segment --probabilities`: sensitivity for "
        "lesions at 1/8 to 8 false positives per scan, and their mean (LUNA16)",
    )
    sub.add_argument(
        "--froc-threshold",
        type=float,
        metavar="P",
        help="probability above which a voxel belongs to a lesion candidate (default: 0.1)",
    )
    sub.add_argument("--out", help="folder for cases.csv, report.json, report.md and pictures")
    sub.add_argument("--overwrite", action="store_true", help="replace an earlier report in --out")
    _add_compare(command)


def _add_compare(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command("compare", _compare, "compare two models block by block (CKA): a heat map")
    sub.add_argument("first", help="encoder or segmenter: name, folder or repository")
    sub.add_argument("second", help="the same, for the other axis")
    sub.add_argument("--data", required=True, nargs="+", help="scans: files, or a folder of .nii and .nii.gz")
    sub.add_argument("--out", required=True, help="OUT.png; the numbers go beside it, as .json")
    sub.add_argument(
        "--crops",
        type=int,
        default=256,
        help="number of crops; fewer give noisy values (default: %(default)s)",
    )
    sub.add_argument("--size", type=int, help="crop size in voxels (default: 64, less for small scans)")
    sub.add_argument(
        "--spacing",
        type=float,
        metavar="MM",
        help="working spacing of both in mm (default: the fine-tuned segmenter's, if one of them is one; else each its own)",
    )
    sub.add_argument(
        "--shift",
        metavar="NAME:SEVERITY",
        help="shift the scans for the second model, such as kernel_sharp:3",
    )
    sub.add_argument(
        "--seed", type=int, default=0, help="random seed of the crops and the shift (default: %(default)s)"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace OUT.png and its numbers")


def _evaluate(args: argparse.Namespace) -> None:
    from ctssl.evaluation.report import WRITTEN, check_report
    from ctssl.files.atomic import check_apart
    from ctssl.files.names import check_path, check_writable

    if args.out and not args.overwrite:
        _check_folder(check_path(args.out))
    if args.out:
        check_writable(Path(args.out))
        check_apart([Path(args.out) / name for name in WRITTEN], [Path(args.table)] if args.table else [])
        check_report(Path(args.out), overwrite=args.overwrite)
    if args.froc_threshold is not None and not args.froc:
        raise ValueError(
            "--froc-threshold is for probability maps; give their folder too (--froc PROBABILITIES)"
        )
    more = {} if args.froc_threshold is None else {"froc_threshold": args.froc_threshold}
    by = tuple(column.strip() for column in args.by.split(",") if column.strip())
    found = ctssl.evaluate(
        args.predictions,
        args.labels,
        table=args.table,
        by=by,
        against=args.against,
        tolerance_mm=args.tolerance,
        names=_names(args.names),
        froc=args.froc,
        **more,
        progress=not args.json,
    )
    if args.out:
        found.save(args.out, overwrite=args.overwrite)
    if args.json:
        print(json.dumps(found.plain()))
        return
    print(found.markdown() + (f"\n{args.out}: cases.csv, report.json, report.md" if args.out else ""))


def _names(texts: list[str]) -> dict[int, str]:
    """Return the names of `LABEL=NAME`. Raises `ValueError` for anything else."""
    found = {}
    for text in texts:
        label, _, name = text.partition("=")
        if not label.strip().isdigit() or not name.strip():
            raise ValueError(f"--names {text!r}: write LABEL=NAME, such as 1=liver")
        found[int(label)] = name.strip()
    return found


def _check_folder(folder: Path) -> None:
    """Raise `FileExistsError` for a file, and for a folder that holds anything but what a killed evaluation left."""
    from ctssl.files.atomic import check_empty, is_begun

    check_empty(folder, overwrite=is_begun(folder))


def _compare(args: argparse.Namespace) -> None:
    from ctssl.datasets.scans import list_scans
    from ctssl.files.atomic import write_whole
    from ctssl.files.running import clear_parts, find_parts
    from ctssl.loading import load_model
    from ctssl.similarity import CELLS, compare

    numbers = str(Path(args.out).with_suffix(".json"))
    begun = bool(find_parts(Path(numbers).parent, Path(numbers).name)) and not Path(numbers).exists()
    check_output(
        args.out, args.overwrite or begun, ".png"
    )  # the numbers are written last, beside the picture
    check_output(numbers, args.overwrite, ".json")
    scans: list[Path] = []
    for source in map(Path, args.data):
        inside = list(list_scans(source, series=True).values()) if source.is_dir() else []
        scans += inside or [source]
    others = _shifted(scans, args.shift, args.seed) if args.shift else None
    models = [load_model(name) for name in (args.first, args.second)]
    names = Path(args.first).name, Path(args.second).name + (f", {args.shift}" if args.shift else "")
    found = compare(
        models[0],
        models[1],
        list(scans),
        other_scans=others,
        crops=args.crops,
        size=args.size,
        names=names,
        spacing_mm=args.spacing,
        seed=args.seed,
        random=True,
        progress=not args.json,
    )
    by_chance = found.random
    assert by_chance is not None  # it was asked for
    result = {
        "blocks": found.matrix.round(5).tolist(),
        "random": by_chance.round(5).tolist(),
        "crops": found.crops,
        "size": found.size,
        "apart": found.apart,
        "models": [args.first, args.second],
        "shift": args.shift,
        "pooling": f"mean over a grid of {CELLS} x {CELLS} x {CELLS} cells",
    }

    def write(part: Path) -> None:
        part.write_text(json.dumps(result) + "\n")
        found.picture(args.out)  # while the numbers are a part: they tell whose it is if we are killed

    write_whole(Path(numbers), write)
    clear_parts(Path(numbers).parent, Path(args.out).name, Path(numbers).name)
    if args.json:
        print(json.dumps(result))
        return
    count = min(found.matrix.shape)
    print(f"{found.crops} crops of {found.size} voxels, {found.apart} of them without a voxel in common")
    for name, matrix in (("block by block", found.matrix), ("random weights", by_chance)):
        print(f"{name}: " + "  ".join(f"{matrix[i, i]:.2f}" for i in range(count)))
    print(f"{args.out}, {numbers}")


def _shifted(scans: list[Any], text: str, seed: int) -> list[Any]:
    """Return the scans under the shift that `text` names as NAME:SEVERITY."""
    from ctssl.shifts import check_shift, shift

    name, _, severity = text.partition(":")
    if not severity.isdigit():
        raise ValueError(f"--shift {text}: NAME:SEVERITY, such as kernel_sharp:3")
    check_shift(name, int(severity))
    return [shift(ctssl.read(scan), name, severity=int(severity), seed=seed) for scan in scans]
