"""What a model can do besides `forward`: preprocess a scan, embed it, be loaded, saved and shared."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctssl.encoders.backbone import Backbone
from ctssl.zoo import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from typing_extensions import Self

    from ctssl.inference.features import FeatureMap
    from ctssl.volume.volume import Volume


class on_class:
    """A class method that refuses to be called on an instance, whose weights it would not change."""

    def __init__(self, function) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance, owner):
        return self.function.__get__(owner) if instance is None else _refusal(owner.__name__)


def _refusal(name: str):
    """Return a function that raises when it is called, not when it is looked at (`inspect`, `torch.jit`)."""

    def from_pretrained(*args, **kwargs):
        raise TypeError(
            f"from_pretrained returns a new {name} and does not change this one; write "
            f"model = {name}.from_pretrained(...)"
        )

    return from_pretrained


class Pretrained(Backbone):
    """Methods that all encoders share.

    Attributes:
        architecture: the encoder's key in `ctssl.encoders.ENCODERS`.
        spec: where the weights come from; None for an untrained encoder.
        origin: the file that the weights were loaded from.
    """

    architecture: str
    spec: ModelSpec | None = None
    origin: Path | None = None

    def preprocess(self, volume: Volume | str | os.PathLike | tuple[np.ndarray, np.ndarray]) -> Tensor:
        """Read a scan and bring it to the model's grid: RAS+, `spec.preprocess.spacing_mm`, 0..1.

        Warns about a suspicious scan and raises `ValueError` for an impossible one; see `ctssl.scan_checks`.

        Args:
            volume: anything that `ctssl.read` accepts.

        Returns:
            `(1, 1, X, Y, Z)` float32.
        """
        from ctssl.inference.features import preprocess

        return preprocess(self, volume)

    def embed(
        self,
        volume: Volume | str | os.PathLike | tuple[np.ndarray, np.ndarray] | list,
        *,
        mask: Any = None,
        max_memory_gb: float = 8.0,
    ) -> Tensor:
        """Return `(channels[-1],)`: the mean of the deepest map over the tissue of a scan of any size; of a list of
        scans, a row for each.

        Args:
            volume: anything that `ctssl.read` accepts, or a list of such.
            mask: labels on the grid of one scan: returns `(lesions, sum(channels))` instead, the mean of every map over
                each lesion, by label and falling volume; `ctssl.inference.lesions.embed_lesions` tells which is which.
            max_memory_gb: memory limit of the process in GB.

        Raises:
            ValueError: the scan needs more memory than allowed (before it is read), or the mask does not fit.
        """
        if mask is not None:
            import torch

            from ctssl.inference.lesions import embed_lesions

            found = embed_lesions(self, volume, mask, max_memory_gb=max_memory_gb)
            rows = [lesion.vector for lesion in found]
            return torch.stack(rows) if rows else torch.zeros(0, sum(self.channels))
        from ctssl.inference.features import embed

        return embed(self, volume, max_memory_gb=max_memory_gb)

    def feature_maps(
        self,
        volume: Volume | str | os.PathLike | tuple[np.ndarray, np.ndarray],
        *,
        max_memory_gb: float = 8.0,
    ) -> list[FeatureMap]:
        """Return every map of a scan of any size, finest first: `array` `(channels, x, y, z)` float32 and `affine`, its
        voxels to RAS+ mm.

        Raises `ValueError` for a scan that needs more memory than `max_memory_gb`, before it is read.
        """
        from ctssl.inference.features import dense

        return dense(self, volume, max_memory_gb=max_memory_gb)

    @on_class
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        revision: str | None = None,
        offline: bool | None = None,
        device: str = "cpu",
    ) -> Self:
        """Load a model with `ctssl.load`. Raises `ValueError` unless it is of this class."""
        from ctssl.loading import load

        model: Any = load(source, revision=revision, offline=offline, device=device)
        if not isinstance(model, cls):  # type: ignore[arg-type]
            raise ValueError(
                f"{source} is a {type(model).__name__}; use {type(model).__name__}.from_pretrained or "
                "ctssl.load"
            )
        return model

    def save_pretrained(self, folder: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write a folder that `ctssl.load` reads (float32), and return its path.

        Raises `FileExistsError` if the folder is not empty and `overwrite` is False.
        """
        from ctssl.hub.folder import write_folder

        name = self.spec.name if self.spec else Path(folder).resolve().name
        return write_folder(self, folder, encoder_config(self, name=name), overwrite=overwrite)  # type: ignore[arg-type]

    def push_to_hub(self, repo: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload weights, config and a generated card to a Hub repository; returns the URL of the commit.

        Nothing about the training data is uploaded beyond what config and card say.

        Args:
            repo: `owner/name`; created if missing.
            private: create it as a private repository.
            token: Hub token. Default: that of HF_TOKEN or `hf auth login`.
        """
        from ctssl.hub.client import push

        return push(self, repo, private=private, token=token)


def encoder_config(encoder: Any, *, name: str) -> dict[str, Any]:
    """Return the `config.json` of an encoder, without format and sha256."""
    spec = encoder.spec or ModelSpec(name=name, kind="encoder", encoder=encoder.architecture)
    return {
        "name": name,
        "kind": "encoder",
        "encoder": encoder.architecture,
        "encoder_args": encoder.config,
        "preprocess": spec.preprocess.entry(),
        "corpus": spec.corpus,
        "pretext": spec.pretext,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "licence": spec.licence,
        "data": spec.data,
    }
