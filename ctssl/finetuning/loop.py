"""The training loop of a segmenter: losses, learning rates, validation, several devices."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from tqdm import tqdm

from ctssl import precision

if TYPE_CHECKING:
    from ctssl.heads.segmenter import Segmenter
from ctssl.finetuning.crops import Scans, batches, judged_crops, workers_for
from ctssl.finetuning.settings import Settings
from ctssl.finetuning.state import Progress, keep, resume

TIMED = 10  # steps from which the speed is known


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
    """Train in place, from where a training with the same facts stopped; returns the curve (step, loss, dsc
    on `judge` if there is any).

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
    """One step of the optimiser; returns the loss, Dice and cross-entropy (with deep supervision, where the
    head has it)."""
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
    """Parameter groups with their peak learning rates. The encoder's blocks decay by `settings.layer_decay`,
    by timm."""
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
