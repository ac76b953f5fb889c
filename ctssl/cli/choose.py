"""`ctssl curve` and `ctssl probe`: which model to take, on your own labels."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from ctssl.cli.common import LABELLED, add_device, add_grid, add_hold_out, hold_out
from ctssl.zoo import DEFAULT


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `curve` and `probe`; `command(name, run, text)` is that of `ctssl.cli.main`."""
    _add_curve(command)
    _add_probe(command)


def _add_probe(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `probe`."""
    sub = command("probe", _probe, "compare frozen encoders on your labels: a linear probe of single voxels")
    sub.add_argument(
        "data",
        help=LABELLED,
    )
    sub.add_argument("--out", help="folder for report.md and probe.json")
    sub.add_argument(
        "--models",
        nargs="+",
        default=[DEFAULT, f"{DEFAULT.split('-')[0]}-scratch"],
        metavar="MODEL",
        help="encoders; vit-scratch and swin-scratch have random weights; all are compared with the last "
        f"(default: {DEFAULT} {DEFAULT.split('-')[0]}-scratch)",
    )
    sub.add_argument(
        "--seeds", type=int, default=3, help="draws of patients and voxels (default: %(default)s)"
    )
    sub.add_argument(
        "--label", type=int, metavar="N", help="label to tell from everything else (default: any)"
    )
    sub.add_argument(
        "--spacing",
        type=float,
        default=1.5,
        metavar="MM",
        help="working spacing in mm (default: %(default)s)",
    )
    add_device(sub)
    sub.add_argument("--overwrite", action="store_true", help="replace the report in --out")


def _probe(args: argparse.Namespace) -> None:
    from ctssl.files.text import as_plain
    from ctssl.finetuning.probe import REPORT, probe

    if args.out and (Path(args.out) / REPORT).exists() and not args.overwrite:
        raise FileExistsError(f"{args.out}/{REPORT} exists; choose another --out, or add --overwrite")
    found = probe(
        args.data,
        models=args.models,
        out=args.out,
        seeds=args.seeds,
        label=args.label,
        spacing_mm=args.spacing,
        device=args.device,
        progress=not args.json,
    )
    print(
        json.dumps(as_plain(found.rows())) if args.json else found.table(), end="" if not args.json else "\n"
    )


def _add_curve(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `curve`."""
    sub = command("curve", _curve, "compare models on your labels: DSC over the number of labelled patients")
    sub.add_argument(
        "data",
        help=LABELLED,
    )
    sub.add_argument(
        "--out", required=True, help="folder for the report and the trainings; run again to go on"
    )
    sub.add_argument(
        "--models",
        nargs="+",
        default=[DEFAULT, "scratch"],
        metavar="MODEL",
        help="starting weights as for finetune; scratch: the first model's encoder without pretraining; all are "
        f"compared with the last (default: {DEFAULT} scratch)",
    )
    sub.add_argument(
        "--shots",
        nargs="+",
        metavar="N",
        help="numbers of training patients (default: 1 2 5 10 all, as far as there are so many)",
    )
    sub.add_argument("--seeds", type=int, default=3, help="trainings of each kind (default: %(default)s)")
    add_hold_out(sub)
    sub.add_argument(
        "--head", default="", help="segmentation head (default: that of the model, otherwise light)"
    )
    sub.add_argument("--steps", type=int, metavar="N", help="training steps (default: 600)")
    sub.add_argument("--batch", type=int, metavar="N", help="crops per step (default: from the crop size)")
    sub.add_argument(
        "--crop", type=int, metavar="N", help="crop size in voxels (default: from structures and scans)"
    )
    add_grid(
        sub,
        spacing="working spacing of all in mm (default: planned for the first)",
        window="window of all in HU (default: planned for the first model)",
    )
    add_device(sub)


def _curve(args: argparse.Namespace) -> None:
    from ctssl.files.text import as_plain
    from ctssl.finetuning.curve import ALL, measure_curve
    from ctssl.finetuning.settings import Settings

    wrong = [one for one in args.shots or [] if one != ALL and not one.isdigit()]
    if wrong:
        raise ValueError(f"--shots {wrong[0]}: give numbers of patients, or all")
    chosen = {key: getattr(args, key) for key in ("steps", "batch", "crop") if getattr(args, key) is not None}
    found = measure_curve(
        args.data,
        out=args.out,
        models=args.models,
        shots=args.shots,
        seeds=args.seeds,
        hold_out=hold_out(args.hold_out),
        settings=Settings(**chosen),
        head=args.head,
        spacing_mm=args.spacing,
        window_hu=tuple(args.window) if args.window else None,
        device=args.device,
        progress=not args.json,
    )
    print(
        json.dumps(as_plain(found.points()))
        if args.json
        else f"{found.table()}\n{args.out}/report.md, {args.out}/curve.png"
    )
