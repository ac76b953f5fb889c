"""The training loop of a segmenter: crops, losses, validation, and going on after an interruption."""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ctssl import precision
from ctssl.files.atomic import write_weights, write_whole
from ctssl.sampling import anywhere, augment, crop_at, degraded, random_part, turned_and_scaled, warped

if TYPE_CHECKING:
    from ctssl.heads.segmenter import Segmenter

Scans = list[tuple[np.ndarray, np.ndarray]]  # image 0..1 and labels, on the model's grid
TIMED = 10  # steps from which the speed is known
JUDGED = 3  # crops of each validation scan
SMOOTH = 0.9  # weight of the past in the average of validation DSCs


@dataclass(frozen=True)
class Settings:
    """How a segmenter is trained. `warmup`: a share of `steps`.

    `crop` in voxels of the model's spacing; 0: 64, or 96 for tumours of more than 32 voxels, which need more around them.
    `batch`: crops per step and device; 0: four of 64 voxels, or as many larger ones as take about that time. `minutes`: train for
    about so long instead of `steps`; the number of steps follows from the speed of the first ten. `encoder_lr` is the learning
    rate of a pretrained encoder; one from scratch, and every head, takes `lr`. `layer_decay` multiplies it once more for every
    block further from the end (timm). `freeze`: leave the encoder as it is. `ema`: decay of the average of weights that is judged
    and kept (timm's), 0 for none. `bf16`: half precision on a CPU too, which pays where it has instructions for it (AVX512_BF16,
    AMX); a GPU always takes it.

    `validation`: share of the training patients (of ten or more) on whose crops the weights are judged `evaluations` times.
    The best by a moving average of that DSC are kept (single evaluations on a few crops are noisy), from half of the steps on,
    when the learning rate has fallen; the training ends when `patience` evaluations in a row then brought nothing.

    Augmentation: mirroring always; `trim` is the chance of cutting margins off the scan first (at most half of it along each
    axis), so that where a tumour lies between the scan's borders says nothing; `warp` the chance of turning by up to `degrees`
    and scaling by up to `zoom`; `degrade` the chance of each of gamma, blur, noise and a coarser look; `intensity` how far
    values (0..1) are stretched and moved; `shift_augment` so many copies of each training scan, as another protocol or kernel
    would have given it (`ctssl.shifts`).
    """

    steps: int = 600
    minutes: float | None = None
    batch: int = 0
    crop: int = 0
    lr: float = 1e-3
    encoder_lr: float = 3e-4
    layer_decay: float = 1.0
    freeze: bool = False
    ema: float = 0.0
    weight_decay: float = 0.01
    warmup: float = 0.05
    foreground: float = 0.6  # share of crops around a labelled voxel, anywhere in the crop
    trim: float = 0.5
    warp: float = 0.3
    degrees: float = 20.0
    zoom: float = 1.3
    degrade: float = 0.15
    intensity: float = 0.05
    shift_augment: int = 0
    bf16: bool = False
    validation: float = 0.1
    evaluations: int = 20
    patience: int = 5
    seed: int = 0
    save_minutes: float = 5.0

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)} (at least {least})"
            for name, least in (
                ("steps", 1),
                ("batch", 0),
                ("crop", 0),
                ("evaluations", 1),
                ("patience", 1),
                ("shift_augment", 0),
                ("seed", 0),
            )
            if getattr(self, name) < least
        ]
        wrong += [
            f"{name}={getattr(self, name):g} (above 0)"
            for name in ("lr", "encoder_lr", "layer_decay", "zoom")
            if not 0 < getattr(self, name) < math.inf
        ]
        wrong += [
            f"{name}={getattr(self, name):g} (0 to below 1)"
            for name in ("ema", "validation", "warmup")
            if not 0 <= getattr(self, name) < 1
        ]
        wrong += [
            f"{name}={getattr(self, name):g} (0 to 1)"
            for name in ("foreground", "trim", "warp", "degrade")
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            wrong.append(f"minutes={self.minutes:g} (above 0)")
        if wrong:
            raise ValueError(f"settings that cannot be: {', '.join(wrong)}")


@dataclass
class Progress:
    """Where a training is: steps done and to do, loss and (where there are validation cases) DSC so far, the best weights by
    the latter."""

    step: int
    steps: int | None
    curve: list[dict[str, float]]
    best: dict[str, Tensor]

    def smoothed(self) -> list[float]:
        """The moving average of the validation DSC after each evaluation."""
        found: list[float] = []
        for row in self.curve:
            found.append(row["dsc"] if not found else SMOOTH * found[-1] + (1 - SMOOTH) * row["dsc"])
        return found

    def evaluated(self, net: nn.Module, loss: float, dsc: float) -> None:
        """Add an evaluation; keep the weights if it was the best so far."""
        self.curve.append({"step": self.step, "loss": loss, "dsc": dsc})
        if self.since_best() == 0:
            self.best = {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}

    def since_best(self) -> int:
        """Evaluations since the last one whose average was as good as any in the second half of the training. Before that the
        learning rate is high, and weights that look good on a few crops are luck: the latest are kept."""
        late = [2 * row["step"] > (self.steps or 0) for row in self.curve]
        scores = [score if there else 0.0 for score, there in zip(self.smoothed(), late, strict=True)]
        return scores[::-1].index(max(scores)) if scores else 0


def fit(
    net: Segmenter,
    scans: Scans,
    judge: Scans,
    settings: Settings,
    *,
    unfinished: Path,
    facts: dict[str, Any],
    progress: bool,
) -> list[dict[str, float]]:
    """Train in place, from where a training with the same facts stopped; returns the curve (step, loss, dsc on `judge` if there
    is any).

    On several devices each draws its own crops and the gradients are averaged.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(net.parameters()).device
    half = settings.bf16 or device.type == "cuda"
    opt = torch.optim.AdamW(groups(net, settings, from_scratch=facts["from_scratch"]))
    average = averaged(net, settings)
    kept: Any = net if average is None else average.module
    identity = {**facts, "settings": asdict(settings), "world": world}
    now = resume(unfinished, net, average, opt, identity)
    now = now or Progress(0, None if settings.minutes else settings.steps, [], {})
    crops = batches(scans, settings, now.step, rank=rank, workers=workers_for(device))
    judged, losses = judged_crops(judge, settings), []
    began = saved = time.monotonic()
    bar = tqdm(total=now.steps, initial=now.step, desc="training", disable=not progress or rank > 0)
    while now.steps is None or now.step < now.steps:
        ready(net, settings)
        for group in opt.param_groups:
            group["lr"] = group["peak"] * rate(now.step, now.steps or 10 * TIMED, settings.warmup)
        losses.append(descend(net, opt, *next(crops), half=half, world=world))
        if not math.isfinite(losses[-1]):
            raise ValueError(
                f"step {now.step}: the loss is not finite; lower the learning rate ({settings.lr})"
            )
        now.step += 1
        if average is not None:
            average.update(net, now.step)
        if now.steps is None and now.step == TIMED:
            seconds = 60 * (settings.minutes or 0)
            now.steps = bar.total = agreed(
                max(now.step, round(seconds * TIMED / (time.monotonic() - began))), world
            )
        if now.steps and due(now.step, now.steps, settings.evaluations):
            loss = float(np.mean(losses[-50:]))
            if not judged:
                now.curve.append({"step": now.step, "loss": loss})
            else:
                now.evaluated(kept, loss, crop_dsc(kept, judged, device, half=half))
                if agreed(now.since_best(), world) >= settings.patience:
                    now.steps = now.step  # where it ends
                    break
        shown = {"loss": f"{np.mean(losses[-30:]):.3f}"}
        if judged and now.curve:
            shown["dsc"] = f"{now.curve[-1]['dsc']:.3f}"
        bar.set_postfix(shown, refresh=False)
        bar.update()
        if rank == 0 and now.steps is not None and time.monotonic() - saved > 60 * settings.save_minutes:
            keep(unfinished, net, average, opt, identity, now)
            saved = time.monotonic()
    bar.close()
    if rank == 0:  # what follows may fail, and is not to cost the training
        keep(unfinished, net, average, opt, identity, now)
    net.load_state_dict(now.best or kept.state_dict())
    return now.curve


@cache
def criterion() -> nn.Module:
    """Dice and cross-entropy."""
    from monai.losses.dice import DiceCELoss

    return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)


def descend(
    net: Segmenter, opt: torch.optim.Optimizer, image: Tensor, label: Tensor, *, half: bool, world: int
) -> float:
    """One step of the optimiser; returns the loss, Dice and cross-entropy (with deep supervision, where the head has it)."""
    device, loss_of = next(net.parameters()).device, criterion()
    with precision.half(device.type, enabled=half):
        found = net.supervised(image.to(device))
    loss = torch.stack([weight * loss_of(logits.float(), label.to(device)) for weight, logits in found]).sum()
    opt.zero_grad(set_to_none=True)
    loss.backward()
    share_gradients(net, world)
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    opt.step()
    return loss.item()


def ready(net: Segmenter, settings: Settings) -> None:
    net.train()
    if settings.freeze:
        net.encoder.eval()


def averaged(net: nn.Module, settings: Settings) -> Any:
    """timm's average of the weights, slow to start with; None when it is not wanted."""
    if not settings.ema:
        return None
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(net, decay=settings.ema, use_warmup=True)


def groups(net: Segmenter, settings: Settings, *, from_scratch: bool) -> list[dict[str, Any]]:
    """Parameter groups with their peak learning rates. The encoder's blocks decay by `settings.layer_decay`, by timm."""
    decay = settings.weight_decay
    head = {"params": list(net.head.parameters()), "peak": settings.lr, "weight_decay": decay}
    net.encoder.requires_grad_(not settings.freeze)
    if settings.freeze:
        return [head]
    peak = settings.lr if from_scratch else settings.encoder_lr
    if settings.layer_decay == 1.0 or from_scratch:
        return [{"params": list(net.encoder.parameters()), "peak": peak, "weight_decay": decay}, head]
    from timm.optim._param_groups import param_groups_layer_decay

    layers = param_groups_layer_decay(
        net.encoder, decay, weight_decay_exclude_1d=False, layer_decay=settings.layer_decay
    )
    return [{**layer, "peak": peak * layer["lr_scale"]} for layer in layers] + [head]


def rate(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then cosine to zero, as a factor."""
    warm = max(1, round(warmup * steps))
    return (
        (step + 1) / warm
        if step < warm
        else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    )


def batches(
    scans: Scans, settings: Settings, start: int, *, rank: int = 0, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """What `draw` gives for the steps from `start` on, without end; `workers` processes draw ahead."""
    steps: Any = itertools.count(start)
    own = torch.Generator()  # not the global one, which the network may draw from
    crops = _Steps(scans, settings, rank)
    return iter(DataLoader(crops, batch_size=None, sampler=steps, num_workers=workers, generator=own))


def workers_for(device: torch.device) -> int:
    """How many processes draw crops: this process's share of the cores beside a GPU; none on a CPU, whose cores the training
    needs."""
    share = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1
    return max(0, min(8, share)) if device.type == "cuda" else 0


class _Steps(Dataset[tuple[Tensor, Tensor]]):
    """The crops of every step, by its number."""

    def __init__(self, scans: Scans, settings: Settings, rank: int) -> None:
        self.scans, self.settings, self.rank = scans, settings, rank

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return draw(self.scans, self.settings, step, rank=self.rank)


def draw(scans: Scans, settings: Settings, step: int, *, rank: int = 0) -> tuple[Tensor, Tensor]:
    """Images `(B, 1, S, S, S)` and labels of a step. Each crop depends on the settings, the step and its number alone."""
    pairs = []
    for number in range(rank * settings.batch, (rank + 1) * settings.batch):
        rng = np.random.default_rng([settings.seed, step, number])
        image, label = scans[rng.integers(len(scans))]
        pairs.append(augmented(image, label, settings, rng))
    images, labels = (np.stack(column) for column in zip(*pairs, strict=True))
    return torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))[:, None]


def labelled(label: np.ndarray, settings: Settings, rng: np.random.Generator) -> tuple[int, ...] | None:
    """A labelled voxel for the crop to hold, in `settings.foreground` of all cases."""
    if rng.random() >= settings.foreground or not label.any():
        return None
    found = np.flatnonzero(label)
    return tuple(int(c) for c in np.unravel_index(found[rng.integers(len(found))], label.shape))


def augmented(
    image: np.ndarray, label: np.ndarray, settings: Settings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One crop of a scan and its labels, as the training sees them."""
    size, around = settings.crop, labelled(label, settings, rng)
    if rng.random() < settings.trim:
        box = random_part(image.shape, rng, around)
        image, label = image[box], label[box]
        around = (
            None if around is None else tuple(c - part.start for c, part in zip(around, box, strict=True))
        )
    start = anywhere(image.shape, size, rng, around)
    if rng.random() < settings.warp:
        middle = np.array(start) + (size - 1) / 2
        matrix = turned_and_scaled(rng, degrees=settings.degrees, zoom=settings.zoom)
        one, two = warped((image, label), middle, size, matrix, orders=(1, 0))
    else:
        one, two = crop_at(image, start, size), crop_at(label, start, size)
    one, moved = augment(one, two, rng, intensity=settings.intensity)
    assert moved is not None
    return degraded(one, rng, chance=settings.degrade), moved


def judged_crops(scans: Scans, settings: Settings) -> list[tuple[Tensor, Tensor]]:
    """The same crops at every evaluation: `(1, 1, S, S, S)` images and their labels."""
    found = []
    for number, (image, label) in enumerate(scans):
        rng = np.random.default_rng([settings.seed, number])
        for _ in range(JUDGED):
            start = anywhere(image.shape, settings.crop, rng, labelled(label, settings, rng))
            one, two = crop_at(image, start, settings.crop), crop_at(label, start, settings.crop)
            found.append(
                (
                    torch.from_numpy(one.astype(np.float32))[None, None],
                    torch.from_numpy(two.copy())[None, None],
                )
            )
    return found


@torch.inference_mode()
def crop_dsc(
    net: Any, crops: list[tuple[Tensor, Tensor]], device: torch.device, *, half: bool = False
) -> float:
    """Mean over the labels of the DSC over all voxels of all crops together (nnU-Net's pseudo Dice)."""
    net.eval()
    hits = torch.zeros(net.classes)
    sizes = torch.zeros(net.classes)
    for image, label in crops:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            found = net(image.to(device)).argmax(1, keepdim=True).cpu()
        for k in range(1, net.classes):
            hits[k] += ((found == k) & (label == k)).sum()
            sizes[k] += (found == k).sum() + (label == k).sum()
    there = sizes[1:] > 0
    return float((2 * hits[1:][there] / sizes[1:][there]).mean()) if there.any() else 0.0


def due(step: int, steps: int, evaluations: int) -> bool:
    """Whether to look at the weights now: `evaluations` times, the last time at the end."""
    return step * evaluations // steps != (step - 1) * evaluations // steps


def share_gradients(net: nn.Module, world: int) -> None:
    """Gradients become their mean over the devices."""
    if world == 1:
        return
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad) / world)


