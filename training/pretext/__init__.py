"""The pretraining tasks and what they have in common.

A task is an `nn.Module`: `Task(encoder, **args)`; `forward(batch) -> {"loss": scalar, ...numbers to log}` for a batch
`(B, 1, S, S, S)` of crops with values 0..1; optionally `after_step(step, steps)`. It owns every parameter beside the encoder's,
and hides tokens between `encoder.patch_embed` and `encoder.encode`. `task.encoder` is what gets exported.

To add one: write `training/pretext/<name>.py` and add a line to `TASKS`.
"""

from training.pretext.mim import MaskedImageModelling

TASKS = {"mim": MaskedImageModelling}
