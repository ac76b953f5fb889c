"""Forty pasted lesions as the pretext `lesions` shows them: `python -m training.experiments.lesion_sheet`.

The first forty crops with a lesion that `vit_wild_lesions` would draw from the wild scans under CC BY, so that nothing is
chosen by eye: the axial slice with most of the lesion, and its mask as a red line.
"""

from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ctssl.files.atomic import write_whole
from training.data.cache import prepare_corpus
from training.data.corpora import cases
from training.data.loader import Samples
from training.data.manifest import find_scans
from training.pretext.lesions import Lesions
from training.pretrain import build
from training.recipe import find_run

SHEET = Path(__file__).parent / "results" / "lesions.png"
ROWS, COLUMNS = 5, 8


def tiles(wanted: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return axial slices `(32, 32)` 0..1 of the first crops with a lesion, and its mask on them."""
    run = replace(find_run("vit-wild-lesions"), init="", batch=1)
    free = {
        row["id"] for group in ("wild", "wild2") for row in cases(group) if row["licence"].startswith("CC BY")
    }
    scans = [scan for scan in find_scans(run.corpus) if scan.path.name.split(".")[0] in free]
    samples = Samples(prepare_corpus(scans, run.preprocess, Path("runs/cache")), build(run), run)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for number in count():
        image, mask = (view[0, 0].numpy() for view in samples.batch([samples[number]]).views)
        if mask.any():
            z = int(mask.sum((0, 1)).argmax())
            found.append((image[:, :, z], mask[:, :, z]))
        if len(found) == wanted:
            return found
    return found


def main() -> None:
    figure = Figure(figsize=(COLUMNS * 1.3, ROWS * 1.3 + 0.3), layout="constrained")
    axes = figure.subplots(ROWS, COLUMNS)
    for ax, (image, mask) in zip(axes.flat, tiles(ROWS * COLUMNS), strict=True):
        ax.imshow(np.flip(image.T, (0, 1)), cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
        ax.contour(np.flip(mask.T, (0, 1)), levels=[0.5], colors="red", linewidths=0.6)
        ax.set_axis_off()
    low, high = find_run("vit-wild-lesions").preprocess.window_hu
    figure.suptitle(f"{Lesions.about}; {low:g} to {high:g} HU", fontsize=8)
    write_whole(SHEET, lambda part: figure.savefig(part, dpi=110, format="png"))


if __name__ == "__main__":
    main()
