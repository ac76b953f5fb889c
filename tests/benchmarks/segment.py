"""Whole-scan segmentation, ours against MONAI's Swin UNETR: `python -m tests.benchmarks.segment [SCAN] [windows]`.

One scan (`lung_tumours/LIDC-IDRI-0314` of the data folder; without it a phantom of 320 x 240 x 240 mm at 0.7 mm) at 1.5 mm,
windows of 96 voxels that overlap by half, one process; `--device cuda`. First the same MONAI weights (feature size 48, flash
attention) in our implementation of that network, window by window in turn, and the share of the encoder. Then end to end, once
each, in turn: our Swin with `light`, with and without skipping air, and MONAI's network under MONAI's sliding windows. Last what
reading, resampling, the network and the way back to the scan's grid take of `vit-wild-lesions` as it is used. Nothing is trained:
the time does not depend on the weights.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
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
from ctssl.phantom import phantom
from ctssl.volume.grids import prepare
from ctssl.volume.volume import Volume
from ctssl.zoo import ModelSpec, Preprocess, info
from tests.benchmarks.device import chosen, now, untrained
from tests.support.monai_keys import MONAI_SWIN, our_decoder_state, our_swin_state
from training.data.corpora import data_folder

WINDOW, OVERLAP, PREPROCESS = 96, 0.5, Preprocess(1.5)
DEVICE = chosen()
LOADED = "vit-wild-lesions"  # a ViT, whose grid and window the stages are timed with


def published(name: str, window: int, preprocess: Preprocess) -> Segmenter:
    """Return a published architecture with `light`, on the device."""
    encoder: Any = untrained(name)
    encoder.spec = replace(encoder.spec, preprocess=preprocess)
    model = ctssl.segmenter(encoder).eval()
    model.window = window
    return model.to(DEVICE)


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
    return theirs.to(DEVICE), ours.to(DEVICE)


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
            sw_device=DEVICE,
            device=torch.device("cpu"),
        )
    assert isinstance(found, torch.Tensor)
    onto(found[0].softmax(0).numpy(), ready.affine, scan)


def through_ours(model: Segmenter, scan: Volume, *, skip_air: bool) -> None:
    image = prepared(model.encoder, scan)
    found, affine = probabilities_of(model, image, Windows(OVERLAP), progress=True, skip_air=skip_air)
    onto(found, affine, scan)


def stages(path: Path) -> dict[str, float]:
    """Return the seconds of each stage of `ctssl segment`, the second time that a scan is segmented."""
    model, taken = published("vit-scratch", 32, info(LOADED).preprocess), {}
    for _ in range(2):
        times = [now(DEVICE)]
        scan = ctssl.read(path)
        times.append(now(DEVICE))
        image = prepared(model.encoder, scan)
        times.append(now(DEVICE))
        found, affine = probabilities_of(model, image, Windows(OVERLAP))
        times.append(now(DEVICE))
        onto(found, affine, scan)
        times.append(now(DEVICE))
        names = ("reading", "resampling", "network", "way back")
        taken = {name: b - a for name, a, b in zip(names, times, times[1:], strict=False)}
    return taken


def seconds(work: Callable[[], Any]) -> float:
    start = now(DEVICE)
    work()
    return now(DEVICE) - start


@torch.inference_mode()
def same_weights(theirs: SwinUNETR, ours: Segmenter, scan: Volume, windows: int) -> None:
    """Seconds for a window by both, the shares of the encoder, and the largest difference."""
    ready = prepare(scan, PREPROCESS).array
    middle = [slice((n - WINDOW) // 2, (n - WINDOW) // 2 + WINDOW) for n in ready.shape]
    x = torch.from_numpy(ready[tuple(middle)].copy())[None, None].to(DEVICE)
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
    with TemporaryDirectory() as folder:
        path = Path(scan_path or a_scan(Path(folder)))
        compare(ctssl.read(path), int(windows))
        taken = stages(path)
    whole = sum(taken.values())
    print(
        f"{LOADED}, {whole:.1f} s: " + ", ".join(f"{name} {one / whole:.0%}" for name, one in taken.items())
    )


def a_scan(folder: Path) -> Path:
    """Return the chest of the data folder, a phantom without one."""
    try:
        return data_folder() / "lung_tumours" / "images" / "LIDC-IDRI-0314.nii.gz"
    except FileNotFoundError:
        return phantom(0.7)[0].save(folder / "phantom.nii.gz")


def compare(scan: Volume, windows: int) -> None:
    """Time both networks on the same windows, and end to end."""
    theirs, ours = pair()
    same_weights(theirs, ours, scan, windows)
    mine = published("swin-scratch", WINDOW, PREPROCESS)
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
