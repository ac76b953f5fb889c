"""Families of checkpoints that ctssl can import, and what they have in common.

A family is a module with

- `looks(state)`: whether these keys, without what stands before them, are a checkpoint of this family;
- `translate(state, options)`: a `Translation`, in which every key has its `Move`. Raises `ValueError`,
  starting with "not representable", for what our encoders cannot compute exactly;
- `OPTIONS`: the fields of `Options` that it needs to know, `TITLE`: one line for people;
- `WINDOW_HU`, `SPACING_MM`: how scans were prepared for the published models; None where there is no such
  habit.

To add one: write `ctssl/families/<name>.py` and add a line to `FAMILIES`.
"""

from typing import Any

from ctssl.convert.families import monai_swinunetr, monai_swinvit, monai_vit, smit, timm_vit

FAMILIES: dict[str, Any] = {
    "smit": smit,
    "monai-swinunetr": monai_swinunetr,
    "monai-swinvit": monai_swinvit,
    "monai-vit": monai_vit,
    "timm-vit": timm_vit,
}
