"""The pretraining tasks and what they have in common.

A task is an `nn.Module`: `Task(encoder, **args)`; `forward(batch) -> {"loss": scalar, ...numbers to log}` for
a `Batch`. The loss is a mean over samples, and all randomness is drawn from `batch.random`, so that a batch
gives the same gradient in one piece, in several, and on several devices. It owns every parameter beside the
encoder's, and hides tokens between `encoder.patch_embed` and `encoder.encode`. `task.encoder` is what gets
exported. Optional:

- `views`: how many views of each sample it takes (1);
- `after_step(progress)`: called after each step of the optimiser, for momentum teachers;
- `embed(batch)`, `forward(batch, others)` and a result named `joint`: for a loss, or the part of one, that
  relates samples to each other; see `contrastive.py`.

To add one: write `training/pretext/<name>.py` and add a line to `TASKS`.
"""

from training.pretext.contrastive import Contrastive
from training.pretext.itd import ImageTokens
from training.pretext.itd_mpd import ImageAndPatchTokens
from training.pretext.mae import MaskedAutoencoder
from training.pretext.mim import MaskedImageModelling
from training.pretext.rotate_inpaint_contrast import RotateInpaintContrast
from training.pretext.smit import Smit

TASKS = {
    "mim": MaskedImageModelling,
    "contrastive": Contrastive,
    "itd": ImageTokens,
    "itd_mpd": ImageAndPatchTokens,
    "smit": Smit,
    "mae": MaskedAutoencoder,
    "rotate_inpaint_contrast": RotateInpaintContrast,
}
