"""`ctssl shift` and `ctssl robustness`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from ctssl.cli.common import add_device, add_roi, check_output, raise_if_failed

UNITS = {
    "contrast": "iodine, approximate: vessels of +50, 100, 150, 225, 300 HU at 120 kVp",
    "dose": "noise of 3/4, 1/2, 1/4, 1/8, 1/16 of the dose",
    "streaks": "photon starvation: a signal-to-noise ratio of 200, 100, 50, 25, 12 in the darkest rays",
    "kernel_sharp": "sharper kernel: an MTF 1.3, 1.6, 2, 3, 5 times as high at 0.33 cycles/mm",
    "kernel_smooth": "smoother kernel: the inverse",
    "thickness": "slices of 3, 4, 5, 7.5, 10 mm (the last with gaps of 2 mm)",
    "truncation": "a field of view of 0.95, 0.85, 0.75, 0.65, 0.55 of the body's radius",
}


def add_commands(command: Callable[..., argparse.ArgumentParser], chosen: str) -> None:
    """Add `shift` and `robustness`.

    Args:
        command: `command(name, run, text)` of `ctssl.cli.main`.
        chosen: the command that will run; only for `shift` the shifts are loaded, which have its flags.
    """
    text = "simulate another protocol or kernel on a scan or a folder of scans; several shifts come in this order"
    sub = command("shift", _shift, text)
    sub.add_argument("scan", help=".nii, .nii.gz or DICOM folder; or a folder of any of these")
    sub.add_argument("out", help="OUT.nii.gz; or a folder, for a folder of scans")
    if chosen == "shift":
        _add_flags(sub)
    sub.add_argument("--kernel", type=int, metavar="SEV", help="1 to 5 sharper, -1 to -5 smoother")
    sub.add_argument(
        "--every",
        action="store_true",
        help="for a folder: each shift at each severity, into OUT/SHIFT-SEVERITY, and OUT/clean (for `ctssl "
        "robustness --predictions`)",
    )
    _add_grid(sub, " for --every")
    sub.add_argument("--series", help="SeriesInstanceUID, if a DICOM folder holds several")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")
    text = "measure a segmenter, or another tool's masks, under CT acquisition shifts; run it again to go on"
    sub = command("robustness", _robustness, text)
    _add_cases(sub)
    sub.add_argument("--model", help="segmenter: name, folder or repository")
    sub.add_argument("--against", help="second segmenter, for paired tests")
    sub.add_argument(
        "--predictions",
        metavar="FOLDER",
        help="masks of another tool, FOLDER/clean/CASE.nii.gz and FOLDER/SHIFT-SEVERITY/CASE.nii.gz, made of what "
        "`ctssl shift SCANS OUT --every` writes",
    )
    sub.add_argument(
        "--out", required=True, help="folder for report.md, report.json, rows.csv, curves.png, overlays/"
    )
    _add_grid(sub)
    sub.add_argument(
        "--pairs", metavar="CSV", help="columns first, second: two reconstructions of one acquisition"
    )
    sub.add_argument(
        "--scans", metavar="FOLDER", help="keep the shifted scans there, or take them from there"
    )
    sub.add_argument(
        "--tolerance", type=float, default=2.0, help="of the surface Dice in mm (default: %(default)s)"
    )
    add_device(sub)
    sub.add_argument(
        "--overwrite", action="store_true", help="measure again what was measured with other settings"
    )


def _add_grid(sub: argparse.ArgumentParser, use: str = "") -> None:
    """Add the options for shifts, severities and the seed."""
    sub.add_argument("--shifts", nargs="+", metavar="NAME", help=f"shifts{use} (default: all)")
    sub.add_argument(
        "--severities", type=int, nargs="+", default=[1, 3, 5], help=f"severities{use} (default: 1 3 5)"
    )
    sub.add_argument("--seed", type=int, default=0, help="random seed of the noise (default: %(default)s)")


def _add_cases(sub: argparse.ArgumentParser) -> None:
    """Add the arguments for labelled scans and for the strata of their table."""
    sub.add_argument(
        "data", nargs="?", help="labelled scans, as for `ctssl finetune`; none for --pairs alone"
    )
    sub.add_argument("--images", help="folder of scans, with --labels instead of DATA")
    sub.add_argument("--labels", help="folder of masks with the names of the scans")
    add_roi(sub)
    sub.add_argument(
        "--cases", help="case names separated by commas: those no model was trained on (default: all)"
    )
    sub.add_argument(
        "--by", default="", help="columns of the table, separated by commas: strata of the clean scans"
    )
    sub.add_argument("--table", help="CSV with a row per case: id, and the columns of --by")


def _add_flags(sub: argparse.ArgumentParser) -> None:
    from ctssl.shifts import SHIFTS

    for name, shift in SHIFTS.items():
        text = UNITS.get(name) or (shift.__doc__ or name).splitlines()[0].replace("%", "%%")
        sub.add_argument(
            f"--{name.replace('_', '-')}", type=int, metavar="SEV", help=f"{text}; severity 1 to 5"
        )


def _wanted(args: argparse.Namespace) -> dict[str, int]:
    """Return the severity of each shift that was asked for, by name."""
    from ctssl.shifts import SHIFTS, check_shift

    found = {name: getattr(args, name) for name in SHIFTS if getattr(args, name) is not None}
    if args.kernel is not None:
        if args.kernel == 0:
            raise ValueError("--kernel 0 is the scan as it is: 1 to 5 is sharper, -1 to -5 smoother")
        if "kernel_sharp" in found or "kernel_smooth" in found:
            raise ValueError("give --kernel, or --kernel-sharp and --kernel-smooth, not both")
        found["kernel_sharp" if args.kernel > 0 else "kernel_smooth"] = abs(args.kernel)
    if args.shifts and not args.every:
        raise ValueError("--shifts chooses some of --every; add --every, or give each shift as --dose 2")
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
    from ctssl.scan_checks import check
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
        check_output(args.out, args.overwrite, ".nii", ".nii.gz")
        scan = check(read(args.scan, series=args.series))
        found = shift_all(scan, wanted, seed=args.seed)
        warn_if_unchanged(scan, found, wanted)
        found.save(args.out, overwrite=args.overwrite)
    if args.json:
        done = [str(path) for path in written]
        print(json.dumps({"written": done, "shifts": wanted, "seed": args.seed, "failed": failed}))
    else:
        print(f"{written[0]}" if len(written) == 1 else f"{len(written)} scans in {args.out}")
    raise_if_failed(failed)


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
