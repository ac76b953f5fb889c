"""`ctssl shift` and `ctssl robustness`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from ctssl.cli_common import free, scans_of

NUMBERS = "SEV"


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The two commands, by `command(name, run, text)` of `ctssl.cli`."""
    sub = command("shift", _shift, "a scan, or a folder of scans, as another protocol or kernel would have given it; several "
                  "shifts come in the order contrast, dose, streaks, kernel, thickness, truncation")  # fmt: skip
    sub.add_argument("scan", help=".nii, .nii.gz or DICOM folder; or a folder of any of these")
    sub.add_argument("out", help="OUT.nii.gz; or a folder, for a folder of scans")
    for flag, text in (("contrast", "iodine (approximate)"), ("dose", "lower: 3/4, 1/2, 1/4, 1/8, 1/16 of it"),
                       ("streaks", "photon starvation"), ("kernel-sharp", "sharper kernel"), ("kernel-smooth", "smoother"),
                       ("thickness", "slices of 3, 4, 5, 7.5, 10 mm"), ("truncation", "smaller field of view")):  # fmt: skip
        sub.add_argument(f"--{flag}", type=int, metavar=NUMBERS, help=f"{text}; severity 1 to 5")
    sub.add_argument("--kernel", type=int, metavar=NUMBERS, help="1 to 5 sharper, -1 to -5 smoother")
    sub.add_argument("--every", action="store_true", help="of a folder: each shift at each severity, as OUT/SHIFT-SEVERITY/NAME."
                     "nii.gz, and OUT/clean, for `ctssl robustness --predictions`")  # fmt: skip
    sub.add_argument("--shifts", nargs="+", metavar="NAME", help="for --every (default: all)")
    sub.add_argument("--severities", type=int, nargs="+", default=[1, 3, 5], help="for --every (default: 1 3 5)")
    sub.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    sub.add_argument("--series", help="SeriesInstanceUID, when a DICOM folder holds several")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")
    sub = command("robustness", _robustness, "a segmenter, or another tool's masks, against CT acquisition shifts: tables, "
                  "curves, overlays; started again, it goes on")  # fmt: skip
    sub.add_argument("data", nargs="?", help="labelled scans, as for `ctssl finetune`; none for --pairs alone")
    sub.add_argument("--images", help="folder of scans, with --labels instead of DATA")
    sub.add_argument("--labels", help="folder of masks with the names of the scans")
    sub.add_argument("--roi", help="the structure to take, when an RTSTRUCT or SEG holds several")
    sub.add_argument("--model", help="a segmenter: name, folder or repository")
    sub.add_argument("--against", help="another one: paired tests")
    sub.add_argument("--predictions", metavar="FOLDER", help="masks of another tool, FOLDER/clean/CASE.nii.gz and FOLDER/SHIFT-"
                     "SEVERITY/CASE.nii.gz, made of what `ctssl shift SCANS OUT --every` writes")  # fmt: skip
    sub.add_argument("--out", required=True, help="folder for report.md, report.json, rows.csv, curves.png, overlays/")
    sub.add_argument("--cases", help="names with commas: those that no model was trained on (default: all)")
    sub.add_argument("--shifts", nargs="+", metavar="NAME", help="(default: all)")
    sub.add_argument("--severities", type=int, nargs="+", default=[1, 3, 5], help="(default: 1 3 5)")
    sub.add_argument(
        "--by", default="", help="columns of the table, with commas: a stratum of clean scans for each value"
    )
    sub.add_argument("--table", help="CSV with a row per case (id, and what --by names)")
    sub.add_argument(
        "--pairs", metavar="CSV", help="columns first, second: two reconstructions of one acquisition a row"
    )
    sub.add_argument("--scans", metavar="FOLDER", help="keep the shifted scans there, or take them from there")
    sub.add_argument("--seed", type=int, default=0, help="of the shifts (default: %(default)s)")
    sub.add_argument("--tolerance", type=float, default=2.0, help="mm, for the surface Dice (default: %(default)s)")
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--overwrite", action="store_true", help="measure again what was measured with other settings")


