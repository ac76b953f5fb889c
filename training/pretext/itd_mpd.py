"""Image and masked patch token self-distillation (ITD and MPD of SMIT; iBOT, arXiv 2111.07832)."""

from torch import Tensor

from training.pretext.batch import Batch
from training.pretext.distillation import DistillingTask


class ImageAndPatchTokens(DistillingTask):
    """Like `ImageTokens`, and each hidden token of the deepest map predicts the teacher's token. Equal
    weights.
    """

    about = "image and masked patch token self-distillation (ITD and MPD of SMIT, arXiv 2205.10342)"

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        _, _, result = self.distil(batch)
        return {"loss": result["image"] + result["patch"], **result}
