"""The training loop of a segmenter: losses, learning rates, validation, several devices."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from tqdm import tqdm

from ctssl import precision
from ctssl.devices import agreed, multiplies_bf16, rank_and_world, warn_of_slow_bf16
from ctssl.files.running import Stopped, stop_signals
from ctssl.finetuning.crops import PreparedCase, batches, workers_for
from ctssl.finetuning.settings import Settings
from ctssl.finetuning.state import RECENT, Progress, load_state, save_state
from ctssl.finetuning.threshold import validate

if TYPE_CHECKING:
    from ctssl.heads.segmenter import Segmenter

TIMED = 10  # steps from which the speed is known
CHOOSING = 5  # validation cases from which on weights are chosen by them; fewer reverse rankings


def fit(
    net: Segmenter,
    scans: list[PreparedCase],
    validating: list[PreparedCase],
    settings: Settings,
    *,
    folder: Path,
    identity: dict[str, Any],
    from_scratch: bool,
    progress: bool,
    reserve: float = 0.0,
    crops: Iterator[tuple[Tensor, Tensor]] | None = None,
    score: Callable[[Any], float] | None = None,
) -> Progress:
    """Train a network in place, from where a training of the same identity stopped.

    With `CHOOSING` or more validation cases the weights with the best DSC on these whole scans are kept and a
    training without progress ends early; with fewer, the last weights are kept. On several devices each draws
    its own crops and the gradients are averaged.

    Args:
        net: on its device.
        scans: to learn from, on the working grid.
        validating: whole scans that the DSC is measured on.
        folder: for the state of the training.
        identity: what determines the training, as JSON holds it.
        from_scratch: whether the encoder has initial weights, which then learn at the head's rate.
        reserve: seconds that scoring will take afterwards; they count towards `settings.minutes`.
        crops: images and labels of each step. None: `crops.batches` draws them from `scans`.
        score: returns the DSC of a network on the validation cases, instead of `threshold.validate`.

    Returns:
        The whole training, also what an earlier call did of it: its curve (step, loss and, with validation cases, DSC at each
        evaluation) and its seconds.

    Raises:
        ValueError: the loss is not finite, or `folder` holds another training.
        Stopped: SIGINT or SIGTERM came; the state is kept, after the step that was running.
    """
    run = _Run(net, settings, {**identity, "world": rank_and_world()[1]}, folder, from_scratch, reserve)
    now, choosing = run.now, score is not None or len(validating) >= CHOOSING
    if score is None and validating:
        score = partial(validate, scans=validating, half=run.half)
    crops = crops or batches(scans, settings, now.step, rank=run.rank, workers=workers_for(run.device))
    bar = tqdm(total=now.steps, initial=now.step, desc="training", disable=not progress or run.rank > 0)
    with stop_signals() as asked:
        while now.steps is None or now.step < now.steps:
            run.descend(*next(crops))
            if run.clock.due(now):
                now.steps = bar.total = agreed(run.clock.steps(now), run.world)
            if now.steps and due(now.step, now.steps, settings.evaluations):
                run.evaluate(score, choosing=choosing)
                if choosing and agreed(now.since_best(), run.world) >= settings.patience:
                    now.steps = now.step  # where it ends
            bar.set_postfix(run.shown(), refresh=False)
            bar.update()
            run.save_if_due()
            if agreed(len(asked), run.world):
                run.stop(asked)
    bar.close()
    run.save()  # what follows may fail, and is not to cost the training
    net.load_state_dict(now.best or run.kept.state_dict())
    return now


class _Run:
    """The parts of a training that is on its way."""

    def __init__(
        self,
        net: Segmenter,
        settings: Settings,
        identity: dict[str, Any],
        folder: Path,
        from_scratch: bool,
        reserve: float,
    ) -> None:
        self.net, self.settings, self.folder, self.from_scratch = net, settings, folder, from_scratch
        self.rank, self.world = rank_and_world()
        self.device = next(net.parameters()).device
        self.half = settings.bf16 or multiplies_bf16(self.device)
        if settings.bf16:
            warn_of_slow_bf16(self.device)
        own = groups(net, settings, from_scratch=from_scratch)
        self.opt = torch.optim.AdamW(own, fused=True if self.device.type == "cuda" else None)
        self.average = averaged(net, settings)
        self.kept: Any = net if self.average is None else self.average.module
        self.identity = identity
        steps = None if settings.minutes else settings.steps
        self.now = load_state(folder, net, self.average, self.opt, identity) or Progress(0, steps, [], {})
        self.clock = Clock(settings.minutes, self.now.step, reserve)
        self.saved = self.since = time.monotonic()

    def descend(self, image: Tensor, label: Tensor) -> None:
        """Take one step of the optimiser."""
        now, settings = self.now, self.settings
        make_ready(self.net, settings)
        total = now.steps or 10 * TIMED
        alone = 0 if self.from_scratch else round(settings.warmup_head * total)
        self.net.encoder.requires_grad_(not settings.freeze and now.step >= alone)
        for group in self.opt.param_groups:
            first = alone if group["encoder"] else 0
            group["lr"] = group["peak"] * rate(now.step - first, total - first, settings.warmup)
        now.losses.append(descend(self.net, self.opt, image, label, half=self.half, world=self.world))
        if not math.isfinite(now.losses[-1]):
            raise ValueError(
                f"step {now.step}: the loss is not finite; lower the learning rate ({settings.lr})"
            )
        now.step += 1
        if self.average is not None:
            self.average.update(self.net, now.step)

    def evaluate(self, score: Callable[[Any], float] | None, *, choosing: bool) -> None:
        """Add a point to the curve, and keep the weights if they are to be chosen and the best."""
        now = self.now
        row = {"step": now.step, "loss": float(np.mean(now.losses[-RECENT:]))}
        if score:
            row["dsc"] = score(self.kept)
        self.now.curve.append(row)
        if choosing:
            self.now.keep_if_best(self.kept)

    def shown(self) -> dict[str, str]:
        """Return what the progress bar shows."""
        text = {"loss": f"{np.mean(self.now.losses[-30:]):.3f}"}
        if self.now.curve and "dsc" in self.now.curve[-1]:
            text["dsc"] = f"{self.now.curve[-1]['dsc']:.3f}"
        return text

    def save_if_due(self) -> None:
        due_now = time.monotonic() - self.saved > 60 * self.settings.save_minutes
        if due_now and self.now.steps is not None:
            self.save()

    def save(self) -> None:
        """Write the state, on the first device."""
        self.now.seconds += time.monotonic() - self.since
        self.since = time.monotonic()
        if self.rank == 0:
            save_state(self.folder, self.net, self.average, self.opt, self.identity, self.now)
        self.saved = time.monotonic()

    def stop(self, asked: list[int]) -> None:
        """Save the state and raise a `Stopped` that says how to resume."""
        now = self.now
        now.steps = now.steps or self.clock.steps(now)  # a training that goes on keeps its number of steps
        self.save()
        raise Stopped(
            f"stopped after step {now.step} of {now.steps}; the state is kept in {self.folder}, and the same "
            "command goes on from there",
            *asked[:1],
        )


class Clock:
    """How many steps fit into the minutes of a training: known after ten steps, corrected after every
    evaluation, whose time counts too. A training that goes on keeps the number that it had."""

    def __init__(self, minutes: float | None, step: int, reserve: float = 0.0) -> None:
        self.seconds = None if minutes is None or step else max(30 * minutes, 60 * minutes - reserve)
        self.began, self.evaluations = time.monotonic(), 0

    def due(self, now: Progress) -> bool:
        """Tell whether the number of steps has to be estimated (again)."""
        evaluated, self.evaluations = len(now.curve) > self.evaluations, len(now.curve)
        return self.seconds is not None and (now.step == TIMED or (evaluated and now.step > TIMED))

    def steps(self, now: Progress) -> int:
        """Estimate the number of steps from the pace so far; never fewer than were made."""
        spent = time.monotonic() - self.began
        return max(now.step, round(now.step * (self.seconds or 0.0) / spent))


@cache
def criterion(spread: bool = False) -> nn.Module:
    """Return the loss, Dice plus cross-entropy: of labels or, if `spread`, of a mask for each class, whose gradient is
    the same in every run on a GPU too."""
    from monai.losses.dice import DiceCELoss

    return DiceCELoss(include_background=False, to_onehot_y=not spread, softmax=True, batch=True)


def descend(
    net: Segmenter, opt: torch.optim.Optimizer, image: Tensor, label: Tensor, *, half: bool, world: int
) -> float:
    """Take one step of the optimiser and return the loss: Dice plus cross-entropy (with deep supervision, where the
    head has it)."""
    from monai.networks.utils import one_hot

    device, spread = next(net.parameters()).device, torch.are_deterministic_algorithms_enabled()
    loss_of = criterion(spread)
    with precision.half(device.type, enabled=half):
        found = net.supervised(image.to(device))
    truth = one_hot(label.to(device), net.classes) if spread else label.to(device)
    loss = torch.stack([weight * loss_of(logits.float(), truth) for weight, logits in found]).sum()
    opt.zero_grad(set_to_none=True)
    loss.backward()
    share_gradients(net, world)
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    opt.step()
    return loss.item()


def make_ready(net: Segmenter, settings: Settings) -> None:
    net.train()
    if settings.freeze:
        net.encoder.eval()


def averaged(net: nn.Module, settings: Settings) -> Any:
    """Return timm's moving average of the weights, with a warm-up; None if `settings.ema` is 0."""
    if not settings.ema:
        return None
    from timm.utils import ModelEmaV3  # type: ignore[attr-defined]

    return ModelEmaV3(net, decay=settings.ema, use_warmup=True)


