"""An encoder with a head: scans in, masks out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ctssl.encoders.pretrained import Pretrained, on_class
from ctssl.files.names import check_label_names
from ctssl.heads import HEADS, WHOLE
from ctssl.volume.volume import Volume
from ctssl.zoo import channels_of

WIDEST_WINDOW = 512  # largest side of the sliding window in voxels


class Segmenter(nn.Module):
    """Encoder and head: preprocessed images `(B, in_channels, X, Y, Z)` -> logits `(B, classes, X, Y, Z)`.

    Args:
        encoder: an encoder (`ctssl.load`); its `spec` defines the preprocessing.
        head: key of `ctssl.heads.HEADS`.
        classes: number of classes, including the background.
        labels: name of each class but the background, `{1: "tumour"}`.
        window: side of the sliding window of `segment` in voxels, the same as that of the training crops.
        parent: name of the starting weights, for `config.json`.
        threshold: probability (0 to 1) from which on `segment` prefers a label to the background.
        training_range: size of the training scans and volumes of their labels; see `ctssl.inference.ranges`.
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
        training_range: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"unknown head {head!r}; use {', '.join(sorted(HEADS))}")
        if classes < 2:
            raise ValueError(f"invalid classes={classes} (must be at least 2, including the background)")
        if labels and sorted(labels) != list(range(1, classes)):
            raise ValueError(
                f"invalid labels {sorted(labels)}; for {classes} classes with the background, name 1 "
                f"to {classes - 1}"
            )
        check_label_names(labels or {})
        if not 1 <= window <= WIDEST_WINDOW:
            raise ValueError(f"invalid window={window} (must be 1 to {WIDEST_WINDOW} voxels)")
        self.encoder = encoder
        kind: Any = HEADS[head]
        args: dict[str, int] = {"crop": window} if head in WHOLE else {}
        self.in_channels = channels_of(encoder)
        args |= {"in_channels": self.in_channels} if self.in_channels != 1 else {}
        self.head = kind(encoder.channels, encoder.strides, classes, **args)
        self.head_name, self.classes, self.window = head, classes, window
        self.labels = labels or (
            {1: "tumour"} if classes == 2 else {i: f"class {i}" for i in range(1, classes)}
        )
        self.threshold = threshold
        self.training_range = training_range or {}
        self.origin: Path | None = None
        self.parent = (encoder.spec.name if encoder.spec else "") if parent is None else parent

    @property
    def threshold(self) -> float:
        """Return the probability from which on `segment` prefers a label to the background.

        Setting it raises `ValueError` unless the value lies between 0 and 1.
        """
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not 0 < value < 1:
            raise ValueError(f"invalid threshold={value:g} (must be between 0 and 1)")
        self._threshold = value

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `(B, classes, X, Y, Z)` of a preprocessed image `(B, 1, X, Y, Z)`."""
        return self.head(image, self.encoder(image))

    def supervised(self, image: Tensor) -> list[tuple[float, Tensor]]:
        """Return (weight, logits) pairs for the training loss: one, or several for a head with deep
        supervision.
        """
        maps = self.encoder(image)
        return self.head.deep(image, maps) if hasattr(self.head, "deep") else [(1.0, self.head(image, maps))]  # type: ignore[operator]

    preprocess = Pretrained.preprocess

    @property
    def spec(self):
        """Return the spec of the encoder."""
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
        """Segment a scan of any size.

        Args:
            source: anything that `ctssl.read` accepts.
            overlap: share by which neighbouring windows overlap.
            tta: average over all mirrorings, which takes eight times as long.
            max_memory_gb: memory limit of the process in GB.
            progress: show a progress bar.

        Returns:
            Labels (uint8) on the scan's own grid.

        Raises:
            ValueError: the scan is not a CT in HU, or needs more memory than allowed.
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
        """Return for each label the probability (float32, 0 to 1) of every voxel, on the scan's own grid.

        Arguments and errors are those of `segment`.
        """
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
        """Load a segmenter; see `ctssl.load_segmenter`."""
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
        """Write a folder that `ctssl.load_segmenter` reads, and return its path.

        Args:
            folder: folder to write.
            overwrite: write into a folder that is not empty.
            half: store the weights as fp16.
            extra: more files, content by name.
            config: more entries of `config.json`.
            metadata: provenance for the header of the weights. Default: as loaded, or the starting weights as
                parent.
        """
        from ctssl.hub.folder import write_folder

        return write_folder(
            self,
            folder,
            {**segmenter_config(self, name=Path(folder).resolve().name), **(config or {})},
            half=half,
            overwrite=overwrite,
            extra=extra,
            metadata=metadata,
        )

    push_to_hub = Pretrained.push_to_hub


def segmenter_config(net: Segmenter, *, name: str) -> dict[str, Any]:
    """Return the `config.json` of a segmenter."""
    from ctssl.encoders.pretrained import encoder_config

    return {
        **encoder_config(net.encoder, name=name),
        "name": name,
        "kind": "segmenter",
        "head": net.head_name,
        "labels": {str(k): v for k, v in net.labels.items()},
        "window": net.window,
        "parent": net.parent,
        "threshold": net.threshold,
        **({"training_range": net.training_range} if net.training_range else {}),
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def segmenter_settings(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the arguments of `Segmenter` from a `config.json`. Raises `ValueError` for invalid entries."""
    try:
        labels = {int(k): str(v) for k, v in config["labels"].items()}
        head, window, parent = config["head"], int(config["window"]), str(config.get("parent", ""))
        threshold = float(config.get("threshold", 0.5))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{folder}/config.json does not describe a segmenter ({error!r}); export it again"
        ) from error
    if not labels or sorted(labels) != list(range(1, len(labels) + 1)) or len(labels) > 255:
        raise ValueError(
            f"{folder}/config.json: invalid labels {sorted(labels)[:6]} (must be 1, 2, ... up to 255)"
        )
    if not isinstance(head, str) or not 1 <= window <= WIDEST_WINDOW:
        raise ValueError(
            f"{folder}/config.json: invalid head {head!r} or window {window} (must be 1 to "
            f"{WIDEST_WINDOW} voxels)"
        )
    if not 0 < threshold < 1:
        raise ValueError(f"{folder}/config.json: invalid threshold {threshold:g} (must be between 0 and 1)")
    return dict(
        head=head,
        classes=len(labels) + 1,
        labels=labels,
        window=window,
        parent=parent,
        threshold=threshold,
        training_range=check_range(config.get("training_range"), folder),
    )


def check_range(given: Any, folder: Path) -> dict[str, Any]:
    """Return the `training_range` of a `config.json`, empty if there is none. Raises `ValueError` if it is none."""
    if given is None:
        return {}
    try:
        volumes = {str(int(k)): [float(low), float(high)] for k, (low, high) in given["volume_ml"].items()}
        return {"longest_mm": float(given["longest_mm"]), "volume_ml": volumes}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{folder}/config.json: invalid training_range ({error!r}); remove it, or export the model again"
        ) from error
