"""`ctssl export`: a model for other programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from ctssl.cli.common import check_output

SIDE = 96


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `export`; `command(name, run, text)` is that of `ctssl.cli.main`."""
    sub = command(
        "export", _export, "write a model as a MONAI bundle, an ONNX file or a torch.export program"
    )
    sub.add_argument("model", help="name, folder or repository")
    target = sub.add_mutually_exclusive_group(required=True)
    target.add_argument("--bundle", metavar="FOLDER", help="MONAI bundle of a segmenter")
    target.add_argument(
        "--onnx", metavar="FILE.onnx", help="network alone: prepared image in, maps or logits out"
    )
    target.add_argument("--program", metavar="FILE.pt2", help="the same for torch.export.load")
    sub.add_argument(
        "--size",
        type=int,
        nargs=3,
        metavar="N",
        help=f"image size of --onnx and --program (default: the window, or {SIDE})",
    )
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")


def _export(args: argparse.Namespace) -> None:
    import ctssl
    from ctssl.loading import load_model

    if args.bundle and args.size:
        raise ValueError("--size does not apply to --bundle, which takes scans of any size")
    if args.bundle:
        from ctssl.convert.bundle import export_bundle

        out = export_bundle(ctssl.load_segmenter(args.model), args.bundle, overwrite=args.overwrite)
        after = (
            f"python -m monai.bundle run --config_file {out}/configs/inference.json --bundle_root {out} "
            "--image SCAN.nii.gz --output_dir MASKS"
        )
    else:
        model = load_model(args.model)
        x, y, z = args.size or [getattr(model, "window", SIDE)] * 3
        if min(x, y, z) < 1:
            raise ValueError(f"--size {x} {y} {z}: use three sizes of at least 1 voxel")
        check_output(args.onnx or args.program, args.overwrite, ".onnx" if args.onnx else ".pt2")
        out = Path(args.onnx or args.program)
        if args.onnx:
            ctssl.to_onnx(model, out, size=(x, y, z), overwrite=args.overwrite)
        else:
            from ctssl.convert.exporting import save_program

            save_program(model, out, size=(x, y, z))
        after = ""
    if args.json:
        print(json.dumps({"model": args.model, "out": str(out)}))
    else:
        print(f"{out}" + (f"\n\nNext:\n  {after}" if after else ""))
