"""The pretraining tasks and their common interface.

A task is an `nn.Module`: `Task(encoder, **args)`; `forward(batch) -> {"loss": scalar, ...numbers to log}` for
a `Batch`. The loss is a mean over samples, and all randomness comes from `batch.random`, so that a batch
gives the same gradient in one piece, in several, and on several devices. The task owns every parameter except
the encoder's, and hides tokens between `encoder.patch_embed` and `encoder.encode`. `task.encoder` is what
gets exported. Optional:

- `about`: what a card says that an encoder was pretrained with;
- `patients`: the smallest number of patients that it can learn from (1);
- `views`: number of views of each sample (1);
- `crops`: a `training.data.views.Crops`, which crops of a scan each sample needs;
- `compose(crops, spacing_mm, *, how, preprocess, draws)`: makes the views of a whole batch of crops, on any device,
  instead of `training.data.views.compose`, for tasks whose views are an image and its target;
- `segmenter`: encoder and head, for a task that segments; both get exported;
- `after_step(progress)`: called after each optimiser step, for momentum teachers;
- `embed(batch)`, `forward(batch, others)` and a result named `joint`: for a loss, or a part of one, that
  relates samples to each other; see `contrastive.py`.

To add one: write `training/pretext/<name>.py` and add a line to `TASKS`. What they share: `batch` (the input), `masking` (hide
tokens), `distillation` (a momentum teacher), `segmenting` (an encoder with a head).
"""

from training.pretext.contrastive import Contrastive
from training.pretext.fusion import Fusion
from training.pretext.itd import ImageTokens
from training.pretext.itd_mpd import ImageAndPatchTokens
from training.pretext.lesions import Lesions
from training.pretext.mae import MaskedAutoencoder
from training.pretext.mim import MaskedImageModelling
from training.pretext.rotate_inpaint_contrast import RotateInpaintContrast
from training.pretext.smit import Smit
from training.pretext.together import Together

TASKS = {
    "mim": MaskedImageModelling,
    "contrastive": Contrastive,
    "itd": ImageTokens,
    "itd_mpd": ImageAndPatchTokens,
    "smit": Smit,
    "mae": MaskedAutoencoder,
    "rotate_inpaint_contrast": RotateInpaintContrast,
    "lesions": Lesions,
    "fusion": Fusion,
    "together": Together,
}
