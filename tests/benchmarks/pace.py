"""Pace of pretraining on a GPU: `python -m tests.benchmarks.pace [steps] [--device cuda] [--runs NAME ...] [--batches N ...]`.

For each run of `training/runs` and each batch: samples per second of whole steps, of drawing the crops on the device alone,
and of the network alone, in bf16; the largest memory; and the network's operations as a share of a large matrix product in
bf16 on the same device. The scans are phantoms, kept on the device.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ctssl.phantom import phantom
from tests.benchmarks.device import chosen, now, peak_gb
from training import pretrain
from training.data.cache import prepare_corpus
from training.data.manifest import Scan
from training.data.resident import resident_batches
from training.recipe import Run, find_run

DEVICE = chosen()


def product_rate(size: int) -> float:
    """Return operations per second of a matrix product in bf16."""
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    began = now(DEVICE)
    for _ in range(10):
        a @ b
    return 10 * 2 * size**3 / (now(DEVICE) - began)


def pace(run: Run, corpus: Any, steps: int) -> dict[str, float]:
    task = pretrain.build(replace(run, init="")).to(DEVICE).train()
    opt, _ = pretrain.optimizer(task, run)
    batches = resident_batches(corpus, task, run, DEVICE, first=0, last=3 + 2 * steps, rank=0)
    one = next(batches)

    def step(batch) -> None:
        pretrain.descend(task, task, opt, [batch], run, 0)

    with FlopCounterMode(display=False) as counted:
        step(one)
    step(next(batches))
    peak_gb(DEVICE)
    began, found = now(DEVICE), {"step": 0.0}
    for _ in range(steps):
        step(next(batches))
    found["step"] = now(DEVICE) - began
    began = now(DEVICE)
    for _ in range(steps):
        next(batches)
    found["crops"] = now(DEVICE) - began
    began = now(DEVICE)
    for _ in range(steps):
        step(one)
    found["network"] = now(DEVICE) - began
    rates = {key: steps * run.batch / seconds for key, seconds in found.items()}
    return rates | {"gb": peak_gb(DEVICE), "flops": counted.get_total_flops() * steps / found["network"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="?", type=int, default=20)
    parser.add_argument("--runs", nargs="*", default=["vit_wild_lesions", "swin_wild_lesions"])
    parser.add_argument("--batches", nargs="*", type=int, default=[0, 128], help="0: the recipe's")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    top = product_rate(8192 if DEVICE.type == "cuda" else 512)
    print(f"a matrix product in bf16: {top / 1e12:.2f} TFLOP/s")
    with tempfile.TemporaryDirectory() as folder:
        scans = [Scan(phantom(2.0, seed=k)[0].save(Path(folder) / f"{k}.nii.gz"), str(k)) for k in range(4)]
        for name in args.runs:
            for batch in args.batches:
                run = find_run(name)
                run = replace(run, batch=batch or run.batch, bf16=DEVICE.type == "cuda")
                corpus = prepare_corpus(scans, run.preprocess, Path(folder) / "cache")
                try:
                    f = pace(run, corpus, args.steps)
                except torch.OutOfMemoryError as error:
                    print(f"{name}, batch {run.batch}: {error}", flush=True)
                    continue
                print(
                    f"{name}, batch {run.batch}: {f['step']:.0f} samples/s; crops alone {f['crops']:.0f}, network "
                    f"alone {f['network']:.0f} ({f['flops'] / top:.1%} of the product's rate); {f['gb']:.1f} GB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