def agreed(value: int, world: int) -> int:
    """The first device's value, on all."""
    if world == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def keep(
    folder: Path, net: nn.Module, average: Any, opt: torch.optim.Optimizer, identity: dict, now: Progress
) -> None:
    """Everything a training needs to go on: safetensors and JSON, replaced as one file each."""
    state = {f"net.{k}": v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    state |= {f"best.{k}": v for k, v in now.best.items()}
    if average is not None:
        state |= {f"ema.{k}": v.detach().cpu().contiguous() for k, v in average.module.state_dict().items()}
    for number, moments in opt.state_dict()["state"].items():
        state |= {f"opt.{number}.{k}": v.detach().cpu().contiguous() for k, v in moments.items()}
    folder.mkdir(parents=True, exist_ok=True)
    name = f"state-{now.step}.safetensors"
    write_weights(folder / name, state)
    place = {"step": now.step, "steps": now.steps, "curve": now.curve}
    write_whole(folder / "state.json", json.dumps({"place": place, "file": name, "training": identity}))
    for old in folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def resume(
    folder: Path, net: nn.Module, average: Any, opt: torch.optim.Optimizer, identity: dict
) -> Progress | None:
    """Where to go on from; None where there is nothing to resume."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / "state.json").exists():
        return None
    try:
        kept = json.loads((folder / "state.json").read_text())
        state = load_file(folder / kept["file"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds a training that cannot go on, its state is damaged ({error}); remove that folder to "
            "start again"
        ) from error
    if kept["training"] != json.loads(json.dumps(identity)):
        raise ValueError(
            f"{folder} holds an unfinished training with other settings or cases; finish it with the same "
            "command, or remove that folder"
        )

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    net.load_state_dict(part("net."))
    if average is not None:
        average.module.load_state_dict(part("ema."))
    own = opt.state_dict()
    own["state"] = {}
    for key, value in part("opt.").items():
        number, name = key.split(".")
        own["state"].setdefault(int(number), {})[name] = value
    opt.load_state_dict(own)
    return Progress(**kept["place"], best=part("best."))
