"""What models exist. Standard library only, so that asking is instant."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocess:
    """How a scan becomes an input: RAS+ axes, isotropic spacing in mm, HU window mapped to 0..1."""

    spacing_mm: float = 2.0
    window_hu: tuple[float, float] = (-500.0, 500.0)
