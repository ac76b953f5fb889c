"""Write a segmenter as a MONAI bundle, and what such a bundle runs: transforms, inferer, runner.

The bundle computes the mask of `ctssl segment`, so it needs ctssl where it runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from safetensors.torch import load_file
from torch import Tensor, nn

import ctssl
from ctssl.encoders import ENCODERS, plain_args
from ctssl.encoders.pixels import Pixels
from ctssl.files.atomic import check_empty, write_whole
from ctssl.files.weights import write_weights
from ctssl.heads.segmenter import Segmenter, segmenter_config, segmenter_settings
from ctssl.hub.folder import bundled
from ctssl.inference.masks import onto
from ctssl.inference.windows import Windows, slide
from ctssl.scan_checks import check
from ctssl.volume.grids import prepare
from ctssl.volume.volume import Volume, read
from ctssl.zoo import Preprocess

HERE = "ctssl.convert.bundle"


def export_bundle(model: Segmenter, out: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """Write a MONAI bundle: `configs/metadata.json`, `configs/inference.json`, `models/model.pt`, `LICENSE`, `docs`.

    Args:
        model: a segmenter.
        out: folder to write.
        overwrite: replace the files of an earlier export.

    Raises:
        FileExistsError: the folder is not empty and `overwrite` is False.
    """
    folder = Path(out)
    if model.in_channels != 1:
        raise ValueError(
            f"a bundle takes one CT, this model {model.in_channels} channels; use `ctssl export --onnx`"
        )
    check_empty(folder, overwrite=overwrite)
    name = folder.resolve().name
    config = segmenter_config(model, name=name)
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_weights(folder / "models" / "model.safetensors", state, metadata={"format": "pt"})
    write_whole(
        folder / "models" / "model.pt", lambda part: torch.save(state, part)
    )  # MONAI Label takes this name
    write_whole(folder / "configs" / "metadata.json", json.dumps(_metadata(model, config), indent=2) + "\n")
    write_whole(folder / "configs" / "inference.json", json.dumps(_inference(config), indent=2) + "\n")
    licence = config["licence"] or "not stated; ask whoever gave you the weights"
    write_whole(folder / "LICENSE", f"Weights: {licence}\nTrained on: {config['data'] or 'not stated'}\n")
    write_whole(folder / "docs" / "README.md", _readme(name, config))
    return folder


def _metadata(model: Segmenter, config: dict[str, Any]) -> dict[str, Any]:
    names = ["background", *(model.labels[i] for i in sorted(model.labels))]
    size = ["*", "*", "*"]
    return {
        "version": ctssl.__version__,
        "changelog": {ctssl.__version__: "exported by ctssl"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"ctssl": ctssl.__version__},
        "task": f"segmentation of {', '.join(names[1:])} in CT",
        "description": f"{config['encoder']} with head {config['head']}, {config['parameters'] / 1e6:.1f} M parameters",
        "authors": "exported by ctssl",
        "copyright": config["licence"],
        "data_source": config["data"],
        "data_type": "nibabel",
        "intended_use": "research only; not a medical device",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield",
                    "modality": "CT",
                    "num_channels": 1,
                    "spatial_shape": size,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(names),
                    "spatial_shape": size,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": {str(i): label for i, label in enumerate(names)},
                }
            },
        },
    }


def _inference(config: dict[str, Any]) -> dict[str, Any]:
    how = config["preprocess"]
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "image": "$@bundle_root + '/images'",
        "images": "$[@image] if not os.path.isdir(@image) else sorted(glob.glob(@image + '/*.nii*'))",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "cpu",
        "network_def": {"_target_": f"{HERE}.build", "config": config},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": f"{HERE}.Prepared", "keys": "image", **how},
            ],
        },
        "inferer": {"_target_": f"{HERE}.Inferer", "window": config["window"]},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": f"{HERE}.Restored",
                    "keys": "pred",
                    "image": "image",
                    "threshold": config["threshold"],
                },
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_dtype": "uint8",
                    "resample": False,
                    "separate_folder": False,
                },
            ],
        },
        "runner": {
            "_target_": f"{HERE}.Runner",
            "images": "@images",
            "network": "@network",
            "weights": "$@bundle_root + '/models/model.safetensors'",
            "preprocessing": "@preprocessing",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@runner()"],
    }


def _readme(name: str, config: dict[str, Any]) -> str:
    labels = ", ".join(f"{number} {label}" for number, label in config["labels"].items())
    return f"""# {name}

