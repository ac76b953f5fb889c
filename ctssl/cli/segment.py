"""`ctssl segment`: one scan, a folder of scans, a DICOM series."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctssl
from ctssl.cli.common import add_memory, add_speed, check_output, common, raise_if_failed


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `segment`; `command(name, run, text)` is that of `ctssl.cli.main`."""
    sub = command("segment", _segment, "segment a scan, or every scan of a folder, on the scan's own grid")
    sub.add_argument("scan", help=".nii, .nii.gz or DICOM folder; or a folder of any of these")
    sub.add_argument(
        "out",
        help="OUT.nii.gz, or OUT.dcm (see --format) for a DICOM series; or a folder, for a folder of scans",
    )
    sub.add_argument(
        "--format",
        choices=["seg", "rtstruct"],
        help="what OUT.dcm is: a DICOM-SEG (default), or an RT Structure Set with the contours of each slice",
    )
    sub.add_argument(
        "--model",
        required=True,
        nargs="+",
        help="segmenter: folder of `ctssl finetune`, name or repository; several, such as folds, are averaged",
    )
    sub.add_argument(
        "--channel",
        action="append",
        default=[],
        metavar="FILE",
        help="further channel of the scan, such as a PET on its grid; again for each one (a folder: CASE_0000, CASE_0001)",
    )
    sub.add_argument("--overlay", metavar="PNG", help="also draw the mask on the scan")
    sub.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation over all mirrorings: slightly better, eight times slower",
    )
    sub.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="probability threshold, above 0 and below 1; a lower one finds more (default: the model's own)",
    )
    add_memory(sub)
    add_speed(sub, "masks")
    sub.add_argument("--deterministic", action="store_true", help="the same mask in every run, on a GPU too")
    sub.add_argument(
        "--probabilities",
        action="store_true",
        help="also write the probability map of each label, OUT_LABEL.nii.gz (for a folder: OUT/probabilities)",
    )
    sub.add_argument("--resume", action="store_true", help="for a folder: skip scans whose mask is complete")
    sub.add_argument("--shard", metavar="I/N", help="for a folder: only part I of N, from 0")
    common(sub)


def _segment(args: argparse.Namespace) -> None:
    """Check what is asked for, and segment a folder, or one scan as DICOM or NIfTI."""
    from ctssl.datasets.scans import list_scans, may_be_series
    from ctssl.files.atomic import check_apart
    from ctssl.files.names import check_path
    from ctssl.inference.folder import Target, is_unfinished

    if args.format and not args.out.endswith(".dcm"):
        raise ValueError(f"--format {args.format} is for a DICOM file; name it OUT.dcm, not {args.out}")
    if not args.out.endswith((".nii", ".nii.gz", ".dcm")):
        source = Path(args.scan)
        if scans := list_scans(source, series=True, channels=True) if source.is_dir() else {}:
            _segment_folder(args, scans)
            return
        if not source.exists() or (source.is_dir() and not may_be_series(source)):
            raise FileNotFoundError(
                f"no scans in {args.scan}: give .nii, .nii.gz, a DICOM series, or a folder of them"
            )
    if args.resume or args.shard:
        raise ValueError("--resume and --shard are for a folder of scans and a folder to write to")
    scans = [Path(one) for one in (args.scan, *args.channel)]
    check_apart([Path(args.out), *([Path(args.overlay)] if args.overlay else [])], scans)
    picture = check_path(args.overlay) if args.overlay else None
    again = args.overwrite or is_unfinished(Target(check_path(args.out)), picture)
    check_output(args.out, again, ".nii", ".nii.gz", ".dcm")
    if args.overlay:
        check_output(args.overlay, again, ".png")
    if args.out.endswith(".dcm"):
        _segment_dicom(args, picture, overwrite=again)
    else:
        _segment_nifti(args, scans, picture)


def _segment_nifti(args: argparse.Namespace, scans: list[Path], picture: Path | None) -> None:
    """Segment one scan, given as the files of its channels."""
    from ctssl.files.atomic import check_apart
    from ctssl.inference.folder import target_of, write_mask
    from ctssl.inference.masks import slices_within_memory
    from ctssl.inference.memory import read_within
    from ctssl.volume.channels import Channels

    model = _model(args)
    source: Any = scans[0] if len(scans) == 1 else Channels(*scans)  # the record has the hash of these files
    if args.series:
        maps = len(model.labels) if args.probabilities else 0
        source, _ = read_within(
            source,
            lambda grid: slices_within_memory(model, grid, args.max_memory, maps=maps),
            series=args.series,
        )
    target = target_of(model, Path(args.out), with_maps=args.probabilities)
    check_apart([target.record, *target.maps.values()], scans)
    _, record = write_mask(
        model,
        source,
        target,
        windows=_windows(args),
        overwrite=args.overwrite,
        picture=picture,
        draw=lambda scan, mask, _: _draw(args, model, scan, mask),
        progress=not args.json,
    )
    _tell(args, record["volume_ml"])


