"""`ctssl check` and `ctssl finetune`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctssl.cli.common import (
    LABELLED,
    add_device,
    add_grid,
    add_hold_out,
    add_memory,
    add_roi,
    check_output,
    hold_out,
)
from ctssl.files.text import as_plain
from ctssl.zoo import DEFAULT

if TYPE_CHECKING:
    from ctssl.finetuning.report import Report
    from ctssl.finetuning.request import Request


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `check` and `finetune`; `command(name, run, text)` is that of `ctssl.cli.main`."""
    sub = command("check", _check, "check labelled scans case by case, before training on them")
    _add_data(sub)
    sub.add_argument("--model", help="also warn about scans that this model was pretrained on")
    sub.add_argument(
        "--out", metavar="FILE", help="also write a report with a slice of each case, .html or .png"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    sub = command("finetune", _finetune, "train a segmenter on labelled scans and score it on held-out cases")
    _add_data(sub)
    sub.add_argument("--out", required=True, help="folder for the segmenter")
    sub.add_argument(
        "--model",
        default=DEFAULT,
        help="starting weights: name, folder or repository; or a baseline without pretraining: swin-scratch, "
        "vit-scratch, dynunet, dynunet-16, dynunet-8 (default: %(default)s)",
    )
    heads = (
        "light, linear, smit, swin-unetr or unetr (default: the head that the model brings, otherwise light)"
    )
    sub.add_argument("--head", default="", help=heads)
    _add_sides(sub)
    _add_preparation(sub)
    _add_settings(sub)
    sub.add_argument(
        "--from-scratch", action="store_true", help="use initial weights instead of pretrained ones"
    )
    add_memory(sub, " for segmenting a held-out scan")
    sub.add_argument(
        "--dry-run", action="store_true", help="check the cases and print the plan, without training"
    )
    sub.add_argument("--resume", action="store_true", help="fail unless OUT holds an unfinished training")
    sub.add_argument("--overwrite", action="store_true", help="replace a finished model in OUT")
    add_device(sub)


def _add_sides(sub: argparse.ArgumentParser) -> None:
    """Add the options for training and held-out cases."""
    add_hold_out(sub)
    sub.add_argument(
        "--folds",
        type=_folds,
        metavar="K",
        help="K-fold cross-validation over the patients; or the folds of nnU-Net, K being its splits_final.json",
    )
    sub.add_argument(
        "--fold", type=int, metavar="I", help="train only fold I, from 0 (default: all, into OUT/foldI)"
    )
    sub.add_argument("--few-shot", type=int, metavar="N", help="train on N patients only")


def _add_preparation(sub: argparse.ArgumentParser) -> None:
    """Add the options for the spacing and the windows."""
    add_grid(
        sub,
        spacing="working spacing in mm (default: from the structures' size)",
        window="window in HU (default: that of a model with its head, otherwise from the labelled voxels)",
    )
    sub.add_argument(
        "--channel-window",
        type=float,
        nargs=2,
        action="append",
        metavar=("LOW", "HIGH"),
        help="window of the second channel in its own units; again for each further one (default: from the labelled voxels)",
    )


def _add_settings(sub: argparse.ArgumentParser) -> None:
    """Add the options for the training itself."""
    number: dict[str, Any] = dict(type=int, metavar="N")
    share: dict[str, Any] = dict(type=float, metavar="SHARE")
    length = sub.add_mutually_exclusive_group()
    length.add_argument("--steps", **number, help="training steps (default: 600)")
    length.add_argument("--minutes", type=float, metavar="M", help="train for about M minutes instead")
    sub.add_argument("--lr", type=float, metavar="R", help="peak learning rate of the head (default: 0.001)")
    sub.add_argument(
        "--encoder-lr",
        type=float,
        metavar="R",
        help="peak learning rate of a pretrained encoder (default: 0.0003)",
    )
    sub.add_argument(
        "--warmup-head",
        **share,
        help="share of the steps in which the head learns alone, before a pretrained encoder joins in (default: 0)",
    )
    sub.add_argument(
        "--interpolate",
        **share,
        help="share of the starting weights in the result, for a model that brings its head (default: 0)",
    )
    sub.add_argument("--freeze", choices=["encoder"], help="train the head alone")
    sub.add_argument(
        "--layer-decay", type=float, metavar="F", help="learning rate decay per block (default: 1)"
    )
    sub.add_argument("--ema", **share, help="average the weights with this decay, such as 0.99 (default: 0)")
    sub.add_argument("--bf16", action="store_true", help="half precision on a CPU (needs AVX512_BF16 or AMX)")
    sub.add_argument(
        "--validation",
        **share,
        help="share of ten or more training patients held back for validation (default: 0.1)",
    )
    sub.add_argument(
        "--patience",
        **number,
        help="stop after N evaluations without progress, in the second half of the training (default: 5)",
    )
    sub.add_argument("--batch", **number, help="crops per step and device (default: from the crop size)")
    sub.add_argument("--crop", **number, help="crop size in voxels (default: from structures and scans)")
    sub.add_argument("--seed", type=int, metavar="N", help="random seed (default: 0)")
    sub.add_argument(
        "--deterministic",
        action="store_true",
        help="the same weights in every run, on a GPU too (slower there)",
    )
    sub.add_argument(
        "--empty",
        **share,
        help="share of the crops from scans with an empty mask (healthy people), so that less is marked where nothing is "
        "(default: as many as from any other scan)",
    )
    sub.add_argument(
        "--shift-augment",
        **number,
        help="also train on N copies of each scan under random CT shifts (default: 0)",
    )


def _add_data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "data",
        nargs="?",
        help=LABELLED,
    )
    sub.add_argument("--images", help="folder of scans, with --labels instead of DATA")
    sub.add_argument("--labels", help="folder of masks with the names of the scans")
    add_roi(sub)


