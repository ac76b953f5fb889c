"""Samples per second of a `mim` step, ours against MONAI's Swin: `python -m tests.benchmarks.pretrain [repeats]`.

Both are configured alike and train the same task (same masks, head and loss) on the published Swin's sizes with batches of
8 crops of 64 voxels; each repeat runs one step of each, in turn. Ours runs as it is and, where a C++ compiler is there, with its
blocks compiled (`compile=True` of a run). Then how fast one worker loads, and where our step spends its time.
"""

import copy
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn

from ctssl.compiling import compile_blocks
from ctssl.encoders.swin import Swin
from ctssl.phantom import phantom
from training.data.cache import prepare_corpus
from training.data.loader import Places, Samples, loader
from training.data.manifest import Scan
from training.pretext import TASKS
from training.pretext.batch import Batch
from training.recipe import SMALL, Run

BATCH, CROP = 8, 64


class Tokens(nn.Module):
    """MONAI's patch embedding, channels last."""

    def __init__(self, embed: Any, patch: int) -> None:
        super().__init__()
        self.embed, self.patch = embed, patch

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).permute(0, 2, 3, 4, 1)


class Monai(nn.Module):
    """MONAI's Swin under our encoder contract, without the merging that it always does after its last stage."""

    def __init__(
        self,
        width: int,
        *,
        depths: tuple[int, ...],
        heads: tuple[int, ...],
        window: int,
        patch: int,
        merge_last: bool,
    ) -> None:
        super().__init__()
        assert not merge_last
        self.config = dict(width=width)
        self.channels = tuple(width * 2**i for i in range(len(depths)))
        self.strides = tuple(patch * 2**i for i in range(len(depths)))
        net = SwinTransformer(
            in_chans=1,
            embed_dim=width,
            window_size=(window,) * 3,
            patch_size=(patch,) * 3,
            depths=depths,
            num_heads=heads,
            patch_norm=True,
            spatial_dims=3,
        )
        self.patch_embed = Tokens(net.patch_embed, patch)
        self.stages = nn.ModuleList(getattr(net, f"layers{i + 1}")[0] for i in range(len(depths)))
        self.stages[-1].downsample = None
        self.norm = nn.LayerNorm(self.channels[-1])

    def encode(self, tokens: Tensor) -> list[Tensor]:
        x = tokens.permute(0, 4, 1, 2, 3)
        for stage in self.stages:
            x = stage(x.contiguous())
        return [self.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)]


def step(task: nn.Module, opt: torch.optim.Optimizer, batch: Batch) -> None:
    loss = task(batch)["loss"]
    opt.zero_grad(set_to_none=True)
    loss.backward()
    opt.step()


def rates(tasks: dict[str, nn.Module], batch: Batch, repeats: int) -> dict[str, float]:
    """Samples per second of each, by the median step."""
    opts = {name: torch.optim.AdamW(task.parameters(), 1e-4) for name, task in tasks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            step(task.train(), opts[name], batch)
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: BATCH / statistics.median(s) for name, s in seconds.items()}


def loading(views: int, *, samples: int = 160) -> float:
    """Samples per second from one worker."""
    with tempfile.TemporaryDirectory() as folder:
        scan = phantom(2.0)[0].save(Path(folder) / "phantom.nii.gz")
        run = Run("benchmark", "swin", "mim", "")
        corpus = prepare_corpus([Scan(scan, "p")], run.preprocess, Path(folder) / "cache")
        source = Samples(corpus, SimpleNamespace(views=views), replace(run, crop=CROP))
        places = Places(batch=BATCH, pieces=1, rank=0, world=1, first=0, last=samples // BATCH + 1)
        batches = iter(loader(source, places, workers=1))
        next(batches)
        start = time.perf_counter()
        count = sum(len(batch) for batch in batches)
        return count / (time.perf_counter() - start)


def main(repeats: int = 10) -> None:
    batch = Batch((torch.rand(BATCH, 1, CROP, CROP, CROP),), torch.arange(BATCH), torch.arange(BATCH))
    torch.manual_seed(0)
    tasks = {"monai": TASKS["mim"](Monai(**SMALL["swin"])), "ctssl": TASKS["mim"](Swin(**SMALL["swin"]))}
    sizes = [sum(p.numel() for p in task.parameters()) for task in tasks.values()]
    if shutil.which("g++") or shutil.which("c++"):
        tasks["compiled"] = copy.deepcopy(tasks["ctssl"])
        compile_blocks(tasks["compiled"].encoder)
    print(f"parameters of the tasks: monai {sizes[0]}, ctssl {sizes[1]} (with the norms of the skips)")
    found = rates(tasks, batch, repeats)
    print(f"mim: monai {found['monai']:.1f} samples/s")
    for name in tasks.keys() - {"monai"}:
        print(f"mim: {name} {found[name]:.1f} samples/s, ratio {found[name] / found['monai']:.2f}")
    feed = loading(1)
    print(
        f"one worker loads {feed:.0f} samples/s of one view, {feed / found['ctssl']:.1f} times what mim consumes"
    )
    pair = TASKS["contrastive"](Swin(**SMALL["swin"]))
    two = Batch(batch.views * 2, batch.seeds, batch.patients)
    used, feed = rates({"contrastive": pair}, two, max(3, repeats // 2))["contrastive"], loading(2)
    print(
        f"one worker loads {feed:.0f} samples/s of two views, {feed / used:.1f} times what contrastive consumes"
    )
    opt = torch.optim.AdamW(tasks["ctssl"].parameters(), 1e-4)
    with torch.profiler.profile() as profile:
        step(tasks["ctssl"], opt, batch)
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=10, max_name_column_width=45))


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:]))
