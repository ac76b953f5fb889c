"""ctssl's encoders under the names of transformers: `import ctssl.hf` registers them.

`AutoModel`, `AutoBackbone` and `AutoImageProcessor.from_pretrained` then take every model folder and Hub repository of
ctssl, without remote code. Weights are verified and loaded by `ctssl.load`. Needs `pip install "ctssl[transformers]"`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    BatchFeature,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling

from ctssl.encoders import ENCODERS, plain_args
from ctssl.hub.folder import MODEL_TYPE
from ctssl.loading import load
from ctssl.scan_checks import check
from ctssl.volume.grids import prepare
from ctssl.volume.volume import read
from ctssl.zoo import Channel, Preprocess


class CtsslConfig(PretrainedConfig):
    """The `config.json` of an encoder.

    Args:
        encoder: key of `ctssl.encoders.ENCODERS`.
        encoder_args: arguments of the encoder.
        preprocess: `spacing_mm` and `window_hu` of the input.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        encoder: str = "vit",
        encoder_args: dict[str, Any] | None = None,
        preprocess: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder, self.encoder_args, self.preprocess = encoder, encoder_args or {}, preprocess or {}
        super().__init__(**kwargs)


class _Wrapped(PreTrainedModel):
    """An encoder of ctssl as `encoder`; loading and saving are ctssl's own."""

    config_class = CtsslConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"

    def __init__(self, config: CtsslConfig, encoder: Any = None) -> None:
        super().__init__(config)
        args = plain_args(config.encoder_args)
        self.encoder = encoder if encoder is not None else ENCODERS[config.encoder](**args)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, *_: Any, config: Any = None, **kwargs: Any):  # type: ignore[override]
        """Load an encoder with `ctssl.load`, in evaluation mode; of a segmenter, its encoder.

        Args:
            source: a model name, a folder, or a Hub repository `owner/name`.
            config: as `AutoConfig` read it. Default: from the encoder.
            kwargs: `revision`, `local_files_only` and `dtype` as in transformers.
        """
        encoder: Any = load(
            source, revision=kwargs.get("revision"), offline=kwargs.get("local_files_only") or None
        )
        own = config or CtsslConfig(encoder.architecture, encoder.config)
        model = cls(own, encoder)
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
        return (model.to(dtype) if isinstance(dtype, torch.dtype) else model).eval()

    def save_pretrained(self, save_directory: str | os.PathLike, **_: Any) -> None:  # type: ignore[override]
        """Write a folder that transformers and `ctssl.load` read."""
        self.encoder.save_pretrained(save_directory, overwrite=True)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None, **_: Any) -> str:  # type: ignore[override]
        """Upload with `ctssl`; returns the URL of the commit."""
        return self.encoder.push_to_hub(repo_id, private=private, token=token)


class CtsslModel(_Wrapped):
    """Encoder: preprocessed images `(B, 1, X, Y, Z)` in; the deepest map `(B, C, ...)`, its mean `(B, C)` and all maps
    (`hidden_states`) out."""

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        maps = self.encoder(pixel_values)
        pooled = maps[-1].mean((2, 3, 4))
        return BaseModelOutputWithPooling(
            last_hidden_state=maps[-1], pooler_output=pooled, hidden_states=tuple(maps)
        )


class CtsslBackbone(_Wrapped):
    """Encoder: preprocessed images `(B, 1, X, Y, Z)` in, one map for each stride out."""

    @property
    def channels(self) -> list[int]:
        """Return the channels of the maps."""
        return list(self.encoder.channels)

    def forward(self, pixel_values: Tensor, **_: Any) -> BackboneOutput:
        return BackboneOutput(feature_maps=tuple(self.encoder(pixel_values)))


class CtsslImageProcessor(BaseImageProcessor):
    """Scans in, `pixel_values` `(B, C, X, Y, Z)` out: RAS+ axes, working spacing, HU window mapped to 0..1.

    Args:
        spacing_mm: working spacing in mm.
        window_hu: lower and upper HU.
        channels: name, lower and upper value of each channel beside the CT; a scan is then `ctssl.Channels(ct, ...)`.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        spacing_mm: float = 2.0,
        window_hu: tuple[float, float] = (-500.0, 500.0),
        channels: Sequence[Sequence[Any]] = (),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.channels = [Channel(*channel) for channel in channels]
        self.spacing_mm, self.window_hu = float(spacing_mm), (float(window_hu[0]), float(window_hu[1]))

    def __call__(self, images: Any, **_: Any) -> BatchFeature:
        """Prepare a scan, or a list of scans of one size; each is anything that `ctssl.read` takes.

        Raises `ValueError` for scans of different sizes, which no batch holds.
        """
        scans = images if isinstance(images, list) else [images]
        how = Preprocess(self.spacing_mm, self.window_hu, tuple(self.channels))
        ready = [torch.from_numpy(prepare(check(read(scan)), how).stack) for scan in scans]
        sizes = {tuple(one.shape[1:]) for one in ready}
        if len(sizes) != 1:
            raise ValueError(
                f"the scans have different sizes ({sorted(sizes)[:3]}); prepare them one by one, or crop them"
            )
        return BatchFeature({"pixel_values": torch.stack(ready)})


AutoConfig.register(MODEL_TYPE, CtsslConfig, exist_ok=True)
AutoModel.register(CtsslConfig, CtsslModel, exist_ok=True)
AutoBackbone.register(CtsslConfig, CtsslBackbone, exist_ok=True)
AutoImageProcessor.register(
    CtsslConfig,
    image_processor_classes={"pil": CtsslImageProcessor, "torchvision": CtsslImageProcessor},
    exist_ok=True,
)
