"""`ctssl check` and `ctssl finetune`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import ctssl


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
    from ctssl.finetuning.settings import Settings

    if args.fold is not None and args.folds is None:
        raise ValueError("--fold needs --folds")
    if args.folds is not None and args.folds < 2:
        raise ValueError(f"--folds {args.folds}: give at least 2")
    every = args.folds is not None and args.fold is None
    begun = [
        *Path(args.out).glob("**/.unfinished/state.json"),
        *(Path(args.out).glob("fold*/report.json") if every else []),
    ]
    if args.resume and not begun:
        raise FileNotFoundError(f"{args.out} holds no unfinished training; leave out --resume to start one")
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
    chosen = {key: getattr(args, key) for key in keys}
    settings = Settings(
        **{key: value for key, value in chosen.items() if value is not None},
        freeze=args.freeze is not None,
        bf16=args.bf16,
    )
    wanted = list(range(args.folds or 0)) if every else [args.fold or 0]
    reports = [
        ctssl.finetune(
            args.data,
            images=args.images,
            labels=args.labels,
            roi=args.roi,
            model=args.model,
            head=args.head,
            out=Path(args.out) / f"fold{fold}" if every else args.out,
            hold_out=_hold_out(args.hold_out),
            folds=args.folds,
            fold=fold,
            few_shot=args.few_shot,
            spacing_mm=args.spacing,
            window_hu=tuple(args.window) if args.window else None,
            settings=settings,
            from_scratch=args.from_scratch,
            device=args.device,
            max_memory_gb=args.max_memory,
            overwrite=args.overwrite,
            keep=every and not args.overwrite,
            progress=not args.json,
        )
        for fold in wanted
    ]
    if "RANK" in os.environ:  # of torchrun: none ends while another still talks to it
        from torch import distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
    if int(os.environ.get("RANK", 0)) > 0:  # the first one speaks
        return
    for note in dict.fromkeys(note for report in reports for note in report.warnings):
        print(f"warning: {note}", file=sys.stderr)
    if args.json:
        results = [
            {
                "model": str(report.folder),
                "warnings": report.warnings,
                "held_out": report.held_out,
                "mean_dsc": report.mean_dsc if report.held_out else None,
                "train": report.train,
            }
            for report in reports
        ]
        print(json.dumps(results if every else results[0]))
        return
    for report in reports:
        for case, scores in report.held_out.items():
            print(f"{case:24} " + "  ".join(f"{name} DSC {value:.3f}" for name, value in scores.items()))
        if report.held_out:
            print(
                f"{'mean of ' + str(len(report.held_out)) + ' held-out cases':24} DSC {report.mean_dsc:.3f}"
            )
    if every:
        print(
            f"{'mean of ' + str(len(reports)) + ' folds':24} DSC {sum(r.mean_dsc for r in reports) / len(reports):.3f}"
        )
    print(f"\n{reports[0].folder} is ready. Next: ctssl segment SCAN OUT.nii.gz --model {reports[0].folder}")


def _hold_out(text: str | None) -> float | list[str] | None:
    """A share, or case names with commas between them."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return [name.strip() for name in (text or "").split(",") if name.strip()]
