"""Write nnU-Net plans for an encoder of ctssl. Needs no nnU-Net."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ctssl.files.atomic import write_whole
from ctssl.files.text import read_json
from ctssl.finetuning.start import open_start
from ctssl.heads import HEADS

NAME = "ctsslPlans"
CONFIGURATION = "3d_fullres"
READER = "NibabelIOWithReorient"  # hands over RAS+, as the encoders were pretrained
TRAINING = {
    "epochs": 100,
    "iterations": 250,
    "lr": 1e-3,
    "encoder_lr": 3e-4,
    "warmup_head": 0.1,
    "weight_decay": 0.01,
}
"""What `CtsslTrainer` reads from the plans: iterations of an epoch, peak learning rates of head and encoder, and the
share of the epochs in which the head is trained alone."""


def find_dataset(dataset: str | int) -> Path:
    """Return the folder of a dataset in `nnUNet_preprocessed`.

    Args:
        dataset: its number (501), its name (`Dataset501_Lung`), or the folder itself.

    Raises:
        FileNotFoundError: there is none; the message says which command of nnU-Net writes it.
    """
    if (Path(str(dataset)) / "nnUNetPlans.json").is_file():
        return Path(str(dataset))
    base = os.environ.get("nnUNet_preprocessed")  # noqa: SIM112
    if not base:
        raise FileNotFoundError(
            "nnUNet_preprocessed is not set; export it as nnU-Net's documentation says, or give a folder"
        )
    name = f"Dataset{int(dataset):03d}_*" if str(dataset).isdigit() else str(dataset)
    found = sorted(path.parent for path in Path(base).glob(f"{name}/nnUNetPlans.json"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{len(found)} datasets {name} with nnUNetPlans.json in {base}; run `nnUNetv2_plan_and_preprocess -d ID "
            "--no_pp --verify_dataset_integrity` first, or give the folder"
        )
    return found[0]


def write_plans(
    dataset: str | int,
    *,
    model: str,
    head: str = "",
    spacing_mm: float | None = None,
    window_hu: tuple[float, float] | None = None,
    patch: int = 64,
    batch: int = 4,
    training: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `ctsslPlans.json` beside nnU-Net's own plans, and return its path.

    Args:
        dataset: number, name or folder of a dataset that nnU-Net has planned.
        model: the pretrained weights: what `ctssl.load` takes.
        head: key of `ctssl.heads.HEADS`; "" is that of a segmenter, otherwise `light`.
        spacing_mm: working spacing in mm. Default: that of the model.
        window_hu: HU window. Default: that of the model.
        patch: side of the patches in voxels.
        batch: patches per iteration.
        training: changes of `TRAINING`.
        overwrite: replace existing plans.

    Raises:
        FileNotFoundError: nnU-Net has not planned the dataset.
        FileExistsError: the plans exist and `overwrite` is False.
        ValueError: the dataset is not 3D NIfTI with one channel, or a setting is invalid.
    """
    folder = find_dataset(dataset)
    target = folder / f"{NAME}.json"
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; add --overwrite to replace it")
    plans = _read_plans(folder)
    start = open_start(model, head, from_scratch=False, seed=0)
    pre = start.spec.preprocess
    spacing, window = spacing_mm or pre.spacing_mm, window_hu or pre.window_hu
    numbers = {**TRAINING, **(training or {})}
    _check(start.head, spacing, window, patch, batch, numbers)
    architecture = {
        "network_class_name": "ctssl.nnunet.network.Network",
        "arch_kwargs": {
            "encoder": start.encoder.architecture,
            "encoder_args": start.encoder.config,
            "head": start.head,
            "spacing_mm": spacing,
            "window_hu": list(window),
            "patch": patch,
        },
        "_kw_requires_import": [],
    }
    configuration = {
        **plans["configurations"][CONFIGURATION],
        "data_identifier": f"{NAME}_{CONFIGURATION}",
        "batch_size": batch,
        "patch_size": [patch] * 3,
        "spacing": [spacing] * 3,
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": True,
        "architecture": architecture,
        "ctssl": {"model": str(model), "sha256": start.weights, **numbers},
    }
    plans |= {
        "plans_name": NAME,
        "image_reader_writer": READER,
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
    }
    write_whole(target, json.dumps(plans, indent=2) + "\n")
    return target


def _read_plans(folder: Path) -> dict[str, Any]:
    """Return nnU-Net's own plans of a dataset. Raises `ValueError` for data that no encoder takes."""
    plans, about = read_json(folder / "nnUNetPlans.json"), read_json(folder / "dataset.json")
    channels = about.get("channel_names") or about.get("modality") or {}
    if len(channels) != 1 or about.get("file_ending") not in (".nii.gz", ".nii"):
        raise ValueError(
            f"{folder.name} has {len(channels)} channels in {about.get('file_ending')} files; ctssl's encoders take "
            "one channel, CT in HU, from .nii.gz or .nii"
        )
    if CONFIGURATION not in plans["configurations"]:
        raise ValueError(f"{folder.name} has no configuration {CONFIGURATION}; ctssl's encoders are 3D")
    return plans


def _check(
    head: str, spacing: float, window: tuple[float, float], patch: int, batch: int, numbers: dict[str, Any]
) -> None:
    """Raise `ValueError` for settings that are unknown or out of range."""
    if head not in HEADS:
        raise ValueError(f"unknown head {head!r}; use {', '.join(sorted(HEADS))}")
    if unknown := set(numbers) - set(TRAINING):
        raise ValueError(f"unknown settings {', '.join(sorted(unknown))}; use {', '.join(TRAINING)}")
    wrong = [f"spacing {spacing:g} mm (0.2 to 10)"] if not 0.2 <= spacing <= 10 else []
    wrong += [f"window {window[0]:g} to {window[1]:g} HU (rising)"] if not window[0] < window[1] else []
    wrong += [f"patch {patch} (16 to 256)"] if not 16 <= patch <= 256 else []
    least = {"batch": batch, "epochs": numbers["epochs"], "iterations": numbers["iterations"]}
    wrong += [f"{key} {value} (at least 1)" for key, value in least.items() if value < 1]
    if wrong:
        raise ValueError(f"invalid settings: {', '.join(wrong)}")
