"""Seconds of a fine-tuning step, models against one another.

`python -m tests.benchmarks.finetune [repeats] [crop] [batch] [bf16: 0 or 1] [--device cuda]`.

The published architectures with the `light` head, and
nnU-Net's network with deep supervision, on the same crops; each repeat runs one step of each, in turn. Then what Swin UNETR's
decoder costs on the same encoder.
"""

import statistics
import sys

import torch

import ctssl
from ctssl.encoders.pixels import Pixels
from ctssl.finetuning.loop import descend
from ctssl.heads.segmenter import Segmenter
from tests.benchmarks.device import chosen, now, untrained

DEVICE = chosen()


def contestants() -> dict[str, Segmenter]:
    return {
        "swin + light": ctssl.segmenter(untrained("swin-scratch"), head="light"),
        "vit + light": ctssl.segmenter(untrained("vit-scratch"), head="light"),
        "dynunet": ctssl.segmenter(Pixels(), head="dynunet"),
        "swin + swin-unetr": ctssl.segmenter(untrained("swin-scratch"), head="swin-unetr"),
    }


def main(repeats: int = 5, crop: int = 64, batch: int = 4, half: int = 0) -> None:
    nets = {name: net.to(DEVICE) for name, net in contestants().items()}
    opts = {name: torch.optim.AdamW(net.train().parameters(), 1e-4) for name, net in nets.items()}
    image = torch.rand(batch, 1, crop, crop, crop)
    label = (image > 0.7).long()
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for repeat in range(repeats + 1):
        for name, net in nets.items():
            start = now(DEVICE)
            descend(net, opts[name], image, label, half=bool(half), world=1)
            if repeat:  # the first round warms up
                seconds[name].append(now(DEVICE) - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:20} {value:.3f} s a step, {value / medians['swin + light']:.2f} times swin + light")


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
