"""The network that ctssl's plans name: HU in nnU-Net's axes go in, logits in the same axes come out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ctssl.encoders import ENCODERS, plain_args
from ctssl.finetuning.start import open_start, take_head
from ctssl.heads.segmenter import Segmenter
from ctssl.zoo import ModelSpec, Preprocess


class Network(nn.Module):
    """A segmenter as nnU-Net builds it from plans, with initial weights.

    Args:
        input_channels: channels of the image; must be 1.
        num_classes: number of outputs, with the background.
        encoder: key of `ctssl.encoders.ENCODERS`.
        encoder_args: arguments of the encoder.
        head: key of `ctssl.heads.HEADS`.
        spacing_mm: working spacing in mm, the same along each axis.
        window_hu: HU window that is mapped to 0..1 inside the network; the plans say `NoNormalization`.
        patch: side of the patches in voxels.
        deep_supervision: ignored, as the heads have one output.

    Raises:
        ValueError: more than one input channel.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        encoder: str,
        encoder_args: dict[str, Any],
        head: str,
        spacing_mm: float,
        window_hu: tuple[float, float],
        patch: int,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if input_channels != 1:
            raise ValueError(
                f"the dataset has {input_channels} channels; ctssl's encoders take one, CT in HU"
            )
        args = plain_args(encoder_args)
        backbone: Any = ENCODERS[encoder](**args)
        backbone.spec = ModelSpec(
            "", "encoder", encoder, args, Preprocess(spacing_mm, (window_hu[0], window_hu[1]))
        )
        self.segmenter = Segmenter(backbone, head=head, classes=num_classes, window=patch)
        self.window_hu = window_hu

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `(B, classes, Z, Y, X)` of an image `(B, 1, Z, Y, X)` in HU."""
        low, high = self.window_hu
        scaled = ((image - low) / (high - low)).clamp(0, 1)
        return self.segmenter(scaled.transpose(2, 4)).transpose(2, 4)

    def load_pretrained(self, model: str, sha256: str) -> None:
        """Load a model's encoder, and its head if the plans name the same head.

        Raises `ValueError` if its weights are not those that the plans were written for.
        """
        start = open_start(model, self.segmenter.head_name, from_scratch=False, seed=0)
        if start.weights != sha256:
            raise ValueError(
                f"the weights of {model} are not those that the plans were written for; write the plans again with "
                "`ctssl nnunet --overwrite`, and train anew"
            )
        encoder: Any = self.segmenter.encoder
        encoder.load_state_dict(start.encoder.state_dict())
        take_head(self.segmenter, start)
        self.segmenter.parent = start.name
        encoder.spec = ModelSpec(
            start.name,
            "encoder",
            encoder.architecture,
            encoder.config,
            encoder.spec.preprocess,
            corpus=start.spec.corpus,
            pretext=start.spec.pretext,
            licence=start.spec.licence,
            data=start.spec.data,
        )
