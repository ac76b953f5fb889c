"""Self-supervised 3D encoders for CT, and segmentation of tumours with few labels."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {"Volume": "volume", "read": "volume"}
__all__ = ["Volume", "__version__", "read"]  # noqa: RUF022


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'ctssl' has no {name!r}; it has {', '.join(sorted(__all__))}")
    return getattr(import_module(f"ctssl.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from ctssl.volume import Volume as Volume
    from ctssl.volume import read as read
