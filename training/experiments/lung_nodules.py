"""Fine-tune on two thirds of the lung nodules and score the others: published encoders, from scratch, and
nnU-Net's network.

`python -m training.experiments.lung_nodules [MODEL ...] [--seeds 0 1 2] [--steps 600] [--few-shot 5]`; see
`training.experiments.sarcoma`. The scans are cubes of 51 mm with the nodule in their middle, so the crops are
smaller than they are (32 voxels of 1 mm) and lie anywhere: a model that saw whole cubes would learn the
middle. The `self` models were pretrained on the scans of another task; they are no part of the design. A step of
nnU-Net's network takes as long as 15 of the Swin's (`OMP_NUM_THREADS=1 python -m tests.benchmarks.finetune 2
32 8 1`), so it takes fewer.
"""

from pathlib import Path

import ctssl
from training.data.corpora import data_folder, nodule_split
from training.experiments import trials

RESULTS = Path(__file__).parent / "results" / "lung_nodules.json"
DESIGN = [
    f"{encoder}-wild-{pretext}" for encoder in ("swin", "vit") for pretext in ("mim", "contrastive", "smit")
]
DESIGN += ["swin-scratch", "vit-scratch", "dynunet"]
EXPERIMENT = trials.Experiment(
    "lung-nodule",
    "python -m training.experiments.lung_nodules",
    lambda: data_folder() / "lung_nodules",
    nodule_split("test"),
    RESULTS,
    DESIGN,
    share={"dynunet": 1 / 15},
    settings=ctssl.Settings(crop=32, batch=8, bf16=True, ema=0.99, patience=10),
)


if __name__ == "__main__":
    trials.run(EXPERIMENT, trials.options(__doc__).parse_args())
