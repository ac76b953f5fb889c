"""Fine-tune on the 26 training cases of the sarcoma data and score the 12 test cases, models and baselines alike.

`python -m training.experiments.sarcoma [MODEL ...] [--seeds 0 1 2] [--steps 450] [--few-shot 5] [--head light]` trains each
model with each seed; without names the core design, {swin, vit} x {wild, self} x {mim, smit}, both encoders from scratch and
nnU-Net's network. A training that is in `results/sarcoma.json` with the same settings is not done again, and one that was
interrupted goes on. `--show` only prints. Three of the training patients choose the weights (see `ctssl.Settings`).
"""

from pathlib import Path

import ctssl
from training.data.corpora import data_folder, split
from training.experiments import trials

RESULTS = Path(__file__).parent / "results" / "sarcoma.json"
DESIGN = [f"{encoder}-{corpus}-{pretext}" for encoder in ("swin", "vit") for corpus in ("wild", "self")
          for pretext in ("mim", "smit")] + ["swin-scratch", "vit-scratch", "dynunet"]  # fmt: skip

SHARE = {"dynunet": 1 / 26}  # a step of it takes as long as 26 of the others, by `python -m tests.benchmarks.finetune`


def table() -> str:
    """The results as Markdown."""
    return trials.table(RESULTS)


EXPERIMENT = trials.Experiment(
    "sarcoma", "python -m training.experiments.sarcoma", lambda: data_folder() / "sarcoma", split("test"), RESULTS, DESIGN,
    share=SHARE, settings=ctssl.Settings(steps=450, crop=96, batch=2),
)  # fmt: skip


if __name__ == "__main__":
    trials.run(EXPERIMENT, __doc__)
