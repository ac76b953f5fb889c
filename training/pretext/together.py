"""Segment pasted lesions and learn another task in the same step, with one encoder."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from ctssl.zoo import Preprocess
from training.data.draws import Draws
from training.data.views import Crops, Views, crops_for, views_of
from training.pretext.batch import Batch
from training.pretext.contrastive import Others
from training.pretext.lesions import Lesions


class Together(Lesions):
    """`lesions` on the first crop of a sample and another task on the rest; their losses are added.

    Where the other task takes views of one place, the lesions are pasted into a third view of it, whose spacing is up
    to `Views.zoom` off.

    Args:
        encoder: see `ctssl.encoders`.
        other: key of `TASKS`, of a task without views of its own.
        weight: of the loss of the other task.
        head: key of `ctssl.heads.HEADS`, for the lesions.
        args: arguments of the other task.

    Raises:
        ValueError: no such task, or one that makes its own views.
    """

    about = "segmentation of synthetic lesions pasted into unlabelled scans, in each step together with another task"

    def __init__(
        self,
        encoder: Any,
        *,
        other: str = "contrastive",
        weight: float = 1.0,
        head: str = "light",
        **args: Any,
    ) -> None:
        from training.pretext import TASKS  # which holds this one

        super().__init__(encoder, head=head)
        can = [name for name, kind in TASKS.items() if not hasattr(kind, "compose")]
        if other not in can:
            raise ValueError(f"`together` cannot add {other!r} to lesions; use {', '.join(can)}")
        self.other: Any = TASKS[other](encoder, **args)
        self.weight = weight
        wanted = crops_for(self.other)
        self.crops = Crops(1 + wanted.count, twins=wanted.twins, in_lung=Lesions.crops.in_lung)
        self.patients = getattr(self.other, "patients", 1)

    @property
    def embed(self) -> Callable[[Batch], Tensor]:
        """Return the `embed` of the other task; there is none where it has none."""
        whole = self.other.embed
        return lambda batch: whole(rest(batch))

    @property
    def after_step(self) -> Callable[[float], None]:
        """Return the `after_step` of the other task; there is none where it has none."""
        return self.other.after_step

    @staticmethod
    def compose(
        crops: Tensor, spacing_mm: Tensor, *, how: Views, preprocess: Preprocess, draws: Draws
    ) -> list[Tensor]:
        """Return images with lesions, their masks, and the views of the other task, each `(B, S, S, S)`."""
        pasted = Lesions.compose(crops[:, :1], spacing_mm, how=how, preprocess=preprocess, draws=draws)
        return [*pasted, *views_of(crops[:, 1:], how, draws)]

    def forward(self, batch: Batch, others: Others | None = None) -> dict[str, Tensor]:
        own = super().forward(replace(batch, views=batch.views[:2]))
        added = self.other(rest(batch)) if others is None else self.other(rest(batch), others)
        result = {**added, "lesions": own["loss"], "dsc": own["dsc"], "other": added["loss"]}
        result["loss"] = own["loss"] + self.weight * added["loss"]
        if "joint" in added:
            result["joint"] = self.weight * added["joint"]
        return result


def rest(batch: Batch) -> Batch:
    """Return a batch without the image and the mask of the lesions."""
    return replace(batch, views=batch.views[2:])
