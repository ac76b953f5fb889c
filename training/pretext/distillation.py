"""What the self-distillation tasks share: a momentum teacher, its heads, centring and temperatures.

DINO (arXiv 2104.14294) for image tokens, iBOT (arXiv 2111.07832) for patch tokens, both as in SMIT (arXiv
2205.10342). SMIT's published code restarts the momentum schedule in every epoch; here it runs once, over the
whole training.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from ctssl.devices import rank_and_world
from training.pretext.batch import Batch
from training.pretext.masking import MaskedTask


class Prototypes(nn.Module):
    """Three-layer MLP, projection to the unit sphere, and scores against `out` unit prototypes."""

    def __init__(self, width: int, *, hidden: int, bottleneck: int, out: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(out, bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """Return cosines `(..., out)` of `(..., width)`. `frozen`: no gradient for the prototypes."""
        prototypes = self.prototypes.detach() if frozen else self.prototypes
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(prototypes, dim=-1))


class Distillation(nn.Module):
    """The teacher of a task, and the losses between it and the student's maps.

    Args:
        encoder: the student.
        patch: distil patch tokens (with their own head) besides image tokens.
        hidden: hidden width of the heads (published: 2048).
        bottleneck: bottleneck width of the heads (published: 256).
        out: number of prototypes (published: 8192).
        momentum: momentum of the teacher at the start; it rises to 1 along a cosine.
        centre_momentum: momentum of the centres.
        student_temperature: temperature of the student.
        teacher_temperature: first and last temperature of the teacher.
        warm: share of the run in which the teacher's temperature rises; for patch tokens it starts after that
            of the image tokens.
        freeze: share of the run in which the student's prototypes are frozen.
        standardise: standardise every channel of the tokens (by the teacher's recent mean and deviation)
            before the heads. At first, tokens of a transformer are nearly identical, and so are the teacher's
            scores; if a run is too short for that to change, its targets stay uniform and carry no
            information. Not in the published code.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        patch: bool,
        hidden: int = 512,
        bottleneck: int = 128,
        out: int = 1024,
        momentum: float = 0.996,
        centre_momentum: float = 0.9,
        student_temperature: float = 0.1,
        teacher_temperature: tuple[float, float] = (0.04, 0.07),
        warm: float = 0.06,
        freeze: float = 0.002,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.momentum, self.centre_momentum = momentum, centre_momentum
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.warm, self.freeze, self.standardise = warm, freeze, standardise
        self.kinds = ("image", "patch") if patch else ("image",)
        sizes = dict(hidden=hidden, bottleneck=bottleneck, out=out)
        self.heads = nn.ModuleDict({kind: Prototypes(encoder.channels[-1], **sizes) for kind in self.kinds})
        self.teacher: Any = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.teacher_heads = copy.deepcopy(self.heads).requires_grad_(False)
        channels = encoder.channels[-1]
        for kind in self.kinds:
            self.register_buffer(f"centre_{kind}", torch.zeros(out))
            if standardise:  # means of the teacher's tokens, and of their squares
                self.register_buffer(f"moments_{kind}", torch.zeros(2, channels))
        # since the last step: sums of the teacher's scores (and of tokens and squared tokens), and the count
        self.seen = {kind: (torch.zeros(out + 2 * channels * standardise), 0) for kind in self.kinds}

    def train(self, mode: bool = True) -> "Distillation":
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch, maps: list[Tensor], masks: list[Tensor]) -> dict[str, Tensor]:
        """Return the losses of the student's deepest maps.

        Args:
            batch: the views.
            maps: `(B, C, x, y, z)` for each view, computed from masked tokens.
            masks: `(B, x, y, z)` for each view.
        """
        with torch.no_grad():
            taught = [self.teacher(view)[-1] for view in batch.views]
        result = self.image_loss(batch, maps, taught)
        if "patch" in self.kinds:
            result |= self.patch_loss(batch, maps, taught, masks)
        return result

    def image_loss(self, batch: Batch, maps: list[Tensor], taught: list[Tensor]) -> dict[str, Tensor]:
        """Compare each view's pooled map with the teacher's map of the other view."""
        frozen = batch.progress < self.freeze
        student = [
            self.heads["image"](self.even("image", m.mean((2, 3, 4))), frozen=frozen).float() for m in maps
        ]
        targets, outputs = self.targets("image", [t.mean((2, 3, 4)) for t in taught], batch.progress)
        losses = [
            cross_entropy(s, t, self.student_temperature) for s, t in zip(student, targets[::-1], strict=True)
        ]
        return {
            "image": torch.stack(losses).mean(),
            **health("image", torch.cat(targets), torch.cat(outputs)),
        }

    def patch_loss(
        self, batch: Batch, maps: list[Tensor], taught: list[Tensor], masks: list[Tensor]
    ) -> dict[str, Tensor]:
        """Compare each masked token with the teacher's token at the same place of the same view: mean over
        tokens, then over samples.
        """
        frozen = batch.progress < self.freeze
        targets, outputs = self.targets("patch", [tokens(t) for t in taught], batch.progress)
        losses = []
        for student, target, mask in zip(maps, targets, masks, strict=True):
            scores = self.heads["patch"](self.even("patch", tokens(student)), frozen=frozen).float()
            hidden = mask.flatten(1)
            errors = cross_entropy(scores, target, self.student_temperature, reduce=False) * hidden
            losses.append((errors.sum(1) / hidden.sum(1)).mean())
        signs = health("patch", torch.cat(targets).flatten(0, 1), torch.cat(outputs).flatten(0, 1))
        return {"patch": torch.stack(losses).mean(), **signs}

    @torch.no_grad()
    def targets(self, kind: str, inputs: list[Tensor], progress: float) -> tuple[list[Tensor], list[Tensor]]:
        """Return the teacher's centred and sharpened distributions and the scores behind them; the scores are
        recorded for the centre.
        """
        outputs = [self.teacher_heads[kind](self.even(kind, x)).float() for x in inputs]
        if self.training:
            rows, given = (torch.cat([x.flatten(0, -2).float() for x in side]) for side in (outputs, inputs))
            total, count = self.seen[kind]
            moments = [given.sum(0), (given**2).sum(0)] if self.standardise else []
            sums = torch.cat([rows.sum(0), *moments])
            self.seen[kind] = (total.to(rows.device) + sums, count + len(rows))
        centre = getattr(self, f"centre_{kind}")
        heat = self.temperature(kind, progress)
        return [((out - centre) / heat).softmax(-1) for out in outputs], outputs

    def even(self, kind: str, x: Tensor) -> Tensor:
        """Standardise tokens `(..., channels)`, if enabled and once moments were recorded."""
        if not self.standardise:
            return x
        mean, square = getattr(self, f"moments_{kind}")
        return (x - mean) / (square - mean**2).clamp_min(1e-6).sqrt() if square.any() else x

    def temperature(self, kind: str, progress: float) -> float:
        """Return the teacher's temperature: linear from the first to the last during a share `warm` of the
        run.
        """
        low, high = self.teacher_temperature
        start = self.warm if kind == "patch" else 0.0
        share = min(1.0, max(0.0, (progress - start) / self.warm)) if self.warm else 1.0
        return low + (high - low) * share

    def momentum_at(self, progress: float) -> float:
        """Return the teacher's momentum: from `momentum` to 1 along half a cosine."""
        return 1.0 - (1.0 - self.momentum) * (1.0 + math.cos(math.pi * progress)) / 2.0

    @torch.no_grad()
    def after_step(self, encoder: nn.Module, progress: float) -> None:
        """Move the teacher towards the student; move centres and moments towards those of this step, over all
        processes.
        """
        weight = 1.0 - self.momentum_at(progress)
        for teacher, student in ((self.teacher, encoder), (self.teacher_heads, self.heads)):
            for kept, new in zip(teacher.parameters(), student.parameters(), strict=True):
                kept.lerp_(new, weight)
        for kind in self.kinds:
            total, count = self.seen[kind]
            self.seen[kind] = (torch.zeros_like(total), 0)
            centre = getattr(self, f"centre_{kind}")
            packed = torch.cat([total.to(centre.device), torch.tensor([float(count)], device=centre.device)])
            if rank_and_world()[1] > 1:
                dist.all_reduce(packed)
            means = packed[:-1] / packed[-1]
            centre.lerp_(means[: len(centre)], 1.0 - self.centre_momentum)
            if self.standardise:
                moments = getattr(self, f"moments_{kind}")
                now = means[len(centre) :].view_as(moments)
                moments.lerp_(now, 1.0 - self.centre_momentum if moments.any() else 1.0)


