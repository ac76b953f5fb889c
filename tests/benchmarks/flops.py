"""How long would a run of the paper's size take? `python -m tests.benchmarks.flops [RUN]`: an estimate from counted FLOPs.

Forward and backward of one sample are counted on a crop of 64 voxels and scaled to the run's crop (windows make the work
linear in it); activation checkpointing adds a third. The share of the GPU's peak that is reached is assumed, not measured.
"""

import sys
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from training.pretext.batch import Batch
from training.pretrain import build
from training.recipe import Run, find_run

PEAK, SHARE, GPUS, BATCH = 312e12, 0.1, 4, 32  # an A100 in bf16


def per_sample(run: Run) -> float:
    """FLOPs of a training step, for each sample."""
    task = build(replace(run, checkpointing=False)).train()
    views = tuple(torch.rand(1, 1, 64, 64, 64) for _ in range(getattr(task, "views", 1)))
    with FlopCounterMode(display=False) as counter:
        task(Batch(views, torch.arange(1), torch.arange(1)))["loss"].backward()
    return counter.get_total_flops() * (run.crop / 64) ** 3 * (4 / 3 if run.checkpointing else 1)


def main(name: str = "paper/swin_wild_smit") -> None:
    run = find_run(name)
    one, samples = per_sample(run), run.steps * BATCH
    hours = one * samples / (GPUS * SHARE * PEAK) / 3600
    print(
        f"{name}: {one / 1e12:.2f} TFLOP a sample, {samples / 1e6:.1f} million samples, {one * samples / 1e18:.1f} EFLOP"
    )
    print(
        f"estimate, on {GPUS} GPUs of {PEAK / 1e12:.0f} TFLOP/s at {SHARE:.0%} of their peak: {hours:.0f} hours"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
