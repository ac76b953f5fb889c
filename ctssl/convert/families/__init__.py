"""The families of checkpoints that ctssl can import, and their common interface.

A family is a module with

- `looks(state)`: whether these keys, without their prefix, are a checkpoint of this family;
- `translate(state, options)`: a `Translation` with a `Move` for every key. Raises `ValueError`, starting with
  "not representable", for what our encoders cannot compute exactly;
- `OPTIONS`: the fields of `Options` that it needs; `TITLE`: one line of description;
- `WINDOW_HU`, `SPACING_MM`: preprocessing of the published models; None where there is no standard.

To add one: write `ctssl/convert/families/<name>.py` and add a line to `FAMILIES`. What they
share: `moves` (the records of a translation), `swins` and `vits` (what Swins, ViTs have in common).
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
