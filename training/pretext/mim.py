"""Masked image modelling: predict the voxels of hidden blocks (SimMIM, arXiv 2111.09886; MIP of SMIT, arXiv
2205.10342).
"""

from typing import Any

from torch import Tensor, nn

from training.pretext.batch import Batch
from training.pretext.masking import MaskedTask, patches, spread


class MaskedImageModelling(MaskedTask):
    """L1 loss on masked voxels only, from a linear head on the encoder's deepest map. Arguments: see
    `MaskedTask`.
    """

    about = "masked image modelling (SimMIM, arXiv 2111.09886; the MIP loss of SMIT, arXiv 2205.10342)"

    def __init__(self, encoder: Any, **masking: Any) -> None:
        super().__init__(encoder, **masking)
        self.head = VoxelHead(encoder)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        deepest, masked = self.encode_masked(batch)
        return {"loss": self.head.loss(deepest, batch.image, masked)}


class VoxelHead(nn.Module):
    """A linear layer from each token of the deepest map to the voxels below it."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.stride: int = encoder.strides[-1]
        self.patch: int = encoder.patch_embed.patch
        self.linear = nn.Linear(encoder.channels[-1], self.stride**3)

    def forward(self, deepest: Tensor, size: tuple[int, ...]) -> Tensor:
        """Predict voxels `(B, X, Y, Z)`, cut to `size`, from the deepest map `(B, C, x, y, z)`."""
        s = self.stride
        values = self.linear(deepest.permute(0, 2, 3, 4, 1))  # (B, x, y, z, s^3)
        values = values.unflatten(-1, (s, s, s)).permute(0, 1, 4, 2, 5, 3, 6)  # (B, x, s, y, s, z, s)
        voxels = values.flatten(5, 6).flatten(3, 4).flatten(1, 2)
        return voxels[:, : size[0], : size[1], : size[2]]

    def loss(self, deepest: Tensor, image: Tensor, masked: Tensor) -> Tensor:
        """Return the mean over samples of the mean |error| over the voxels of `masked` `(B, *tokens)`.

        Cubes without masked voxels are not predicted.
        """
        voxels = spread(masked, self.patch, tuple(image.shape[2:]))
        hidden = patches(voxels, self.stride).flatten(4)  # (B, x, y, z, s^3)
        some = hidden.any(-1)
        wanted = patches(image[:, 0], self.stride)[some].flatten(1)
        error = self.linear(deepest.permute(0, 2, 3, 4, 1)[some]).float() - wanted.float()
        sums = error.abs().mul(hidden[some]).sum(1)
        sample = some.nonzero()[:, 0]
        totals = sums.new_zeros(len(image)).index_add(0, sample, sums)
        return (totals / hidden.flatten(1).sum(1)).mean()
