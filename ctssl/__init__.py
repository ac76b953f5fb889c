"""Self-supervised 3D encoders for CT, and segmentation of tumours with few labels."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_HOMES = {
    "Channels": "volume.channels",
    "Ensemble": "heads.ensemble",
    "Evaluation": "evaluation.report",
    "Report": "finetuning.report",
    "Robustness": "robustness.report",
    "Segmenter": "heads.segmenter",
    "Settings": "finetuning.settings",
    "Swin": "encoders.swin",
    "ViT": "encoders.vit",
    "Volume": "volume.volume",
    "download": "hub.downloads",
    "evaluate": "evaluation.report",
    "finetune": "finetuning.run",
    "import_checkpoint": "convert.importing",
    "info": "zoo",
    "list_models": "zoo",
    "load": "loading",
    "load_segmenter": "loading",
    "measure_curve": "finetuning.curve",
    "measure_robustness": "robustness.run",
    "pair": "zoo",
    "read": "volume.volume",
    "segmenter": "loading",
    "shift": "shifts",
    "to_monai": "convert.exporting",
    "to_onnx": "convert.exporting",
    "to_program": "convert.exporting",
}  # names are imported when they are first used: `import ctssl` is instant


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'ctssl' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")
    return getattr(import_module(f"ctssl.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])


if TYPE_CHECKING:
    from ctssl.convert.exporting import to_monai as to_monai
    from ctssl.convert.exporting import to_onnx as to_onnx
    from ctssl.convert.exporting import to_program as to_program
    from ctssl.convert.importing import import_checkpoint as import_checkpoint
    from ctssl.encoders.swin import Swin as Swin
    from ctssl.encoders.vit import ViT as ViT
    from ctssl.evaluation.report import Evaluation as Evaluation
    from ctssl.evaluation.report import evaluate as evaluate
    from ctssl.finetuning.curve import measure_curve as measure_curve
    from ctssl.finetuning.report import Report as Report
    from ctssl.finetuning.run import finetune as finetune
    from ctssl.finetuning.settings import Settings as Settings
    from ctssl.heads.ensemble import Ensemble as Ensemble
    from ctssl.heads.segmenter import Segmenter as Segmenter
    from ctssl.hub.downloads import download as download
    from ctssl.loading import load as load
    from ctssl.loading import load_segmenter as load_segmenter
    from ctssl.loading import segmenter as segmenter
    from ctssl.robustness.report import Robustness as Robustness
    from ctssl.robustness.run import measure_robustness as measure_robustness
    from ctssl.shifts import shift as shift
    from ctssl.volume.channels import Channels as Channels
    from ctssl.volume.volume import Volume as Volume
    from ctssl.volume.volume import read as read
    from ctssl.zoo import info as info
    from ctssl.zoo import list_models as list_models
    from ctssl.zoo import pair as pair
