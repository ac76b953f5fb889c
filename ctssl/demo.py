"""A user's first five minutes: a scan, its features in colour, and a mask where a segmenter is available."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.files.atomic import write_whole
from ctssl.files.names import check_path
from ctssl.inference.features import feature_maps, map_affines, prepared
from ctssl.loading import load, load_segmenter
from ctssl.metrics import dsc
from ctssl.phantom import phantom
from ctssl.pictures import features, overlay, principal_colours
from ctssl.volume.volume import Volume, read
from ctssl.zoo import DEFAULT, SEGMENTER, info, list_models

WRITTEN = ("phantom.nii.gz", "phantom-tumour.nii.gz", "features.png", "mask.nii.gz", "overlay.png")


def demo(
    scan: str | os.PathLike | None = None,
    *,
    out: str | os.PathLike = "ctssl-demo",
    model: str | None = None,
    encoder: str | None = None,
    series: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write a phantom (unless a scan is given), a picture of its features, and a mask by a segmenter.

    Args:
        scan: anything that `ctssl.read` accepts. Default: the phantom.
        out: folder to write. Files of an earlier demo (marked by `demo.json`) are replaced.
        model: a segmenter. Default: a published one, if there is one.
        encoder: the encoder whose features are shown.
        series: SeriesInstanceUID, when a DICOM folder holds several.
        progress: show progress bars.

    Returns:
        What was written, by name.

    Raises:
        FileExistsError: `out` holds files that are not from a demo and would be replaced.
    """
    folder = check_path(out)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose another folder (--out)")
    taken = [name for name in WRITTEN if (folder / name).exists()]
    if taken and not (folder / "demo.json").exists():
        raise FileExistsError(
            f"{folder} holds a {taken[0]} that is not from a demo and would be replaced; choose another --out"
        )
    segmenters = [name for name in list_models() if info(name).kind == "segmenter"]
    model = model or (SEGMENTER if SEGMENTER in segmenters else next(iter(segmenters), None))
    net = load_segmenter(model) if model else None
    known = [name for name in list_models() if info(name).kind == "encoder"]
    named = encoder or (DEFAULT if DEFAULT in list_models() else next(iter(known), None))
    if named is None and net is None:
        raise FileNotFoundError("this ctssl contains no encoder; give a segmenter with --model")
    backbone = load(named) if named else net.encoder  # type: ignore[union-attr]
    volume, truth = (read(scan, series=series), None) if scan else phantom()
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "demo.json", json.dumps({"made by": "ctssl demo"}) + "\n")
    written: dict[str, Any] = {"encoder": named or model}
    if truth is not None:
        written["scan"] = str(volume.save(folder / "phantom.nii.gz", overwrite=True))
        written["truth"] = str(truth.save(folder / "phantom-tumour.nii.gz", overwrite=True))
    written |= picture_features(
        backbone,
        volume,
        folder / "features.png",
        title=f"{volume.name}: features of {named or model}",
        progress=progress,
    )
    if net is not None:
        mask = net.segment(volume, overlap=0.25, progress=progress)  # half the time of 0.5
        written |= {"segmenter": model, "trained_on": net.spec.data if net.spec else ""}
        written["mask"] = str(mask.save(folder / "mask.nii.gz", overwrite=True))
        overlay(
            volume,
            mask,
            folder / "overlay.png",
            window_hu=net.spec.preprocess.window_hu,
            outline=truth,
            title=f"{volume.name}: {model}",
            names=net.labels,
        )
        written["overlay"] = str(folder / "overlay.png")
        written["volume_ml"] = {
            name: round(float((mask.array == k).sum() * mask.voxel_ml), 2) for k, name in net.labels.items()
        }
        if truth is not None:
            written["dsc"] = round(dsc(mask.array > 0, truth.array > 0), 3)
    return written


def picture_features(
    encoder: Any, volume: Volume, path: Path, *, title: str, progress: bool
) -> dict[str, Any]:
    """Write a picture of the finest feature map that has context, and return the picture and the embedding
    size.
    """
    import torch

    scan = prepared(encoder, volume)
    image = torch.from_numpy(scan.array)[None, None]
    level = 1 if len(encoder.strides) > 2 and len(set(encoder.strides)) > 1 else -1
    maps = feature_maps(encoder, image, progress=progress)[level].numpy()
    tissue = torch.nn.functional.max_pool3d(image, encoder.strides[level], ceil_mode=True)[0, 0].numpy() > 0.3
    tissue = tissue if tissue.sum() > 10 else np.ones_like(tissue)
    colours = principal_colours(maps, tissue)
    features(volume, colours, path, affine=map_affines(scan.affine, encoder.strides)[level], title=title)
    return {"features": str(path), "embedding": int(encoder.channels[-1])}
