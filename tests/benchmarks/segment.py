"""Whole-scan segmentation, ours against MONAI's Swin UNETR: `python -m tests.benchmarks.segment [SCAN] [windows]`.

One scan (`lung_tumours/LIDC-IDRI-0314` of the data folder) at 1.5 mm, windows of 96 voxels that overlap by half, one process.
First end to end, once each, in turn: our published Swin with `light`, with and without skipping air, and MONAI's network
(feature size 48, flash attention) under MONAI's sliding windows. Then the same MONAI weights in our implementation of that
network, window by window in turn, and the share of the encoder. Nothing is trained: the time does not depend on the weights.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from monai.inferers.utils import sliding_window_inference
from monai.networks.nets.swin_unetr import SwinUNETR

import ctssl
from ctssl.encoders.swin import Swin
from ctssl.heads.segmenter import Segmenter
from ctssl.inference.features import prepared
from ctssl.inference.masks import onto, probabilities_of
from ctssl.inference.windows import Windows
from ctssl.volume.grids import prepare
from ctssl.volume.volume import Volume
from ctssl.zoo import ModelSpec, Preprocess
from tests.support.monai_keys import MONAI_SWIN, our_decoder_state, our_swin_state
from training.data.corpora import data_folder

WINDOW, OVERLAP, PREPROCESS = 96, 0.5, Preprocess(1.5)


def published() -> Segmenter:
    encoder: Any = ctssl.load("swin-wild-mim")
    encoder.spec = replace(encoder.spec, preprocess=PREPROCESS)
    model = ctssl.segmenter(encoder).eval()
    model.window = WINDOW
    return model


def pair() -> tuple[SwinUNETR, Segmenter]:
    """MONAI's network, and ours with its weights."""
    torch.manual_seed(0)
    theirs = SwinUNETR(in_channels=1, out_channels=2, feature_size=48, use_flash_attention=True).eval()
    swin = Swin(**MONAI_SWIN)
    swin.load_state_dict(our_swin_state(theirs.swinViT.state_dict()))
    swin.spec = ModelSpec("monai", "encoder", "swin", preprocess=PREPROCESS)
    ours = Segmenter(swin, head="swin-unetr").eval()
    ours.head.load_state_dict(our_decoder_state(theirs.state_dict()))
    ours.window = WINDOW
    return theirs, ours


def through_monai(net: SwinUNETR, scan: Volume) -> None:
    """Read scan to labels on its own grid, as a MONAI user would."""
    ready = prepare(scan, PREPROCESS)
    with torch.inference_mode():
        found = sliding_window_inference(
            torch.from_numpy(ready.array)[None, None],
            WINDOW,
            1,
            net,
            overlap=OVERLAP,
            mode="gaussian",
            progress=True,
        )
    assert isinstance(found, torch.Tensor)
    onto(found[0].softmax(0).numpy(), ready.affine, scan)


def through_ours(model: Segmenter, scan: Volume, *, skip_air: bool) -> None:
    image = prepared(model.encoder, scan)
    found, affine = probabilities_of(model, image, Windows(OVERLAP), progress=True, skip_air=skip_air)
    onto(found, affine, scan)


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.inference_mode()
def same_weights(theirs: SwinUNETR, ours: Segmenter, scan: Volume, windows: int) -> None:
    """Seconds for a window by both, the shares of the encoder, and the largest difference."""
    ready = prepare(scan, PREPROCESS).array
    middle = [slice((n - WINDOW) // 2, (n - WINDOW) // 2 + WINDOW) for n in ready.shape]
    x = torch.from_numpy(ready[tuple(middle)].copy())[None, None]
    print(f"same weights, largest difference of a logit: {(theirs(x) - ours(x)).abs().max().item():.1e}")
    parts: dict[str, Callable[[], Any]] = {
        "monai": lambda: theirs(x),
        "ctssl": lambda: ours(x),
        "monai encoder": lambda: theirs.swinViT(x),
        "ctssl encoder": lambda: ours.encoder(x),
    }
    taken: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(windows):
        for name, work in parts.items():
            taken[name].append(seconds(work))
    found = {name: statistics.median(values) for name, values in taken.items()}
    print(
        f"same weights, a window: monai {found['monai']:.2f} s, ctssl {found['ctssl']:.2f} s, "
        f"ratio {found['monai'] / found['ctssl']:.2f}"
    )
    for name in ("monai", "ctssl"):
        print(f"  of it the encoder: {name} {found[f'{name} encoder'] / found[name]:.0%}")


def main(scan_path: str = "", windows: int = 5) -> None:
    scan = ctssl.read(scan_path or data_folder() / "lung_tumours" / "images" / "LIDC-IDRI-0314.nii.gz")
    theirs, ours = pair()
    same_weights(theirs, ours, scan, int(windows))
    mine = published()
    ways = {
        "ctssl": lambda: through_ours(mine, scan, skip_air=True),
        "monai": lambda: through_monai(theirs, scan),
        "ctssl, air too": lambda: through_ours(mine, scan, skip_air=False),
    }
    found = {name: seconds(work) for name, work in ways.items()}
    for name, value in found.items():
        print(f"end to end, {name}: {value:.1f} s, monai takes {found['monai'] / value:.1f} times as long")


if __name__ == "__main__":
    main(*sys.argv[1:])