def _tell(args: argparse.Namespace, volumes: dict[str, float]) -> None:
    """Print what was found and written. `volumes`: in ml, by label."""
    if args.json:
        print(json.dumps({"mask": args.out, "overlay": args.overlay, "volume_ml": volumes}))
        return
    found = ", ".join(
        f"{name} {value:.1f} ml" if value >= 1 else f"{name} {value:.3g} ml" if value else f"no {name} found"
        for name, value in volumes.items()
    )
    print(f"{args.out}: {found}" + (f"; picture {args.overlay}" if args.overlay else ""))


def _model(args: argparse.Namespace) -> Any:
    from ctssl.inference.masks import compile_once

    members = [ctssl.load_segmenter(name, device=args.device) for name in args.model]
    model: Any = members[0] if len(members) == 1 else ctssl.Ensemble(members)
    if args.threshold is not None:
        model.threshold = args.threshold
    if args.compile:  # before the first scan
        compile_once(model)
    return model


def model_name(args: argparse.Namespace) -> str:
    return " + ".join(Path(name).name for name in args.model)


def _windows(args: argparse.Namespace) -> Any:
    from ctssl.inference.windows import Windows

    return Windows(
        tta=args.tta,
        max_memory_gb=args.max_memory,
        bf16=args.bf16,
        compiled=args.compile,
        deterministic=args.deterministic,
    )


def _draw(args: argparse.Namespace, model: Any, scan: Any, mask: Any) -> None:
    """Draw the overlay, in the HU window that the model sees."""
    if args.overlay:
        from ctssl.pictures import overlay

        window = model.spec.preprocess.window_hu
        title = f"{scan.name}: {model_name(args)}"
        overlay(scan, mask, args.overlay, window_hu=window, title=title, names=model.labels)


def _segment_dicom(args: argparse.Namespace, picture: Path | None, *, overwrite: bool) -> None:
    """Segment a DICOM series and write a DICOM-SEG or RTSTRUCT. A record marks the result as unfinished until it is
    complete."""
    from ctssl.inference.folder import Target, begin, clear_leftovers
    from ctssl.inference.masks import segment, slices_within_memory
    from ctssl.inference.memory import read_within
    from ctssl.volume.channels import Channels
    from ctssl.volume.dicom_rtstruct import check_series, write_rtstruct
    from ctssl.volume.dicom_seg import write_seg

    contours = args.format == "rtstruct"
    what = "RTSTRUCT" if contours else "DICOM-SEG"
    if not Path(args.scan).is_dir():
        raise ValueError(
            f"{args.out} would be a {what}, which needs the folder of a DICOM series, not {args.scan}"
        )
    if args.probabilities:
        raise ValueError("--probabilities are NIfTI files; write the mask as OUT.nii.gz too")
    if contours:
        check_series(Path(args.scan), series=args.series)
    model = _model(args)
    source = Channels(args.scan, *args.channel)
    scan, _ = read_within(
        source, lambda grid: slices_within_memory(model, grid, args.max_memory), series=args.series
    )
    mask = segment(model, scan, _windows(args), progress=not args.json)
    target = Target(Path(args.out))
    clear_leftovers(target, picture)
    begin(target, {}, picture)
    known = (model.spec.name, model.spec.sha256) if model.spec else ("", "")
    try:
        (write_rtstruct if contours else write_seg)(
            mask,
            model.labels,
            Path(args.scan),
            Path(args.out),
            series=args.series,
            model=known[0],
            sha256=known[1],
            overwrite=overwrite,
        )
    except ValueError:  # such as an empty mask: nothing was begun that the next run may replace
        target.record.unlink(missing_ok=True)
        raise
    _draw(args, model, scan, mask)
    target.record.unlink(missing_ok=True)
    if args.json:
        print(json.dumps({"mask": args.out}))
        return
    names = [name for k, name in model.labels.items() if not contours or (mask.array == k).any()]
    print(f"{args.out}: {what} of {', '.join(names)}")


def _segment_folder(args: argparse.Namespace, scans: dict[str, Path]) -> None:
    from ctssl.inference.folder import segment_folder

    for option in ("overlay", "series", "channel"):
        if getattr(args, option):
            more = "; give the folder of one scan" if option == "series" else ""
            raise ValueError(f"--{option} is for one scan{more}")
    if args.shard:
        part, _, parts = args.shard.partition("/")
        if not part.isdigit() or not parts.isdigit() or not int(part) < int(parts):
            raise ValueError(f"--shard {args.shard}: I/N with I from 0 to N-1, such as 0/4")
        scans = {name: scans[name] for name in sorted(scans)[int(part) :: int(parts)]}
    failed = segment_folder(
        _model(args),
        scans,
        args.out,
        windows=_windows(args),
        probabilities=args.probabilities,
        resume=args.resume,
        overwrite=args.overwrite,
        progress=not args.json,
    )
    if args.json:
        print(json.dumps({"out": args.out, "scans": len(scans), "failed": failed}))
    else:
        print(f"{len(scans) - len(failed)} of {len(scans)} scans have their mask in {args.out}")
    raise_if_failed(failed)