class DistillingTask(MaskedTask):
    """A task whose student sees both views masked and whose teacher sees them unmasked.

    Args:
        encoder: see `ctssl.encoders`.
        block: see `MaskedTask`.
        ratio: see `MaskedTask`.
        distillation: arguments of `Distillation`.

    Attributes:
        patch: whether the task distils patch tokens too.
    """

    views = 2
    patch = True

    def __init__(self, encoder: Any, *, block: int = 16, ratio: float = 0.75, **distillation: Any) -> None:
        super().__init__(encoder, block=block, ratio=ratio)
        self.distillation = Distillation(encoder, patch=self.patch, **distillation)

    def distil(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """Return the student's deepest maps, their masks on the token grid (one per view), and the losses
        against the teacher.
        """
        step = self.encoder.strides[-1] // self.encoder.patch_embed.patch  # tokens per cell of the last map
        if self.block % step:
            raise ValueError(
                "invalid block (must be a multiple of the deepest map's stride, "
                f"{self.encoder.strides[-1]} voxels)"
            )
        maps, masks = zip(*(self.encode_masked(batch, i) for i in range(len(batch.views))), strict=True)
        coarse = [masked[:, ::step, ::step, ::step] for masked in masks]
        return list(maps), list(masks), self.distillation(batch, list(maps), coarse)

    def after_step(self, progress: float) -> None:
        """Update the teacher and the centres; called once per optimiser step."""
        self.distillation.after_step(self.encoder, progress)


def cross_entropy(scores: Tensor, target: Tensor, temperature: float, *, reduce: bool = True) -> Tensor:
    """Return `-sum(target * log softmax(scores / temperature))` over the last dimension; its mean if
    `reduce`.
    """
    errors = -(target * (scores / temperature).log_softmax(-1)).sum(-1)
    return errors.mean() if reduce else errors


def health(kind: str, targets: Tensor, outputs: Tensor) -> dict[str, Tensor]:
    """Return signs of collapse: `entropy` of single targets (0: all certain), of their mean (0: all equal),
    spread of scores.
    """
    mean = targets.mean(0)
    return {
        f"{kind}_entropy": -(targets * targets.clamp_min(1e-12).log()).sum(-1).mean(),
        f"{kind}_mean_entropy": -(mean * mean.clamp_min(1e-12).log()).sum(),
        f"{kind}_spread": outputs.std(0).mean(),
    }


def tokens(deepest: Tensor) -> Tensor:
    return deepest.flatten(2).transpose(1, 2)  # (B, C, x, y, z) -> (B, x*y*z, C)
