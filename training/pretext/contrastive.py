"""Contrastive learning: attract two views of a sample, repel samples of other patients (SimCLR, arXiv
2002.05709).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from ctssl.devices import rank_and_world
from training.pretext.batch import Batch, seed_drop_path


class Others(NamedTuple):
    """The embeddings of the whole step, without gradient.

    Attributes:
        embeddings: `(V, N, D)`; with several devices N counts the samples of all of them.
        patients: `(N,)`.
        start: index of the first sample of this piece.
    """

    embeddings: Tensor
    patients: Tensor
    start: int

    def around(self, own: Tensor) -> Tensor:
        """Return the whole step's embeddings with this piece's `(V, n, D)` in its place, including its
        gradient.
        """
        end = self.start + own.shape[1]
        return torch.cat([self.embeddings[:, : self.start], own, self.embeddings[:, end:]], 1)


class Contrastive(nn.Module):
    """NT-Xent on two views; negatives come from other patients, of every process and every piece of the step.

    Args:
        encoder: see `ctssl.encoders`.
        hidden: hidden width of the projection head (SimCLR: 2048).
        out: output width of the projection head (SimCLR: 128).
        temperature: the paper does not state its own; this is SimCLR's value for small batches.
    """

    about = "contrastive learning (SimCLR, arXiv 2002.05709)"
    views = 2
    patients = 2  # at least: without another one nothing repels

    def __init__(self, encoder: Any, *, hidden: int = 512, out: int = 128, temperature: float = 0.2) -> None:
        super().__init__()
        self.encoder, self.temperature = encoder, temperature
        width = encoder.channels[-1]
        self.project = nn.Sequential(
            nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, out, bias=False)
        )

    def embed(self, batch: Batch) -> Tensor:
        """Return `(2, B, out)` on the unit sphere, one row per view."""
        rows = []
        for i, view in enumerate(batch.views):
            seed_drop_path(self.encoder, batch, salt=1000 * (i + 1))
            rows.append(self.project(self.encoder(view)[-1].mean((2, 3, 4))))
        return F.normalize(torch.stack(rows).float(), dim=-1)

    def forward(self, batch: Batch, others: Others | None = None) -> dict[str, Tensor]:
        own = self.embed(batch)
        others = everyone(own.detach(), batch.patients) if others is None else others
        whole = others.around(own)
        loss, accuracy = nt_xent(whole, others.patients, temperature=self.temperature)
        return {
            "loss": loss,
            "joint": loss,
            "accuracy": accuracy,
            "spread": whole.detach().flatten(0, 1).std(0).norm(),
        }


def everyone(own: Tensor, patients: Tensor) -> Others:
    """Gather the embeddings `(V, n, D)` of every process, in the order of their ranks."""
    rank, world = rank_and_world()
    if world == 1:
        return Others(own, patients, 0)
    parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(world)]
    names = [torch.empty_like(patients) for _ in parts]
    dist.all_gather(parts, own.contiguous())
    dist.all_gather(names, patients.contiguous())
    return Others(torch.cat(parts, 1), torch.cat(names), rank * own.shape[1])


def nt_xent(embeddings: Tensor, patients: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the NT-Xent loss, and the share of views whose nearest candidate is their twin.

    Candidates are the twin and every view of another patient: two crops of one patient are not negatives.

    Args:
        embeddings: unit vectors `(2, N, D)`.
        patients: `(N,)`.
        temperature: divides the cosines.
    """
    views, count, _ = embeddings.shape
    flat = embeddings.flatten(0, 1)  # (2N, D)
    logits = flat @ flat.t() / temperature
    owner = patients.repeat(views)
    twin = torch.arange(views * count, device=flat.device).roll(count)
    barred = owner[:, None] == owner[None]
    barred = barred.scatter(1, twin[:, None], False)
    logits = logits.masked_fill(barred, float("-inf"))
    hits = (logits.argmax(1) == twin).float().mean()
    return F.cross_entropy(logits, twin), hits
