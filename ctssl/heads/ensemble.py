"""Several segmenters as one, such as those of the folds of a cross-validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ctssl.heads.segmenter import Segmenter


class Ensemble(nn.Module):
    """Segmenters whose probabilities are averaged, window by window, as nnU-Net does with its folds.

    Args:
        members: segmenters with the same labels, preprocessing and window. Their thresholds are
            averaged, and the training range holds those of all.

    Raises:
        ValueError: there is no member, or they cannot be averaged; the message says what differs.

    >>> import ctssl
    >>> parts = [ctssl.segmenter("vit-wild-mim", head=head) for head in ("light", "linear")]
    >>> ctssl.Ensemble(parts).labels
    {1: 'tumour'}
    """

    def __init__(self, members: Sequence[Segmenter]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one segmenter")
        first = members[0]
        for number, other in enumerate(members[1:], start=2):
            for what in ("labels", "window", "in_channels"):
                one, two = getattr(first, what), getattr(other, what)
                if one != two:
                    raise ValueError(
                        f"member {number} of the ensemble has other {what} ({two}, the first {one}); give "
                        "segmenters of one task, such as those of the folds of a cross-validation"
                    )
            if _preprocess(first) != _preprocess(other):
                raise ValueError(
                    f"member {number} of the ensemble was trained on another spacing or HU window ({_preprocess(other)}, the "
                    f"first {_preprocess(first)}); give segmenters of one task"
                )
        self.members = nn.ModuleList(members)
        self.window, self.classes, self.labels = first.window, first.classes, first.labels
        self.threshold = sum(member.threshold for member in members) / len(members)
        self.in_channels = first.in_channels
        self.training_range = widest([member.training_range for member in members])

    @property
    def encoder(self) -> Any:
        """Return the encoder of the first member, whose preprocessing is that of all."""
        return self.members[0].encoder

    @property
    def spec(self) -> Any:
        """Return the spec of the first member, with the names and the hash of all; None if a member has none."""
        specs: list[Any] = [member.spec for member in self.members]
        if None in specs:
            return None
        hashes = hashlib.sha256(" ".join(spec.sha256 for spec in specs).encode()).hexdigest()
        return replace(specs[0], name=" + ".join(spec.name for spec in specs), sha256=hashes)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logarithm of the mean probability `(B, classes, X, Y, Z)` of images `(B, in_channels, X, Y, Z)`."""
        every = torch.stack([member(image).float().log_softmax(1) for member in self.members])
        return every.logsumexp(0) - torch.tensor(float(len(self.members))).log()

    segment = Segmenter.segment
    probabilities = Segmenter.probabilities


def widest(ranges: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Return a `training_range` that holds those of all members; {} where one has none."""
    if not all(ranges):
        return {}
    volumes: dict[str, list[float]] = {}
    for one in ranges:
        for label, (least, most) in one["volume_ml"].items():  # type: ignore[index]
            low, high = volumes.get(label, (least, most))
            volumes[label] = [min(low, least), max(high, most)]
    return {"longest_mm": max(one["longest_mm"] for one in ranges), "volume_ml": volumes}  # type: ignore[index]


def _preprocess(net: Segmenter) -> Any:
    return net.spec.preprocess if net.spec else None
