"""A complete pretext task of your own: predict which way is up. `python -m examples.new_pretext [STEPS]` (in
a checkout).

To keep it, put the class into `training/pretext/<name>.py`, add a line to `TASKS`, and a run to
`training/runs/`.
"""

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ctssl
from ctssl.phantom import phantom
from training.pretext import TASKS
from training.pretext.batch import Batch


class Upright(nn.Module):
    """Predict which of the six faces of a rotated crop was on top: cross-entropy on the mean of the deepest
    map.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.channels[-1], 6)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # drawn per sample, so that a resumed or distributed run draws the same
        faces = (batch.random(salt=0) * 6).long()
        turned = torch.stack(
            [self.turn(crop, int(face)) for crop, face in zip(batch.image, faces, strict=True)]
        )
        logits = self.head(self.encoder(turned)[-1].mean((2, 3, 4)))
        hits = (logits.argmax(1) == faces).float().mean()
        return {"loss": F.cross_entropy(logits, faces), "accuracy": hits}

    @staticmethod
    def turn(crop: Tensor, face: int) -> Tensor:
        """Move the third axis of `(1, S, S, S)` to axis `face // 2`, and flip it when `face` is odd."""
        moved = crop.movedim(3, 1 + face // 2)
        return moved.flip(1 + face // 2) if face % 2 else moved


def main(steps: str = "30") -> list[float]:
    torch.manual_seed(0)
    encoder = ctssl.Swin(24, depths=(2, 2), heads=(2, 4), window=4, patch=4, merge_last=False)
    task = Upright(encoder)
    assert "upright" not in TASKS  # one line there makes it available to `python -m training.pretrain`
    scan = encoder.preprocess(phantom()[0])
    opt = torch.optim.AdamW(task.parameters(), 1e-3)
    losses = []
    for step in range(int(steps)):
        corners = [[int(torch.randint(n - 47, ())) for n in scan.shape[2:]] for _ in range(4)]
        crops = torch.cat([scan[..., x : x + 48, y : y + 48, z : z + 48] for x, y, z in corners])
        result = task(
            Batch((crops,), seeds=torch.arange(4) + 4 * step, patients=torch.zeros(4, dtype=torch.long))
        )
        opt.zero_grad()
        result["loss"].backward()
        opt.step()
        losses.append(result["loss"].item())
        if step % 10 == 0:
            print(f"step {step}: loss {losses[-1]:.3f}, accuracy {result['accuracy']:.2f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