def _check(args: argparse.Namespace) -> None:
    from ctssl.datasets import page
    from ctssl.datasets.checks import problems
    from ctssl.datasets.layouts import find_cases
    from ctssl.datasets.records import record_case

    if args.out:
        check_output(args.out, args.overwrite, *page.ENDINGS)
    dataset, records = find_cases(args.data, images=args.images, labels=args.labels, roi=args.roi), []

    def look(*case: Any) -> None:
        records.append(record_case(*case))

    if args.out:
        page.check_size(Path(args.out), len(dataset.cases))
    found = problems(dataset, model=args.model, look=look if args.out else None, progress=not args.json)
    errors = sum(problem.level == "error" for problem in found)
    if args.out:
        title = f"Check of {Path(args.data or args.images).resolve().name}"
        page.write_report(
            Path(args.out), records, found, names=dataset.names, title=title, progress=not args.json
        )
    if args.json:
        names = [case.name for case in dataset.cases]
        print(json.dumps({"cases": names, "problems": [asdict(p) for p in found], "out": args.out}))
    else:
        for problem in found:
            print(f"{problem.level:8} {problem.case}: {problem.message}")
        print(
            f"{len(dataset.cases)} cases, {errors} errors, {len(found) - errors} warnings{f'; {args.out}' if args.out else ''}"
        )
    if errors:
        raise ValueError(f"{errors} errors; ctssl finetune would refuse this data")


