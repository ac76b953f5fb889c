"""Features of whole scans: preparing, maps of any size piece by piece, one vector."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctssl.inference.memory import check_features, read_within
from ctssl.inference.windows import MEMORY_GB
from ctssl.scan_checks import check, check_channels
from ctssl.volume.grids import prepare
from ctssl.volume.volume import Volume, read, scans_in
from ctssl.zoo import Preprocess, channels_of

TILE = 96  # voxels along each side of a piece that goes through an encoder at once


class FeatureMap(NamedTuple):
    """A map `(channels, x, y, z)` float32 of a scan, and the 4x4 affine of its voxels to RAS+ mm."""

    array: np.ndarray
    affine: np.ndarray


def prepared(
    encoder: Any,
    source: Any,
    *,
    spacing_mm: float | None = None,
    window_hu: tuple[float, float] | None = None,
) -> Volume:
    """Check a scan and bring it onto the grid and into the window (0 to 1) that the encoder was trained on, or
    those given.

    Args:
        encoder: one without `spec` takes the default preparation.
        source: what `ctssl.read` takes.
        spacing_mm: spacing in mm instead of the encoder's.
        window_hu: window in HU instead of the encoder's.
    """
    known = encoder.spec.preprocess if encoder.spec else Preprocess()
    channels = channels_of(encoder)
    if channels != 1 + len(known.channels):
        raise ValueError(
            f"this model takes {channels} channels and knows no window for those beside the CT; fine-tune it on scans of "
            f"{channels} channels, or prepare each channel with a model of one channel, stack them and call the model itself"
        )
    own = replace(known, spacing_mm=spacing_mm or known.spacing_mm, window_hu=window_hu or known.window_hu)
    return prepare(check_channels(check(read(source)), own), own)


def preprocess(encoder: Any, source: Any) -> Tensor:
    """Prepare a scan as `(1, C, X, Y, Z)`; see `Pretrained.preprocess`."""
    return torch.from_numpy(prepared(encoder, source).stack)[None]


def blocks_of(encoder: Any) -> Any:
    """Return the encoder if it has features. Raises `ValueError` for nnU-Net's network, which has none."""
    if not hasattr(encoder, "forward_intermediates"):
        raise ValueError(
            "this model is one network without an encoder of ctssl (nnU-Net's, or one from elsewhere), so it has no "
            "features to embed or to compare; take one with a Swin or ViT, or `ctssl import` yours"
        )
    return encoder


@torch.inference_mode()
def feature_maps(encoder: Any, image: Tensor, *, progress: bool = False) -> list[Tensor]:
    """Compute every map `(channels[i], x, y, z)` of an image of any size, piece by piece if it is large.

    Pieces of 96 voxels overlap by a third; each place takes the piece in whose middle it lies.

    Args:
        encoder: on its device, in its precision.
        image: `(1, C, X, Y, Z)`, 0 to 1.
    """
    from tqdm import tqdm

    stride = encoder.strides[-1]
    like = next(encoder.parameters())  # device and precision
    size = image.shape[2:]
    starts = [_starts(n, TILE, TILE * 2 // 3 // stride * stride) for n in size]
    maps = [
        torch.zeros(c, *[-(-n // s) for n in size])
        for c, s in zip(encoder.channels, encoder.strides, strict=True)
    ]
    training = encoder.training
    encoder.eval()
    pieces = list(itertools.product(*starts))
    for corner in tqdm(pieces, desc="encoding", disable=not progress or len(pieces) < 2):
        part = image[(..., *[slice(s, min(s + TILE, n)) for s, n in zip(corner, size, strict=True)])]
        for out, found, fine in zip(maps, encoder(part.to(like)), encoder.strides, strict=True):
            into, take = [], []
            for s, count in zip(corner, found.shape[2:], strict=True):
                skip = TILE // 6 // fine if s > 0 else 0  # the first sixth belongs to the piece before
                into.append(slice(s // fine + skip, s // fine + count))
                take.append(slice(skip, count))
            out[(slice(None), *into)] = found[(0, slice(None), *take)].float().cpu()
    encoder.train(training)
    return maps


def map_affines(affine: np.ndarray, strides: tuple[int, ...]) -> list[np.ndarray]:
    """Return for each map the affine (4x4, its voxels to RAS+ mm) on the working grid `affine`."""
    result = []
    for stride in strides:
        own = affine.copy()
        own[:3, :3] = affine[:3, :3] * stride
        own[:3, 3] = affine[:3, :3] @ np.full(3, (stride - 1) / 2) + affine[:3, 3]
        result.append(own)
    return result


def dense(
    encoder: Any, source: Any, *, max_memory_gb: float = MEMORY_GB, progress: bool = False
) -> list[FeatureMap]:
    """Compute every map of a scan with its place; see `Pretrained.feature_maps`."""
    scan = read_for(encoder, source, max_memory_gb=max_memory_gb)
    image, maps = encode(encoder, scan, progress=progress)
    affines = map_affines(image.affine, encoder.strides)
    return [FeatureMap(m.numpy(), a) for m, a in zip(maps, affines, strict=True)]


def read_for(encoder: Any, source: Any, *, max_memory_gb: float) -> Volume:
    """Read a scan whose maps fit into the memory. Raises `ValueError` for one whose maps do not."""
    spacing_mm = (blocks_of(encoder).spec.preprocess if encoder.spec else Preprocess()).spacing_mm
    scan, _ = read_within(
        source, lambda grid: check_features(grid, encoder, spacing_mm, TILE, max_memory_gb=max_memory_gb)
    )
    return scan


def encode(encoder: Any, scan: Volume, *, progress: bool = False) -> tuple[Volume, list[Tensor]]:
    """Prepare a scan and compute its maps. Returns the prepared image and the maps."""
    image = prepared(encoder, scan)
    return image, feature_maps(encoder, torch.from_numpy(image.stack)[None], progress=progress)


def _starts(size: int, tile: int, step: int) -> list[int]:
    return [0] if size <= tile else list(range(0, size - tile + step, step))


def embed(encoder: Any, source: Any, *, max_memory_gb: float = MEMORY_GB, progress: bool = False) -> Tensor:
    """Compute one vector `(channels[-1],)` for a scan; see `Pretrained.embed`."""
    if several := scans_in(source):
        return torch.stack(
            [embed(encoder, one, max_memory_gb=max_memory_gb, progress=progress) for one in several]
        )
    scan = read_for(encoder, source, max_memory_gb=max_memory_gb)
    image, maps = encode(encoder, scan, progress=progress)
    features, stride = maps[-1], encoder.strides[-1]
    voxels = torch.from_numpy(image.array)[None, None]
    tissue = torch.nn.functional.max_pool3d(voxels, stride, ceil_mode=True)[0, 0] > 0
    chosen = features[:, tissue] if tissue.any() else features.flatten(1)
    vector = chosen.mean(1)
    if not torch.isfinite(vector).all():
        raise ValueError(
            "the encoder gives NaN or infinite features for this scan; the weights are damaged, or its training failed: get the "
            "model again, or train it again"
        )
    return vector
