"""An encoder with a head: scans in, masks out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ctssl.encoders.pretrained import Pretrained, on_class
from ctssl.heads import HEADS
from ctssl.volume.volume import Volume

WIDEST_WINDOW = 512  # voxels along each side of a piece


class Segmenter(nn.Module):
    """`forward(x)`: `(B, 1, X, Y, Z)` as `preprocess` gives it -> logits `(B, classes, X, Y, Z)`.

    Args:
        encoder: an encoder (`ctssl.load`); its `spec` says how scans are prepared.
        head: a key of `ctssl.heads.HEADS`.
        classes: with the background.
        labels: names of the classes, `{1: "tumour"}`.
        window: voxels along each side of the pieces in which `segment` works, those of the crops of the
            training.
        parent: name of the pretrained encoder, for `config.json`.
        threshold: probability (0 to 1) from which on `segment` takes a label instead of the background.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        head: str = "light",
        classes: int = 2,
        labels: dict[int, str] | None = None,
        window: int = 64,
        parent: str | None = None,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"no head is called {head!r}; there are {sorted(HEADS)}")
        if classes < 2:
            raise ValueError(f"classes={classes}: at least 2, the background is one")
        if labels and sorted(labels) != list(range(1, classes)):
            raise ValueError(
                f"labels {sorted(labels)}: for {classes} classes with the background, name 1 to {classes - 1}"
            )
        if not 1 <= window <= WIDEST_WINDOW:
            raise ValueError(f"window={window}: 1 to {WIDEST_WINDOW} voxels")
        self.encoder = encoder
        kind: Any = HEADS[head]
        whole = {"crop": window} if getattr(kind, "whole", False) else {}
        self.head = kind(encoder.channels, encoder.strides, classes, **whole)
        self.head_name, self.classes, self.window = head, classes, window
        self.labels = labels or (
            {1: "tumour"} if classes == 2 else {i: f"class {i}" for i in range(1, classes)}
        )
        self.threshold = threshold
        self.origin: Path | None = None
        self.parent = (encoder.spec.name if encoder.spec else "") if parent is None else parent

    @property
    def threshold(self) -> float:
        """Probability from which on `segment` takes a label instead of the background; `ValueError` for one
        that is none."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not 0 < value < 1:
            raise ValueError(f"threshold={value:g}: a probability between 0 and 1")
        self._threshold = value

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(B, classes, X, Y, Z)` of a preprocessed image `(B, 1, X, Y, Z)`."""
        return self.head(image, self.encoder(image))

    def supervised(self, image: Tensor) -> list[tuple[float, Tensor]]:
        """Weights and logits that a training takes its loss from: one pair, or several for a head with deep
        supervision."""
        maps = self.encoder(image)
        return self.head.deep(image, maps) if hasattr(self.head, "deep") else [(1.0, self.head(image, maps))]  # type: ignore[operator]

    preprocess = Pretrained.preprocess

    @property
    def spec(self):
        """That of the encoder."""
        return self.encoder.spec

    def segment(
        self,
        source: Volume | str | os.PathLike | tuple,
        *,
        overlap: float = 0.5,
        tta: bool = False,
        max_memory_gb: float = 8.0,
        progress: bool = False,
    ) -> Volume:
        """Labels (uint8) of a scan of any size, on the scan's own grid. `source`: what `ctssl.read` takes.

        `overlap`: share of a window that the next one sees again. `tta`: average over all mirrorings, eight
        times the work. `max_memory_gb`: that the process may take; `ValueError` when the scan needs more.
        """
        from ctssl.inference.masks import segment
        from ctssl.inference.windows import Windows

        return segment(self, source, Windows(overlap, tta, max_memory_gb), progress=progress)

    def probabilities(
        self,
        source: Volume | str | os.PathLike | tuple,
        *,
        overlap: float = 0.5,
        tta: bool = False,
        max_memory_gb: float = 8.0,
        progress: bool = False,
    ) -> dict[str, Volume]:
        """For each label the probability (float32, 0..1) of every voxel, on the scan's own grid."""
        from ctssl.inference.masks import probabilities
        from ctssl.inference.windows import Windows

        return probabilities(self, source, Windows(overlap, tta, max_memory_gb), progress=progress)

    @on_class
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        revision: str | None = None,
        offline: bool | None = None,
        device: str = "cpu",
    ) -> Segmenter:
        """`ctssl.load_segmenter(...)`."""
        from ctssl.loading import load_segmenter

        return load_segmenter(source, revision=revision, offline=offline, device=device)

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        *,
        overwrite: bool = False,
        half: bool = False,
        extra: Mapping[str, str | bytes] | None = None,
        config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        """Write a folder that `ctssl.load_segmenter` reads; `extra` are more files, `config` more entries of
        its config.

        `metadata`: where the weights come from, for their header; None: as they were loaded, or who their
        parent is.
        """
        from ctssl.encoders.pretrained import encoder_config
        from ctssl.hub.folder import write_folder

        own = encoder_config(self.encoder, name=Path(folder).resolve().name)
        own |= {
            "name": Path(folder).resolve().name,
            "kind": "segmenter",
            "head": self.head_name,
            "labels": {str(k): v for k, v in self.labels.items()},
            "window": self.window,
            "parent": self.parent,
            "threshold": self.threshold,
            "parameters": sum(p.numel() for p in self.parameters()),
        }
        return write_folder(
            self,
            folder,
            {**own, **(config or {})},
            half=half,
            overwrite=overwrite,
            extra=extra,
            metadata=metadata,
        )

    push_to_hub = Pretrained.push_to_hub


def segmenter_settings(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Arguments of `Segmenter` from a `config.json`."""
    try:
        labels = {int(k): str(v) for k, v in config["labels"].items()}
        head, window, parent = config["head"], int(config["window"]), str(config.get("parent", ""))
        threshold = float(config.get("threshold", 0.5))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{folder}/config.json is not that of a segmenter ({error!r}); export it again"
        ) from error
    if not labels or sorted(labels) != list(range(1, len(labels) + 1)) or len(labels) > 255:
        raise ValueError(
            f"{folder}/config.json names the labels {sorted(labels)[:6]}; they are 1, 2, ... up to 255"
        )
    if not isinstance(head, str) or not 1 <= window <= WIDEST_WINDOW:
        raise ValueError(
            f"{folder}/config.json has the head {head!r} and windows of {window} voxels (1 to {WIDEST_WINDOW})"
        )
    if not 0 < threshold < 1:
        raise ValueError(
            f"{folder}/config.json has the threshold {threshold:g}; it is a probability between 0 and 1"
        )
    return dict(
        head=head, classes=len(labels) + 1, labels=labels, window=window, parent=parent, threshold=threshold
    )
