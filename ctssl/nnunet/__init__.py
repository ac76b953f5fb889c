"""ctssl inside nnU-Net 2.8 or later: plans, the network that they name, and a trainer.

`ctssl nnunet` writes the plans (`plans`); nnU-Net builds `Network` (`network`) from them and trains it with
`trainers/ctssl_trainer.py`, which it finds through the environment variable `nnUNet_extTrainer`. Only that file needs
nnU-Net. Nothing else in ctssl imports from here.
"""

from pathlib import Path

TRAINERS = Path(__file__).parent / "trainers"
"""The folder that `nnUNet_extTrainer` must name."""
