"""`ctssl shift` and `ctssl robustness`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from ctssl.cli.common import complain, free

NUMBERS = "SEV"
UNITS = {
    "contrast": "iodine, approximate: vessels of +50, 100, 150, 225, 300 HU at 120 kVp",
    "dose": "noise of 3/4, 1/2, 1/4, 1/8, 1/16 of the dose",
    "streaks": "photon starvation: a signal-to-noise of 200, 100, 50, 25, 12 in the darkest rays",
    "kernel_sharp": "sharper kernel: an MTF 1.3, 1.6, 2, 3, 5 times as high at 0.33 cycles/mm",
    "kernel_smooth": "smoother kernel: the inverse",
    "thickness": "slices of 3, 4, 5, 7.5, 10 mm (the last with gaps of 2 mm)",
    "truncation": "a field of view of 0.95, 0.85, 0.75, 0.65, 0.55 of the body's radius",
}


def add_commands(command: Callable[..., argparse.ArgumentParser], chosen: str) -> None:
    """The two commands, by `command(name, run, text)` of `ctssl.cli.main`. `chosen`: the one that will run,
    as `shift` alone needs to load the shifts, which have its flags."""
    sub = command(
        "shift",
        _shift,
        "a scan, or a folder of scans, as another protocol or kernel would have given it; several "
        "shifts come in the order of their flags here; a folder that was begun is finished",
    )
    sub.add_argument("scan", help=".nii, .nii.gz or DICOM folder; or a folder of any of these")
    sub.add_argument("out", help="OUT.nii.gz; or a folder, for a folder of scans")
    if chosen == "shift":
        _add_flags(sub)
    sub.add_argument("--kernel", type=int, metavar=NUMBERS, help="1 to 5 sharper, -1 to -5 smoother")
    sub.add_argument(
        "--every",
        action="store_true",
        help="of a folder: each shift at each severity, as OUT/SHIFT-SEVERITY/NAME."
        "nii.gz, and OUT/clean, for `ctssl robustness --predictions`",
    )
    sub.add_argument("--shifts", nargs="+", metavar="NAME", help="for --every (default: all)")
    sub.add_argument(
        "--severities", type=int, nargs="+", default=[1, 3, 5], help="for --every (default: 1 3 5)"
    )
    sub.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    sub.add_argument("--series", help="SeriesInstanceUID, when a DICOM folder holds several")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")
    sub = command(
        "robustness",
        _robustness,
        "a segmenter, or another tool's masks, against CT acquisition shifts: tables, "
        "curves, overlays; started again, it goes on",
    )
    sub.add_argument(
        "data", nargs="?", help="labelled scans, as for `ctssl finetune`; none for --pairs alone"
    )
    sub.add_argument("--images", help="folder of scans, with --labels instead of DATA")
    sub.add_argument("--labels", help="folder of masks with the names of the scans")
    sub.add_argument("--roi", help="the structure to take, when an RTSTRUCT or SEG holds several")
    sub.add_argument("--model", help="a segmenter: name, folder or repository")
    sub.add_argument("--against", help="another one: paired tests")
    sub.add_argument(
        "--predictions",
        metavar="FOLDER",
        help="masks of another tool, FOLDER/clean/CASE.nii.gz and FOLDER/SHIFT-"
        "SEVERITY/CASE.nii.gz, made of what `ctssl shift SCANS OUT --every` writes",
    )
    sub.add_argument(
        "--out", required=True, help="folder for report.md, report.json, rows.csv, curves.png, overlays/"
    )
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
    sub.add_argument(
        "--scans", metavar="FOLDER", help="keep the shifted scans there, or take them from there"
    )
    sub.add_argument("--seed", type=int, default=0, help="of the shifts (default: %(default)s)")
    sub.add_argument(
        "--tolerance", type=float, default=2.0, help="mm, for the surface Dice (default: %(default)s)"
    )
    sub.add_argument("--device", default="cpu")
    sub.add_argument(
        "--overwrite", action="store_true", help="measure again what was measured with other settings"
    )


def _add_flags(sub: argparse.ArgumentParser) -> None:
    from ctssl.shifts import SHIFTS

    for name, shift in SHIFTS.items():
        text = UNITS.get(name) or (shift.__doc__ or name).splitlines()[0].replace("%", "%%")
        sub.add_argument(
            f"--{name.replace('_', '-')}", type=int, metavar=NUMBERS, help=f"{text}; severity 1 to 5"
        )


def _wanted(args: argparse.Namespace) -> dict[str, int]:
    """The shifts that were asked for, by name."""
    from ctssl.shifts import SHIFTS, check_shift

    found = {name: getattr(args, name) for name in SHIFTS if getattr(args, name) is not None}
    if args.kernel is not None:
        if args.kernel == 0:
            raise ValueError("--kernel 0 is the scan as it is: 1 to 5 is sharper, -1 to -5 smoother")
        if "kernel_sharp" in found or "kernel_smooth" in found:
            raise ValueError("give --kernel, or --kernel-sharp and --kernel-smooth, not both")
        found["kernel_sharp" if args.kernel > 0 else "kernel_smooth"] = abs(args.kernel)
    if bool(found) == args.every:
        raise ValueError(
            "say which shift, such as --kernel 3 (sharper), --kernel -3 (smoother), --dose 2, --thickness 4; or "
            "--every alone"
        )
    for name, severity in found.items():
        check_shift(name, severity)
    return found


def _shift(args: argparse.Namespace) -> None:
    from ctssl.datasets.scans import list_scans
    from ctssl.files.atomic import check_apart
    from ctssl.lint import check
    from ctssl.shifts import SHIFTS, shift_all
    from ctssl.shifts.folder import every_shift, shift_folder, warn_if_unchanged
    from ctssl.volume.volume import read

    wanted, source = _wanted(args), Path(args.scan)
    written, failed = [Path(args.out)], {}
    scans = list_scans(source, series=True) if source.is_dir() else {}
    if not args.out.endswith((".nii", ".nii.gz")) and scans:
        places = every_shift(args.shifts or SHIFTS, args.severities) if args.every else {"": wanted}
        written, failed = shift_folder(
            scans, args.out, places, seed=args.seed, overwrite=args.overwrite, progress=not args.json
        )
    elif args.every:
        raise ValueError("--every is for a folder of scans and a folder to write to")
    else:
        check_apart([Path(args.out)], [source])
        free(args.out, args.overwrite, ".nii", ".nii.gz")
        scan = check(read(args.scan, series=args.series))
        found = shift_all(scan, wanted, seed=args.seed)
        warn_if_unchanged(scan, found, wanted)
        found.save(args.out, overwrite=args.overwrite)
    if args.json:
        done = [str(path) for path in written]
        print(json.dumps({"written": done, "shifts": wanted, "seed": args.seed, "failed": failed}))
    else:
        print(f"{written[0]}" if len(written) == 1 else f"{len(written)} scans in {args.out}")
    complain(failed)


def _robustness(args: argparse.Namespace) -> None:
    import ctssl
    from ctssl.shifts import SHIFTS

    def names(text: str | None) -> list[str]:
        return [name.strip() for name in (text or "").split(",") if name.strip()]

    if args.cases is not None and not names(args.cases):
        raise ValueError("--cases names no case; leave it out for all of them")
    found = ctssl.measure_robustness(
        args.data,
        out=args.out,
        model=args.model,
        against=args.against,
        predictions=args.predictions,
        images=args.images,
        labels=args.labels,
        roi=args.roi,
        cases=names(args.cases) or None,
        shifts=tuple(args.shifts or SHIFTS),
        severities=tuple(args.severities),
        by=tuple(names(args.by)),
        table=args.table,
        pairs=args.pairs,
        scans=args.scans,
        seed=args.seed,
        tolerance_mm=args.tolerance,
        device=args.device,
        overwrite=args.overwrite,
        progress=not args.json,
    )
    if args.json:
        print(json.dumps(found.plain()))
        return
    more = ", rows.csv, curves.png, overlays/" if found.rows else ""
    print(f"{found.markdown()}\n{args.out}: report.md, report.json{more}")
