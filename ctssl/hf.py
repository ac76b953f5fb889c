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

try:
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
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'ctssl.hf needs transformers: pip install "ctssl[transformers]"', name=error.name
    ) from error

from ctssl.encoders import ENCODERS, plain_args
from ctssl.hub.folder import MODEL_TYPE
from ctssl.loading import load
from ctssl.scan_checks import check, check_channels
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


TAKEN = ("revision", "local_files_only", "dtype", "torch_dtype")
WITHOUT_EFFECT = (
    "adapter_kwargs",
    "cache_dir",
    "force_download",
    "token",
    "trust_remote_code",
    "use_safetensors",
)
"""What transformers passes on, or takes, that changes nothing of the model; files are found as `ctssl.load` finds them."""


def check_arguments(given: dict[str, Any], known: Sequence[str]) -> None:
    """Raise `TypeError` for arguments that would be ignored."""
    unknown = [name for name in given if name not in known and not name.startswith("_")]
    if unknown:
        raise TypeError(f"ctssl.hf does not know {', '.join(unknown)}; it takes {', '.join(known)}")


def dtype_of(given: torch.dtype | str | None) -> torch.dtype | None:
    """Return a floating-point type, also from its name ("bfloat16"); None for none, and for "auto"."""
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if given in (None, "auto"):
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"invalid dtype={given!r}; use float32, bfloat16 or float16")
    return found


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
            kwargs: `revision`, `local_files_only` and `dtype` as in transformers. Others raise `TypeError`.
        """
        check_arguments(kwargs, (*TAKEN, *WITHOUT_EFFECT))
        encoder: Any = load(
            source, revision=kwargs.get("revision"), offline=kwargs.get("local_files_only") or None
        )
        own = config or CtsslConfig(encoder.architecture, encoder.config)
        dtype = dtype_of(kwargs.get("dtype") or kwargs.get("torch_dtype"))
        return cls(own, encoder).to(dtype or torch.float32).eval()

    def maps_of(self, pixel_values: Tensor) -> list[Tensor]:
        """Return the maps of preprocessed images, in the type of the weights."""
        return self.encoder(pixel_values.to(self.dtype))

    def save_pretrained(self, save_directory: str | os.PathLike, **_: Any) -> None:  # type: ignore[override]
        """Write a folder that transformers and `ctssl.load` read."""
        self.encoder.save_pretrained(save_directory, overwrite=True)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None, **_: Any) -> str:  # type: ignore[override]
        """Upload with `ctssl`; returns the URL of the commit."""
        return self.encoder.push_to_hub(repo_id, private=private, token=token)


class CtsslModel(_Wrapped):
    """Encoder: preprocessed images `(B, 1, X, Y, Z)` in; the deepest map `(B, C, ...)`, its mean `(B, C)` and all maps
    (`hidden_states`) out. The mean is over the whole image; `ctssl.load(...).embed` leaves air out."""

    def forward(
        self,
        pixel_values: Tensor,
        *,
        output_hidden_states: bool | None = True,
        return_dict: bool | None = True,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        maps = self.maps_of(pixel_values)
        hidden = tuple(maps) if output_hidden_states in (None, True) else None
        found = BaseModelOutputWithPooling(
            last_hidden_state=maps[-1], pooler_output=maps[-1].mean((2, 3, 4)), hidden_states=hidden
        )
        return found.to_tuple() if return_dict is False else found


class CtsslBackbone(_Wrapped):
    """Encoder: preprocessed images `(B, 1, X, Y, Z)` in, one map for each stride out, finest first; those of `out_indices`."""

    out_indices: Sequence[int] | None = None

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike, *args: Any, out_indices: Sequence[int] | None = None, **kwargs: Any
    ):  # type: ignore[override]
        """Load an encoder as `CtsslModel` does. `out_indices`: the maps to return, from 0 (the finest); negative ones count from
        the end. Raises `ValueError` for maps that it does not have."""
        model = super().from_pretrained(source, *args, **kwargs)
        count = len(model.encoder.channels)
        if out_indices is not None and (not out_indices or not all(-count <= i < count for i in out_indices)):
            raise ValueError(f"out_indices={list(out_indices)}; this encoder has the maps 0 to {count - 1}")
        model.out_indices = out_indices
        return model

    @property
    def channels(self) -> list[int]:
        """Return the channels of the maps."""
        return self._chosen(self.encoder.channels)

    def forward(
        self, pixel_values: Tensor, *, return_dict: bool | None = True
    ) -> BackboneOutput | tuple[Any, ...]:
        found = BackboneOutput(feature_maps=tuple(self._chosen(self.maps_of(pixel_values))))
        return found.to_tuple() if return_dict is False else found

    def _chosen(self, all_maps: Sequence[Any]) -> list[Any]:
        """Return what belongs to the maps of `out_indices`."""
        return list(all_maps) if self.out_indices is None else [all_maps[i] for i in self.out_indices]


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

    def __call__(self, images: Any, *, return_tensors: str | None = "pt") -> BatchFeature:
        """Prepare a scan, or a list of scans of one size; each is anything that `ctssl.read` takes.

        Args:
            images: the scans.
            return_tensors: "pt", or "np" for NumPy.

        Raises `ValueError` for scans of different sizes, which no batch holds.
        """
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"invalid return_tensors={return_tensors!r}; use pt or np")
        scans = images if isinstance(images, list) else [images]
        how = Preprocess(self.spacing_mm, self.window_hu, tuple(self.channels))
        ready = [
            torch.from_numpy(prepare(check_channels(check(read(scan)), how), how).stack) for scan in scans
        ]
        sizes = {tuple(one.shape[1:]) for one in ready}
        if len(sizes) != 1:
            raise ValueError(
                f"the scans have different sizes ({sorted(sizes)[:3]}); prepare them one by one, or crop them"
            )
        batch = torch.stack(ready)
        return BatchFeature({"pixel_values": batch.numpy() if return_tensors == "np" else batch})


AutoConfig.register(MODEL_TYPE, CtsslConfig, exist_ok=True)
AutoModel.register(CtsslConfig, CtsslModel, exist_ok=True)
AutoBackbone.register(CtsslConfig, CtsslBackbone, exist_ok=True)
AutoImageProcessor.register(
    CtsslConfig,
    image_processor_classes={"pil": CtsslImageProcessor, "torchvision": CtsslImageProcessor},
    exist_ok=True,
)
