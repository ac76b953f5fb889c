"""`ctssl nnunet`: plans and a trainer for nnU-Net."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from ctssl.zoo import DEFAULT


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add `nnunet`; `command(name, run, text)` is that of `ctssl.cli.main`."""
    sub = command(
        "nnunet", _nnunet, "train a pretrained encoder inside nnU-Net: write plans for CtsslTrainer"
    )
    sub.add_argument(
        "dataset", nargs="?", help="number, name or folder of a dataset that nnU-Net has planned"
    )
    sub.add_argument("--path", action="store_true", help="only print the folder for nnUNet_extTrainer")
    sub.add_argument("--model", default=DEFAULT, help="starting weights (default: %(default)s)")
    sub.add_argument(
        "--head", default="", help="segmentation head (default: that of a segmenter, otherwise light)"
    )
    sub.add_argument(
        "--spacing", type=float, metavar="MM", help="working spacing in mm (default: the model's)"
    )
    sub.add_argument(
        "--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="HU window (default: the model's)"
    )
    sub.add_argument(
        "--patch", type=int, default=64, help="side of the patches in voxels (default: %(default)s)"
    )
    sub.add_argument("--batch", type=int, default=4, help="patches per iteration (default: %(default)s)")
    sub.add_argument("--epochs", type=int, default=100, help="epochs of a training (default: %(default)s)")
    sub.add_argument(
        "--iterations", type=int, default=250, help="iterations of an epoch (default: %(default)s)"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace plans that exist")


def _nnunet(args: argparse.Namespace) -> None:
    from ctssl.nnunet import TRAINERS

    if args.path:
        print(json.dumps({"path": str(TRAINERS)}) if args.json else TRAINERS)
        return
    if not args.dataset:
        raise ValueError("give a dataset (501), or --path for the folder of the trainer")
    from ctssl.nnunet.plans import CONFIGURATION, NAME, write_plans

    target = write_plans(
        args.dataset,
        model=args.model,
        head=args.head,
        spacing_mm=args.spacing,
        window_hu=tuple(args.window) if args.window else None,
        patch=args.patch,
        batch=args.batch,
        training={"epochs": args.epochs, "iterations": args.iterations},
        overwrite=args.overwrite,
    )
    if args.json:
        print(json.dumps({"plans": str(target), "path": str(TRAINERS)}))
        return
    number = int(target.parent.name[7:10]) if target.parent.name[7:10].isdigit() else target.parent.name
    print(f"""{target}

Next:
  export nnUNet_extTrainer={TRAINERS}
  nnUNetv2_preprocess -d {number} -plans_name {NAME} -c {CONFIGURATION}
  nnUNetv2_train {number} {CONFIGURATION} 0 -p {NAME} -tr CtsslTrainer     (CtsslTrainerScratch: without pretraining)
  nnUNetv2_predict -i IMAGES -o MASKS -d {number} -c {CONFIGURATION} -p {NAME} -tr CtsslTrainer -f 0""")