Segments CT in Hounsfield units; labels: {labels}. It gives the mask of `ctssl segment` and needs ctssl {ctssl.__version__} or
later.

    pip install ctssl fire
    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --image SCAN.nii.gz --output_dir masks

`--image` also takes a folder. For research only; not a medical device.
"""


def build(config: dict[str, Any]) -> Segmenter:
    """Return the segmenter of a `config.json`, with initial weights and in evaluation mode."""
    args = plain_args(config["encoder_args"])
    encoder: Any = {**ENCODERS, "pixels": Pixels}[config["encoder"]](**args)
    return Segmenter(encoder, **segmenter_settings(config, bundled())).eval()


class Prepared:
    """Dictionary transform: a scan `(1, X, Y, Z)` in HU to the working grid, 0 to 1.

    Args:
        keys: key of the image.
        spacing_mm: working spacing in mm.
        window_hu: lower and upper HU.
    """

    def __init__(self, keys: str, spacing_mm: float, window_hu: tuple[float, float]) -> None:
        self.key, self.how = keys, Preprocess(spacing_mm, (window_hu[0], window_hu[1]))

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        image = data[self.key]
        scan = check(read(image))
        ready = prepare(scan, self.how)
        meta = {**image.meta, "scan_affine": scan.affine, "scan_shape": scan.shape}
        affine = torch.from_numpy(ready.affine)
        return {**data, self.key: MetaTensor(torch.from_numpy(ready.array)[None], affine=affine, meta=meta)}


class Inferer:
    """Sliding windows as those of `ctssl segment`: an image `(1, 1, x, y, z)` to probabilities `(1, classes, x, y, z)`.

    Args:
        window: side of a window in voxels.
        overlap: share by which neighbouring windows overlap.
    """

    def __init__(self, window: int, overlap: float = 0.5) -> None:
        self.window, self.windows = window, Windows(overlap)

    def __call__(self, inputs: Tensor, network: nn.Module, *_: Any, **__: Any) -> Tensor:
        net: Any = network.eval()
        like = next(net.parameters())
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        found = slide(
            net,
            image[0, 0].cpu().float().numpy(),
            self.window,
            classes=net.classes,
            windows=self.windows,
            device=like.device,
            dtype=like.dtype,
        )
        return torch.from_numpy(found)[None]


class Restored:
    """Dictionary transform: probabilities `(classes, x, y, z)` to labels `(1, X, Y, Z)` on the scan's own grid.

    Args:
        keys: key of the probabilities.
        image: key of the image, as `Prepared` left it.
        threshold: probability from which on a label is preferred to the background.
    """

    def __init__(self, keys: str, image: str, threshold: float = 0.5) -> None:
        self.key, self.image, self.threshold = keys, image, threshold

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        image = data[self.image]
        shape, scan_affine = tuple(image.meta["scan_shape"]), np.asarray(image.meta["scan_affine"])
        grid = Volume(np.empty(shape, np.uint8), scan_affine)
        found = np.asarray(data[self.key])
        labels = onto(found, image.affine.numpy(), grid, threshold=self.threshold)
        meta = {k: v for k, v in image.meta.items() if not k.startswith("scan_")}
        affine = torch.from_numpy(scan_affine)
        return {**data, self.key: MetaTensor(torch.from_numpy(labels)[None], affine=affine, meta=meta)}


class Runner:
    """Segment files, one after the other: what `monai.bundle run` calls."""

    def __init__(
        self,
        images: list[str],
        network: nn.Module,
        weights: str,
        preprocessing: Callable,
        inferer: Callable,
        postprocessing: Callable,
    ) -> None:
        if not images:
            raise ValueError("no image: give --image, a file or a folder with .nii or .nii.gz files")
        self.images, self.network, self.weights = images, network, weights
        self.preprocessing, self.inferer, self.postprocessing = preprocessing, inferer, postprocessing

    def __call__(self) -> None:
        self.network.load_state_dict(load_file(self.weights))
        for path in self.images:
            data = self.preprocessing({"image": path})
            self.postprocessing({**data, "pred": self.inferer(data["image"][None], self.network)[0]})
