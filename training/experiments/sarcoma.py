"""Fine-tune on the 26 training cases of the sarcoma data and score the 12 test cases, models and baselines alike.

`python -m training.experiments.sarcoma [MODEL ...] [--seeds 0 1 2] [--steps 400] [--few-shot 5] [--head light]` trains each
model with each seed; without names the core design, {swin, vit} x {wild, self} x {mim, smit}, both encoders from scratch and
nnU-Net's network. A training that is in `results/sarcoma.json` with the same settings is not done again, and one that was
interrupted goes on. `--show` only prints. All work at 3 mm, where a crop of 64 voxels holds a tumour and what is around it: on
training cases it was as good as crops of 96 voxels of 2 mm, and a step takes half as long. Three of the training patients choose
the weights (see `ctssl.Settings`). A step of nnU-Net's network takes as long as 18 to 20 of the Swin's
(`OMP_NUM_THREADS=1 python -m tests.benchmarks.finetune 2 64 4 1`, twice), so it takes a share of the steps.
"""

from pathlib import Path

import ctssl
from training.data.corpora import data_folder, split
from training.experiments import trials

RESULTS = Path(__file__).parent / "results" / "sarcoma.json"
DESIGN = [f"{encoder}-{corpus}-{pretext}" for encoder in ("swin", "vit") for corpus in ("wild", "self")
          for pretext in ("mim", "smit")] + ["swin-scratch", "vit-scratch", "dynunet"]  # fmt: skip


def table() -> str:
    """The results as Markdown."""
    return trials.table(RESULTS)


EXPERIMENT = trials.Experiment(
    "sarcoma", "python -m training.experiments.sarcoma", lambda: data_folder() / "sarcoma", split("test"), RESULTS, DESIGN,
    share={"dynunet": 1 / 18}, settings=ctssl.Settings(steps=400, crop=64, batch=4, bf16=True), spacing_mm=3.0,
)  # fmt: skip


if __name__ == "__main__":
    trials.run(EXPERIMENT, __doc__)
