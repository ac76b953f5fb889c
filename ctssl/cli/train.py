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

if TYPE_CHECKING:
    from ctssl.finetuning.report import Report
    from ctssl.finetuning.request import Request


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The two commands, by `command(name, run, text)` of `ctssl.cli.main`."""
    sub = command(
        "check", _check, "what is wrong with labelled scans, case by case, before anything is trained on them"
    )
    _data(sub)
    sub.add_argument(
        "--model",
        help="also say which scans this model was pretrained on (exact copies, and known DICOM series)",
    )
    sub = command(
        "finetune", _finetune, "train a segmenter on labelled scans; hold cases out and report their DSC"
    )
    _data(sub)
    sub.add_argument("--out", required=True, help="folder for the segmenter")
    sub.add_argument(
        "--model",
        default="swin-wild-mim",
        help="encoder: name, folder or repository; or a baseline: swin-scratch, vit-scratch, dynunet (default: %(default)s)",
    )
    sub.add_argument(
        "--head", default="light", help="light, linear, smit, swin-unetr or unetr (default: %(default)s)"
    )
    sub.add_argument(
        "--hold-out",
        help="share of patients, or case names with commas (default: the table's column split, or 0.2)",
    )
    sub.add_argument("--folds", type=int, metavar="K", help="hold out one of K parts of the patients instead")
    sub.add_argument(
        "--fold", type=int, metavar="I", help="which, from 0; without it all, each into OUT/foldI"
    )
    sub.add_argument("--few-shot", type=int, metavar="N", help="train on N patients only")
    sub.add_argument(
        "--spacing", type=float, metavar="MM", help="to work at (default: from the tumours' size)"
    )
    sub.add_argument(
        "--window",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="HU between which contrast is kept (default: from the tumours)",
    )
    sub.add_argument("--steps", type=int, help="training steps (default: 600)")
    sub.add_argument("--minutes", type=float, help="train for about so long instead")
    sub.add_argument("--freeze", choices=["encoder"], help="leave it as it is, train the head alone")
    sub.add_argument("--layer-decay", type=float, help="of the learning rate, a block (default: 1, none)")
    sub.add_argument(
        "--ema", type=float, metavar="D", help="judge and keep an average of the weights with this decay"
    )
    sub.add_argument(
        "--bf16", action="store_true", help="half precision on a CPU too (with AVX512_BF16 or AMX, for speed)"
    )
    sub.add_argument(
        "--validation",
        type=float,
        metavar="SHARE",
        help="of the training patients (of ten or more), to choose the best weights by (default: 0.1)",
    )
    sub.add_argument(
        "--patience",
        type=int,
        metavar="N",
        help="end when N of the 20 evaluations in a row brought nothing, in "
        "the second half of the training (default: 5)",
    )
    sub.add_argument(
        "--dry-run", action="store_true", help="check the cases and print the plan, without training"
    )
    sub.add_argument(
        "--resume", action="store_true", help="insist on an unfinished training in OUT, which goes on anyway"
    )
    sub.add_argument("--batch", type=int, help="crops per step and device (default: 4, or 2 large ones)")
    sub.add_argument(
        "--crop", type=int, help="voxels along each side of a crop (default: 64; 96 for large tumours)"
    )
    sub.add_argument("--seed", type=int, help="default: 0")
    sub.add_argument(
        "--shift-augment",
        type=int,
        metavar="N",
        help="train on N copies of each scan too, as another "
        "protocol or kernel would have given it (default: 0)",
    )
    sub.add_argument(
        "--from-scratch",
        action="store_true",
        help="forget the pretrained weights, to see what they are worth",
    )
    sub.add_argument(
        "--max-memory",
        type=float,
        default=8.0,
        metavar="GB",
        help="that segmenting a held-out scan may take (default: %(default)s)",
    )
    sub.add_argument("--overwrite", action="store_true", help="replace a finished model in OUT")
    sub.add_argument("--device", default="auto")


def _data(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "data",
        nargs="?",
        help="folder with images/ and labels/, of nnU-Net or Decathlon, of DICOM patients, or a CSV",
    )
    sub.add_argument("--images", help="folder of scans, with --labels instead of DATA")
    sub.add_argument("--labels", help="folder of masks with the names of the scans")
    sub.add_argument("--roi", help="the structure to take, when an RTSTRUCT or SEG holds several")


def _check(args: argparse.Namespace) -> None:
    from ctssl.datasets.checks import problems
    from ctssl.datasets.layouts import find_cases

    dataset = find_cases(args.data, images=args.images, labels=args.labels, roi=args.roi)
    found = problems(dataset, model=args.model, progress=not args.json)
    errors = sum(problem.level == "error" for problem in found)
    if args.json:
        print(
            json.dumps(
                {"cases": [case.name for case in dataset.cases], "problems": [asdict(p) for p in found]}
            )
        )
    else:
        for problem in found:
            print(f"{problem.level:8} {problem.case}: {problem.message}")
        print(f"{len(dataset.cases)} cases, {errors} errors, {len(found) - errors} warnings")
    if errors:
        raise ValueError(f"{errors} errors; ctssl finetune would refuse this data")


def _finetune(args: argparse.Namespace) -> None:
    from ctssl.datasets.layouts import find_cases
    from ctssl.finetuning.request import check_request
    from ctssl.finetuning.run import finetune_folds, prepare_job, run

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
        print(prepare_job(request, dataset).describe())
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
        mean = sum(report.mean_dsc for report in reports) / len(reports)
        print(f"{'mean of ' + str(len(reports)) + ' folds':24} DSC {mean:.3f}")
    if not all(report.learned for report in reports):
        print(f"\n{reports[0].folder} was written, but it has learned nothing: every measured DSC is 0.000")
        return
    print(f"\n{reports[0].folder} is ready. Next: ctssl segment SCAN OUT.nii.gz --model {reports[0].folder}")


def _request(args: argparse.Namespace) -> Request:
    """What was asked for, from the command line."""
    from ctssl.finetuning.request import Request
    from ctssl.finetuning.settings import Settings

    keys = (
        "steps",
        "minutes",
        "batch",
        "crop",
        "seed",
        "layer_decay",
        "ema",
        "validation",
        "patience",
        "shift_augment",
    )
    chosen = {key: getattr(args, key) for key in keys if getattr(args, key) is not None}
    return Request(
        Path(args.out),
        args.model,
        Settings(**chosen, freeze=args.freeze is not None, bf16=args.bf16),
        head=args.head,
        hold_out=_hold_out(args.hold_out),
        few_shot=args.few_shot,
        folds=args.folds,
        fold=args.fold or 0,
        spacing_mm=args.spacing,
        window_hu=tuple(args.window) if args.window else None,
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
        "mean_dsc": report.mean_dsc if report.held_out else None,
        "train": report.train,
    }


def _print_report(report: Report) -> None:
    """DSC of every held-out case; its mean by label, with the number of cases that have it."""
    for case, scores in report.held_out.items():
        text = "  ".join(f"{name} DSC {value:.3f}" for name, value in scores.items())
        print(f"{case:24} {text or 'no label that the model knows'}")
    if not report.held_out:
        return
    by_label = report.by_label()
    if len(by_label) > 1:
        for name, (mean, count) in by_label.items():
            print(f"{name + ', ' + str(count) + ' cases':24} DSC {mean:.3f}")
    print(f"{'mean of ' + str(len(report.held_out)) + ' held-out cases':24} DSC {report.mean_dsc:.3f}")


def _hold_out(text: str | None) -> float | list[str] | None:
    """A share, or case names with commas between them."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return [name.strip() for name in (text or "").split(",") if name.strip()]