def groups(net: Segmenter, settings: Settings, *, from_scratch: bool) -> list[dict[str, Any]]:
    """Return the parameter groups with their peak learning rates. Those of the encoder's blocks decay by
    `settings.layer_decay` (timm)."""
    decay = settings.weight_decay
    head = {
        "params": list(net.head.parameters()),
        "peak": settings.lr,
        "weight_decay": decay,
        "encoder": False,
    }
    net.encoder.requires_grad_(not settings.freeze)
    if settings.freeze:
        return [head]
    peak = settings.lr if from_scratch else settings.encoder_lr
    if settings.layer_decay == 1.0 or from_scratch:
        whole = {"params": list(net.encoder.parameters()), "peak": peak, "weight_decay": decay}
        return [{**whole, "encoder": True}, head]
    from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]

    layers = param_groups_layer_decay(
        net.encoder, decay, weight_decay_exclude_1d=False, layer_decay=settings.layer_decay
    )
    return [{**layer, "peak": peak * layer["lr_scale"], "encoder": True} for layer in layers] + [head]


def rate(step: int, steps: int, warmup: float) -> float:
    """Return the learning rate of a step as a factor: linear warm-up, then cosine to zero; 0 before the first step."""
    if step < 0:
        return 0.0
    warm = max(1, round(warmup * steps))
    return (
        (step + 1) / warm
        if step < warm
        else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    )


def due(step: int, steps: int, evaluations: int) -> bool:
    """Return whether to evaluate the weights now: `evaluations` times, the last time at the end."""
    return step * evaluations // steps != (step - 1) * evaluations // steps


def share_gradients(net: nn.Module, world: int) -> None:
    """Average the gradients over the devices, in place."""
    if world == 1:
        return
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad) / world)
