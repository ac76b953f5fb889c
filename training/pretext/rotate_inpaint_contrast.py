"""Rotation, inpainting and contrast together (Swin UNETR's pretraining, Tang 2022, arXiv 2111.14791)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.pretext.batch import Batch, seed_drop_path
from training.pretext.contrastive import Others, everyone, nt_xent
from training.pretext.mim import VoxelHead


class RotateInpaintContrast(nn.Module):
    """Predict the rotation of a crop, inpaint what was overwritten, and match two copies.

    Each crop is copied twice; each copy is rotated about z and partly overwritten. The three losses have
    equal weights, the temperature is 0.5 and the L1 covers the whole crop, as published. Ours differs in that
    the heads read the mean of the deepest map (there: its first two tokens), voxels come from a linear head,
    and overwriting uses noise or another part of the same crop (there: of another sample).

    Args:
        encoder: see `ctssl.encoders`.
        out: width of the embedding.
        temperature: temperature of the contrastive loss.
        share: overwritten share of a crop.
    """

    about = "rotation, inpainting and contrast (arXiv 2111.14791)"

    def __init__(self, encoder: Any, *, out: int = 512, temperature: float = 0.5, share: float = 0.3) -> None:
        super().__init__()
        self.encoder, self.temperature, self.share = encoder, temperature, share
        width = encoder.channels[-1]
        self.rotation, self.project = nn.Linear(width, 4), nn.Linear(width, out)
        self.head = VoxelHead(encoder)

    def embed(self, batch: Batch) -> Tensor:
        """Return `(2, B, out)` on the unit sphere."""
        return torch.stack([self._copy(batch, i)[0] for i in range(2)])

    def forward(self, batch: Batch, others: Others | None = None) -> dict[str, Tensor]:
        copies = [self._copy(batch, i) for i in range(2)]
        own = torch.stack([embedding for embedding, _, _ in copies])
        rotation = torch.stack([r for _, r, _ in copies]).mean()
        voxels = torch.stack([v for _, _, v in copies]).mean()
        others = everyone(own.detach(), batch.patients) if others is None else others
        contrast, accuracy = nt_xent(others.around(own), others.patients, temperature=self.temperature)
        return {
            "loss": rotation + voxels + contrast,
            "joint": contrast,
            "rotation": rotation,
            "voxels": voxels,
            "accuracy": accuracy,
        }

    def _copy(self, batch: Batch, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return embedding, rotation loss and inpainting loss of one rotated and overwritten copy."""
        turns = (batch.random(salt=10 + number) * 4).long()
        rotated = torch.stack([x.rot90(int(k), (1, 2)) for x, k in zip(batch.image, turns, strict=True)])
        seed_drop_path(self.encoder, batch, salt=1000 * (number + 1))
        deepest = self.encoder(self.overwrite(batch, rotated, salt=20 + 100 * number))[-1]
        pooled = deepest.mean((2, 3, 4))
        rotation = F.cross_entropy(self.rotation(pooled).float(), turns)
        voxels = (self.head(deepest, tuple(rotated.shape[2:])).float() - rotated[:, 0].float()).abs().mean()
        return F.normalize(self.project(pooled).float(), dim=-1), rotation, voxels

    def overwrite(self, batch: Batch, image: Tensor, *, salt: int, boxes: int = 20) -> Tensor:
        """Overwrite boxes with noise, or with another place of the crop, until the share is reached."""
        draws = batch.random(boxes, 10, salt=salt)
        result, size = image.clone(), torch.tensor(image.shape[2:])
        for sample, numbers in enumerate(draws):
            done = torch.zeros(image.shape[2:], dtype=torch.bool, device=image.device)
            for row in numbers.cpu():
                edge = (size * (0.125 + 0.25 * row[:3])).long().clamp_min(1)
                to, source = ((size - edge) * row[3:6]).long(), ((size - edge) * row[6:9]).long()
                target, origin = box(to, edge), box(source, edge)
                done[target] = True
                if done.float().mean() > self.share:
                    break
                if row[9] < 0.5:
                    noise = torch.rand(
                        edge.tolist(), generator=torch.Generator().manual_seed(int(row[9] * 2**30))
                    )
                    result[(sample, 0, *target)] = noise.to(image)
                else:
                    result[(sample, 0, *target)] = image[(sample, 0, *origin)]
        return result


def box(start: Tensor, edge: Tensor) -> tuple[slice, ...]:
    return tuple(slice(int(a), int(a + n)) for a, n in zip(start, edge, strict=True))
