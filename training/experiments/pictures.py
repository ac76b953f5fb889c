"""The README's picture: `python -m training.experiments.pictures runs/sarcoma-swin-wild-smit-0`.

Best, median and worst of the 12 test cases by DSC, so that nothing is chosen by eye: the slice with most
tumour, its features (three principal components as colours), and the mask in red with the truth as a white
line.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import ctssl
from ctssl.datasets.case import read_case
from ctssl.datasets.layouts import find_cases
from ctssl.inference.features import feature_maps, map_affines, prepared
from ctssl.pictures import COLOURS, principal_colours
from ctssl.volume.grids import resample, working_grid
from training.data.corpora import data_folder

RESULTS = Path(__file__).parent / "results" / "segmentation.png"


def row(axes, model, encoder, case, dsc: float, title: str) -> None:
    """Draw three pictures of one case, on the axial slice with most tumour: scan, features, and mask with the truth."""
    scan, truth = read_case(case)
    mask = model.segment(scan)
    shape, view = working_grid(scan, 1.5)

    def on_view(array, affine, fill=0.0):
        return resample(np.asarray(array, np.float32), affine, shape, view, fill=fill)

    ct, seen, true = (
        on_view(scan.array, scan.affine, -1024.0),
        on_view(mask.array, mask.affine),
        on_view(truth.array, truth.affine),
    )
    z = int((true > 0.5).sum((0, 1)).argmax())
    ready = prepared(encoder, scan)
    image = torch.from_numpy(ready.array)[None, None]
    tissue = torch.nn.functional.max_pool3d(image, encoder.strides[1], ceil_mode=True)[0, 0].numpy() > 0.3
    colours = principal_colours(feature_maps(encoder, image)[1].numpy(), tissue)
    affine = map_affines(ready.affine, encoder.strides)[1]
    paint = np.stack([on_view(colours[..., c], affine) for c in range(3)], -1)

    def cut(array):
        return np.flip(array[:, :, z].swapaxes(0, 1), (0, 1))

    grey = np.repeat(np.clip((cut(ct) + 160) / 400, 0, 1)[..., None], 3, -1)
    coloured = grey.copy()
    found = cut(seen) > 0.5
    coloured[found] = 0.55 * coloured[found] + 0.45 * np.array(COLOURS[0])
    for ax, picture in zip(axes, (grey, cut(paint), coloured), strict=True):
        ax.imshow(np.clip(picture, 0, 1))
        ax.set_axis_off()
    axes[2].contour(cut(true), levels=[0.5], colors="white", linewidths=0.9)
    axes[0].set_title(f"{title}: {case.name}", fontsize=9)
    axes[1].set_title("features (PCA)", fontsize=9)
    axes[2].set_title(f"mask (red), truth (white): DSC {dsc:.2f}", fontsize=9)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a segmenter of `python -m training.experiments.sarcoma`")
    parser.add_argument("--encoder", default="swin-wild-mim")
    args = parser.parse_args()
    model, encoder = ctssl.load_segmenter(args.model), ctssl.load(args.encoder)
    scores = {
        k: v["tumour"] for k, v in json.loads(Path(args.model, "report.json").read_text())["held_out"].items()
    }
    ranked = sorted(scores, key=lambda name: scores[name])
    cases = {case.name: case for case in find_cases(data_folder() / "sarcoma").cases}
    figure = Figure(figsize=(9.6, 8.4), layout="constrained", facecolor="white")
    axes = figure.subplots(3, 3)
    for line, name, title in zip(
        axes, (ranked[-1], ranked[len(ranked) // 2], ranked[0]), ("best", "median", "worst"), strict=True
    ):
        row(line, model, encoder, cases[name], scores[name], title)
    RESULTS.parent.mkdir(exist_ok=True)
    figure.savefig(RESULTS, dpi=90)
    print(RESULTS)


if __name__ == "__main__":
    main()
