"""Image token self-distillation: predict from a masked view what a momentum teacher predicts from the other
view (ITD of SMIT; DINO).
"""

from torch import Tensor

from training.pretext.batch import Batch
from training.pretext.distillation import DistillingTask


class ImageTokens(DistillingTask):
    """The image token is the mean of the deepest map (Swin has no class token). Arguments: see
    `DistillingTask`.
    """

    about = "image token self-distillation (ITD of SMIT, arXiv 2205.10342; DINO, arXiv 2104.14294)"
    patch = False

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        _, _, result = self.distil(batch)
        return {"loss": result["image"], **result}