def _wanted(args: argparse.Namespace) -> dict[str, int]:
    """The shifts that were asked for, by name."""
    from ctssl.shifts import SHIFTS, check_shift

    found = {name: getattr(args, name) for name in SHIFTS if getattr(args, name) is not None}
    if args.kernel is not None:
        if "kernel_sharp" in found or "kernel_smooth" in found:
            raise ValueError("give --kernel, or --kernel-sharp and --kernel-smooth, not both")
        found["kernel_sharp" if args.kernel > 0 else "kernel_smooth"] = abs(args.kernel)
    if bool(found) == args.every:
        raise ValueError("say which shift, such as --kernel 3 (sharper), --kernel -3 (smoother), --dose 2, --thickness 4; or "
                         "--every alone")  # fmt: skip
    for name, severity in found.items():
        check_shift(name, severity)
    return found


def _shift(args: argparse.Namespace) -> None:
    from pathlib import Path

    from ctssl.shifts import shift_all
    from ctssl.volume import read
    from ctssl.writing import apart

    wanted = _wanted(args)
    if not args.out.endswith((".nii", ".nii.gz")) and (scans := scans_of(Path(args.scan))):
        written = _shift_folder(args, scans, wanted)
    elif args.every:
        raise ValueError("--every is for a folder of scans and a folder to write to")
    else:
        apart([Path(args.out)], [Path(args.scan)])
        free(args.out, args.overwrite, ".nii", ".nii.gz")
        scan = _checked(read(args.scan, series=args.series))
        shift_all(scan, wanted, seed=args.seed).save(args.out, overwrite=args.overwrite)
        written = [args.out]
    if args.json:
        print(json.dumps({"written": written, "shifts": wanted, "seed": args.seed}))
    else:
        print(f"{written[0]}" if len(written) == 1 else f"{len(written)} scans in {args.out}")


def _shift_folder(args: argparse.Namespace, scans: dict[str, Any], wanted: dict[str, int]) -> list[str]:
    from pathlib import Path

    from tqdm import tqdm

    from ctssl.datasets import voxel_hash
    from ctssl.shifts import SHIFTS, check_shift, shift_all
    from ctssl.sources import CLEAN, named, stamp_of, stamped
    from ctssl.volume import read
    from ctssl.writing import apart

    out = Path(args.out)
    grid = {"": wanted}
    if args.every:
        for name in args.shifts or SHIFTS:
            for severity in args.severities:
                check_shift(name, severity)
        grid = {CLEAN: {}} | {named(n, s): {n: s} for n in args.shifts or SHIFTS for s in args.severities}
    targets = {(place, name): out / place / f"{name}.nii.gz" for name in scans for place in grid}
    apart(list(targets.values()), list(scans.values()))
    taken = [path for path in targets.values() if path.exists()]
    if taken and not args.overwrite:
        raise FileExistsError(
            f"{taken[0]} exists, and {len(taken) - 1} more; choose another folder, or add --overwrite"
        )
    bar = tqdm(total=len(targets), desc="shifting", disable=args.json)
    for name, path in scans.items():
        scan = _checked(read(path))
        for place, severities in grid.items():
            target = targets[place, name]
            target.parent.mkdir(parents=True, exist_ok=True)
            found = shift_all(scan, severities, seed=args.seed)
            if args.every and severities:
                found = stamped(found, stamp_of(place, args.seed, voxel_hash(scan)))
            found.save(target, overwrite=args.overwrite)
            bar.update()
    bar.close()
    return [str(path) for path in targets.values()]


def _checked(scan: Any) -> Any:
    """A shift needs HU and millimetres."""
    from ctssl.lint import check

    return check(scan)


def _robustness(args: argparse.Namespace) -> None:
    import ctssl
    from ctssl.shifts import SHIFTS

    def names(text: str | None) -> list[str]:
        return [name.strip() for name in (text or "").split(",") if name.strip()]

    found = ctssl.measure_robustness(
        args.data, out=args.out, model=args.model, against=args.against, predictions=args.predictions, images=args.images,
        labels=args.labels, roi=args.roi, cases=names(args.cases) or None, shifts=tuple(args.shifts or SHIFTS),
        severities=tuple(args.severities), by=tuple(names(args.by)), table=args.table, pairs=args.pairs, scans=args.scans,
        seed=args.seed, tolerance_mm=args.tolerance, device=args.device, overwrite=args.overwrite, progress=not args.json,
    )  # fmt: skip
    if args.json:
        print(json.dumps(found.plain()))
        return
    more = ", rows.csv, curves.png, overlays/" if found.rows else ""
    print(f"{found.markdown()}\n{args.out}: report.md, report.json{more}")
