"""The names under which timm and segmentation_models_pytorch look for what an encoder can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from timm.models import FeatureInfo
    from torch import Tensor, nn


class Backbone:
    """timm's interface of a model without a classifier, for both encoders.

    An encoder's `forward` already returns all maps, as timm's `features_only=True` does.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    checkpointing: bool
    num_classes = 0

    @property
    def num_features(self) -> int:
        """Return the channels of the deepest map."""
        return self.channels[-1]

    @property
    def feature_info(self) -> FeatureInfo:
        """Return channels and strides of the maps: `feature_info.channels()`, `feature_info.reduction()`."""
        from timm.models import FeatureInfo

        maps: Any = zip(self.channels, self.strides, strict=True)
        rows = [
            {"num_chs": c, "reduction": s, "module": f"map{number}", "index": number}
            for number, (c, s) in enumerate(maps)
        ]
        return FeatureInfo(rows, tuple(range(len(rows))))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the deepest map `(B, num_features, ...)` of images `(B, 1, X, Y, Z)`."""
        return self(x)[-1]  # type: ignore[operator]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return `(B, num_features)`, the mean of the map of `forward_features`; there is no classifier."""
        return features.mean((2, 3, 4))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass: less memory, about a third more time."""
        self.checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of positions, bias tables and tokens, which an optimiser should not decay."""
        names = (name for name, _ in self.named_parameters())  # type: ignore[attr-defined]
        return {name for name in names if "bias_table" in name or name in ("positions", "extra")}

    def get_classifier(self) -> nn.Module:
        """Return the identity: the encoder has no classifier."""
        from torch import nn

        return nn.Identity()

    def reset_classifier(self, num_classes: int = 0, global_pool: str = "avg") -> None:
        """Accept 0 classes, as timm's models without a classifier do. Raises `ValueError` for more."""
        if num_classes:
            raise ValueError(
                f"num_classes={num_classes}: an encoder has no classifier; put a layer of your own on forward_head, or take "
                "ctssl.segmenter(encoder, classes=...) for masks"
            )