def _finetune(args: argparse.Namespace) -> None:
    from ctssl.datasets.layouts import find_cases
    from ctssl.devices import choose_device
    from ctssl.finetuning.folds import mean_of_folds
    from ctssl.finetuning.job import build_network, check_job, prepare_job
    from ctssl.finetuning.prepare import survey_warnings
    from ctssl.finetuning.request import check_request
    from ctssl.finetuning.run import finetune_folds, run

    if args.fold is not None and args.folds is None:
        raise ValueError("--fold needs --folds")
    request, every = _request(args), args.folds is not None and args.fold is None
    check_request(request)
    begun = list(request.out.glob("**/.unfinished/state.json"))
    begun += list(request.out.glob("fold*/report.json")) if every else []
    if args.resume and not begun:
        raise FileNotFoundError(f"{args.out} holds no unfinished training; leave out --resume to start one")
    dataset = find_cases(args.data, images=args.images, labels=args.labels, roi=args.roi)
    if args.dry_run:
        job = prepare_job(request, dataset)
        check_job(job)
        choose_device(args.device)
        build_network(job)
        for note in survey_warnings(job.survey, job.sides):
            print(f"warning: {note}", file=sys.stderr)
        print(json.dumps(job.plain()) if args.json else job.describe())
        return
    reports = finetune_folds(request, dataset) if every else [run(request, dataset)]
    if "RANK" in os.environ:  # of torchrun: none ends while another still talks to it
        from torch import distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
    if int(os.environ.get("RANK", 0)) > 0:  # the first one speaks
        return
    for note in dict.fromkeys(note for report in reports for note in report.warnings):
        print(f"warning: {note}", file=sys.stderr)
    if args.json:
        results = [_as_json(report) for report in reports]
        print(json.dumps(results if every else results[0]))
        return
    for report in reports:
        _print_report(report)
    if every:
        print(f"{'mean of ' + str(len(reports)) + ' folds':24} DSC {mean_of_folds(reports):.3f}")
    if failed := [str(report.folder) for report in reports if not report.learned]:
        print(f"\n{', '.join(failed)}: written, but nothing was learned, every measured DSC is 0.000")
        return
    further = "".join(f" --channel {name.replace(' ', '_').upper()}" for name in dataset.channels)
    print(
        f"\n{reports[0].folder} is ready. Next: ctssl segment SCAN OUT.nii.gz --model {reports[0].folder}{further}"
    )


def _folds(text: str) -> int | str:
    """Return a number of folds, or the name of a file."""
    return int(text) if text.lstrip("-").isdigit() else text


def _request(args: argparse.Namespace) -> Request:
    """Build the request from the command line."""
    from dataclasses import fields

    from ctssl.finetuning.request import Request
    from ctssl.finetuning.settings import Settings

    asked = {field.name: getattr(args, field.name, None) for field in fields(Settings)}
    chosen = {key: value for key, value in asked.items() if value is not None and key != "freeze"}
    return Request(
        Path(args.out),
        args.model,
        Settings(**chosen, freeze=args.freeze is not None),
        head=args.head,
        hold_out=hold_out(args.hold_out),
        few_shot=args.few_shot,
        folds=args.folds,
        fold=args.fold or 0,
        spacing_mm=args.spacing,
        window_hu=tuple(args.window) if args.window else None,
        channel_windows=[(low, high) for low, high in args.channel_window] if args.channel_window else None,
        from_scratch=args.from_scratch,
        device=args.device,
        max_memory_gb=args.max_memory,
        overwrite=args.overwrite,
        progress=not args.json,
    )


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "model": str(report.folder),
        "warnings": report.warnings,
        "held_out": report.held_out,
        "mean_dsc": as_plain(report.mean_dsc),
        "train": report.train,
    }


def _print_report(report: Report) -> None:
    """Print the DSC of every held-out case, and its mean; of several labels also the mean and the number of cases of each."""
    for case, scores in report.held_out.items():
        text = "  ".join(f"{name} DSC {value:.3f}" for name, value in scores.items())
        print(f"{case:24} {text or 'nothing to find, and nothing marked'}")
    if not report.held_out:
        return
    by_label = report.by_label()
    if len(by_label) > 1:
        for name, (mean, count) in by_label.items():
            print(f"{name + ', ' + str(count) + ' cases':24} DSC {mean:.3f}")
    print(f"{'mean of ' + str(len(report.held_out)) + ' held-out cases':24} DSC {report.mean_dsc:.3f}")
