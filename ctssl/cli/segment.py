"""`ctssl segment`: one scan, a folder of scans, a DICOM series."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ctssl
from ctssl.cli.common import common, complain, free, may_be_series, scans_of

if TYPE_CHECKING:
    from pathlib import Path


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """The command, by `command(name, run, text)` of `ctssl.cli.main`."""
    sub = command(
        "segment", _segment, "a mask for a scan, or for every scan of a folder, on the scan's own grid"
    )
    sub.add_argument("scan", help=".nii, .nii.gz or DICOM folder; or a folder of any of these")
    sub.add_argument(
        "out",
        help="OUT.nii.gz, or OUT.dcm (DICOM-SEG) for a DICOM series; or a folder, for a folder of scans",
    )
    sub.add_argument(
        "--model", required=True, help="a segmenter: folder of `ctssl finetune`, name or repository"
    )
    sub.add_argument("--overlay", metavar="PNG", help="also a picture of the mask on the scan")
    sub.add_argument(
        "--tta", action="store_true", help="average over all mirrorings: a little better, eight times slower"
    )
    sub.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="probability from which on a voxel counts; lower finds more (default: the model's own)",
    )
    sub.add_argument(
        "--max-memory", type=float, default=8.0, metavar="GB", help="that it may take (default: %(default)s)"
    )
    sub.add_argument(
        "--probabilities",
        action="store_true",
        help="also a map of each label, OUT_LABEL.nii.gz (folder: OUT/probabilities)",
    )
    sub.add_argument(
        "--resume", action="store_true", help="of a folder, leave out scans that have their mask"
    )
    sub.add_argument("--shard", metavar="I/N", help="of a folder, only part I of N (from 0)")
    common(sub)


def _segment(args: argparse.Namespace) -> None:
    from pathlib import Path

    if not args.out.endswith((".nii", ".nii.gz", ".dcm")):
        if scans := scans_of(Path(args.scan)):
            _segment_folder(args, scans)
            return
        if not Path(args.scan).exists() or (Path(args.scan).is_dir() and not may_be_series(Path(args.scan))):
            raise FileNotFoundError(
                f"no scans in {args.scan}: give .nii, .nii.gz, a DICOM series, or a folder of them"
            )
    if args.resume or args.shard:
        raise ValueError("--resume and --shard are for a folder of scans and a folder to write to")
    from ctssl.files.atomic import apart
    from ctssl.inference.folder import write_mask

    apart([Path(args.out), *([Path(args.overlay)] if args.overlay else [])], [Path(args.scan)])
    free(args.out, args.overwrite, ".nii", ".nii.gz", ".dcm")
    if args.overlay:
        free(args.overlay, args.overwrite, ".png")
    if args.out.endswith(".dcm") and not Path(args.scan).is_dir():
        raise ValueError(
            f"{args.out} would be a DICOM-SEG, which needs the folder of a DICOM series, not {args.scan}"
        )
    model = _model(args)
    scan = ctssl.read(args.scan, series=args.series)
    if args.out.endswith(".dcm"):
        _segment_dicom(args, model, scan)
        return
    mask, facts = write_mask(
        model,
        scan,
        Path(args.out),
        tta=args.tta,
        max_memory_gb=args.max_memory,
        with_probabilities=args.probabilities,
        overwrite=args.overwrite,
        progress=not args.json,
    )
    if args.overlay:
        from ctssl.pictures import overlay

        overlay(scan, mask, args.overlay, title=f"{scan.name}: {args.model}")
    if args.json:
        print(json.dumps({"mask": args.out, "overlay": args.overlay, "volume_ml": facts["volume_ml"]}))
        return
    found = ", ".join(
        f"{name} {value:.1f} ml" if value else f"no {name} found"
        for name, value in facts["volume_ml"].items()
    )
    print(f"{args.out}: {found}" + (f"; picture {args.overlay}" if args.overlay else ""))


def _model(args: argparse.Namespace) -> Any:
    model = ctssl.load_segmenter(args.model, device=args.device)
    if args.threshold is not None:
        model.threshold = args.threshold
    return model


def _segment_dicom(args: argparse.Namespace, model: Any, scan: Any) -> None:
    from pathlib import Path

    from ctssl.volume.dicom_seg import write_seg

    if args.probabilities:
        raise ValueError("--probabilities are NIfTI files; write the mask as OUT.nii.gz too")
    mask = model.segment(scan, tta=args.tta, max_memory_gb=args.max_memory, progress=not args.json)
    known = (model.spec.name, model.spec.sha256) if model.spec else ("", "")
    write_seg(
        mask,
        model.labels,
        Path(args.scan),
        Path(args.out),
        series=args.series,
        model=known[0],
        sha256=known[1],
        overwrite=args.overwrite,
    )
    if args.overlay:
        from ctssl.pictures import overlay

        overlay(scan, mask, args.overlay, title=f"{scan.name}: {args.model}")
    print(
        json.dumps({"mask": args.out})
        if args.json
        else f"{args.out}: DICOM-SEG of {', '.join(model.labels.values())}"
    )


def _segment_folder(args: argparse.Namespace, scans: dict[str, Path]) -> None:
    from pathlib import Path

    from ctssl.files.atomic import apart
    from ctssl.inference.folder import segment_all

    if args.overlay or args.series:
        raise ValueError(f"{'--overlay' if args.overlay else '--series'} is for one scan")
    out = Path(args.out)
    if args.shard:
        part, _, parts = args.shard.partition("/")
        if not part.isdigit() or not parts.isdigit() or not int(part) < int(parts):
            raise ValueError(f"--shard {args.shard}: I/N with I from 0 to N-1, such as 0/4")
        scans = {name: scans[name] for name in sorted(scans)[int(part) :: int(parts)]}
    there = [name for name in scans if (out / f"{name}.nii.gz").exists()]
    apart([out / f"{name}.nii.gz" for name in scans], list(scans.values()))
    if there and not args.resume and not args.overwrite:
        raise FileExistsError(
            f"{out} holds masks of {len(there)} of these scans; add --resume or --overwrite"
        )
    model = _model(args)
    failed = segment_all(
        model,
        scans,
        out,
        tta=args.tta,
        max_memory_gb=args.max_memory,
        with_probabilities=args.probabilities,
        resume=args.resume,
        overwrite=args.overwrite,
        progress=not args.json,
    )
    if args.json:
        print(json.dumps({"out": args.out, "scans": len(scans), "failed": failed}))
    else:
        print(f"{len(scans) - len(failed)} of {len(scans)} scans have their mask in {out}")
    complain(failed)
