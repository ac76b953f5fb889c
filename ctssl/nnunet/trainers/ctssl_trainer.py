"""Trainers for `nnUNetv2_train -tr`; nnU-Net imports this file from the folder in `nnUNet_extTrainer`."""

from __future__ import annotations

from os.path import join
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor
from torch._dynamo import OptimizedModule

from ctssl.finetuning.loop import rate
from ctssl.nnunet.network import Network

SPREAD_HU = 250.0  # nnU-Net's intensity changes expect values with a standard deviation of about one


class Rescale(ImageOnlyTransform):
    """`image * factor + offset`."""

    def __init__(self, factor: float, offset: float) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return img * self.factor + self.offset


class Schedule:
    """Learning rate of each group: linear warm-up, then a half cosine; the encoder starts later."""

    def __init__(self, optimizer: torch.optim.Optimizer, epochs: int, alone: int) -> None:
        self.optimizer, self.epochs, self.alone = optimizer, epochs, alone

    def step(self, epoch: int) -> None:
        for group in self.optimizer.param_groups:
            first = self.alone if group["encoder"] else 0
            group["lr"] = group["peak"] * rate(epoch - first, self.epochs - first, 0.05)


class CtsslTrainer(nnUNetTrainer):
    """Train a pretrained encoder with a head, as the plans of `ctssl nnunet` say.

    The head is trained alone first, then both, the encoder at a lower rate. At the end the model is also written as a
    folder for `ctssl.load_segmenter`, `fold_N/ctssl`.
    """

    pretrained = True

    def __init__(  # nnU-Net reads the names of these arguments
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        settings = self.configuration_manager.configuration.get("ctssl")
        if settings is None:
            raise ValueError(
                "these plans are not of ctssl; write them with `ctssl nnunet DATASET`, and add -p ctsslPlans"
            )
        self.settings = settings
        self.num_epochs = settings["epochs"]
        self.num_iterations_per_epoch = settings["iterations"]
        self.num_val_iterations_per_epoch = max(1, settings["iterations"] // 5)
        self.initial_lr, self.weight_decay = settings["lr"], settings["weight_decay"]
        self.enable_deep_supervision = False

    @property
    def bare(self) -> Network:
        """Return the network without what nnU-Net wraps around it."""
        network: Any = self.network.module if self.is_ddp else self.network
        bare: Any = network._orig_mod if isinstance(network, OptimizedModule) else network
        return bare

    def initialize(self) -> None:
        super().initialize()
        if self.pretrained:
            self.bare.load_pretrained(self.settings["model"], self.settings["sha256"])
            self.print_to_log_file(f"Encoder of {self.settings['model']} loaded.")

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: the heads have one output."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Schedule]:
        lr, encoder_lr = self.settings["lr"], self.settings["encoder_lr"]
        net = self.bare.segmenter
        groups = [
            {"params": list(net.head.parameters()), "peak": lr, "encoder": False},
            {
                "params": list(net.encoder.parameters()),
                "peak": encoder_lr if self.pretrained else lr,
                "encoder": True,
            },
        ]
        alone = round(self.settings["warmup_head"] * self.num_epochs) if self.pretrained else 0
        optimizer = torch.optim.AdamW(groups, lr, weight_decay=self.weight_decay)
        return optimizer, Schedule(optimizer, self.num_epochs, alone)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.bare.segmenter.encoder.requires_grad_(rates[1] > 0)
        self.print_to_log_file(f"Learning rates: head {rates[0]:.2g}, encoder {rates[1]:.2g}")

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> ComposeTransforms:
        """Return nnU-Net's transforms, on values as it expects them; the network itself takes HU."""
        low = self.bare.window_hu[0]
        usual = nnUNetTrainer.get_training_transforms(*args, **kwargs)
        return ComposeTransforms(
            [Rescale(1 / SPREAD_HU, -low / SPREAD_HU), *usual.transforms, Rescale(SPREAD_HU, low)]
        )

    def on_train_end(self) -> None:
        super().on_train_end()
        if self.local_rank == 0:
            self.write_model()

    def write_model(self) -> None:
        """Write `fold_N/ctssl` for `ctssl.load_segmenter`. Regions, which it does not know, are told and left out."""
        if self.label_manager.has_regions:
            self.print_to_log_file("No folder for ctssl: it does not know labels that are regions.")
            return
        net: Any = self.bare.segmenter
        names = {value: name for name, value in self.label_manager.label_dict.items() if name != "ignore"}
        net.labels = {value: names[value] for value in self.label_manager.foreground_labels}
        folder = net.save_pretrained(join(self.output_folder, "ctssl"), overwrite=True)
        self.print_to_log_file(f"{folder}: a folder for `ctssl segment --model` and ctssl.load_segmenter")


class CtsslTrainerScratch(CtsslTrainer):
    """The same network and plans without pretraining: initial weights, one learning rate."""

    pretrained = False
