"""Images as other libraries hold them: nibabel, SimpleITK, MONAI's MetaTensor, TorchIO. There and back.

Nothing is imported that the user has not imported: an image brings its library with it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # between RAS+ and the axes of ITK and DICOM
ITK_FILES = (".nrrd", ".nhdr", ".mha", ".mhd")
HEADER = 1 << 20  # bytes in which a header names its file


class Parts(NamedTuple):
    """What a `Volume` is made of: array `(X, Y, Z)`, 4x4 affine to RAS+ mm, name, NIfTI header or None."""

    array: np.ndarray
    affine: np.ndarray
    name: str
    header: Any = None


def kind_of(source: Any) -> str:
    """Return "nibabel", "simpleitk", "monai", "torchio" or "tensor" (without geometry); "" for anything else.

    >>> kind_of("scan.nii.gz")
    ''
    """
    families = {c.__module__.partition(".")[0].lower() for c in type(source).__mro__}
    if all(hasattr(source, name) for name in ("dataobj", "affine", "get_filename")):
        return "nibabel"
    if "simpleitk" in families and hasattr(source, "GetDirection"):
        return "simpleitk"
    if "torchio" in families:
        return "torchio"
    if "torch" in families:
        return "monai" if any(c.__name__ == "MetaTensor" for c in type(source).__mro__) else "tensor"
    return ""


def parts_of(source: Any) -> Parts:
    """Return array, affine, name and header of an image of another library.

    Raises `ValueError` for a tensor without geometry, several channels, or a subject without exactly one scan.
    """
    return {
        "nibabel": _from_nibabel,
        "simpleitk": _from_simpleitk,
        "monai": _from_monai,
        "torchio": _from_torchio,
        "tensor": _from_tensor,
    }[kind_of(source)](source)


def like(array: np.ndarray, affine: np.ndarray, source: Any) -> Any:
    """Return an array and its affine as an image of the same kind as `source`.

    Raises `TypeError` if that is no image of another library, `ValueError` for a geometry that it cannot hold.
    """
    kind = kind_of(source)
    makers = {"nibabel": _to_nibabel, "simpleitk": _to_simpleitk, "monai": _to_monai, "torchio": _to_torchio}
    if kind not in makers:
        raise TypeError(
            f"cannot make a {type(source).__name__}; give an image of nibabel, SimpleITK, MONAI (MetaTensor) or TorchIO"
        )
    return makers[kind](array, affine, source)


def read_itk(path: Path) -> Parts:
    """Read a `.nrrd`, `.nhdr`, `.mha` or `.mhd` file.

    Raises `ImportError` without SimpleITK, `ValueError` for a file that it cannot read.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise ImportError(
            f"reading {path.name} needs SimpleITK: pip install SimpleITK, or save the scan as .nii.gz"
        ) from error
    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise ValueError(f"cannot read {path} with SimpleITK; write it again: {str(error)[-200:]}") from error
    return _from_simpleitk(image)._replace(name=path.name)


def files_named_in(header: Path) -> list[Path]:
    """Return the files with the voxels of a `.mhd` or `.nhdr` file: the one that it names; where it lists several, all files
    beside it. None for any other file."""
    if header.suffix.lower() not in (".mhd", ".nhdr"):
        return []
    text = header.read_bytes()[:HEADER].decode("latin-1")
    named = re.search(r"^(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", text, re.MULTILINE | re.IGNORECASE)
    name = named[1] if named else ""
    if name.upper() == "LOCAL":
        return []
    if name and (header.parent / name).is_file():
        return [header.parent / name]
    return sorted(file for file in header.parent.iterdir() if file.is_file() and file != header)


def _from_nibabel(image: Any) -> Parts:
    import nibabel

    header = image.header if isinstance(image.header, nibabel.Nifti1Header) else None
    name = Path(image.get_filename() or "image").name
    return Parts(np.asanyarray(image.dataobj), np.asarray(image.affine, float), name, header)


def _from_simpleitk(image: Any) -> Parts:
    if image.GetPixelIDTypeAsString().startswith("label"):  # asked for its components, it ends the process
        raise ValueError(
            "the SimpleITK image is a label map; give SimpleITK.Cast(image, SimpleITK.sitkUInt8), which has voxels"
        )
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(
            f"the SimpleITK image has {image.GetDimension()} dimensions and {image.GetNumberOfComponentsPerPixel()} "
            "components; one 3D scan is needed"
        )
    array = sys.modules["SimpleITK"].GetArrayFromImage(image).transpose(2, 1, 0)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Parts(array, LPS @ affine, "image")


def _from_monai(tensor: Any) -> Parts:
    name = Path(str(_first(tensor.meta.get("filename_or_obj")) or "image")).name
    affine = np.asarray(tensor.affine, float)
    if affine.shape == (1, 4, 4):  # of a batch of one, as MONAI's loader collates it
        affine = affine[0]
    if (
        str(_first(tensor.meta.get("space")) or "").upper().endswith("LPS")
    ):  # loaded with affine_lps_to_ras=False
        affine = LPS @ affine
    return Parts(_one_channel(tensor, "MetaTensor"), affine, name)


def _first(value: Any) -> Any:
    """Return what a batch of one says of its image."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def plain(values: Any) -> np.ndarray:
    """Return an array, or a tensor of any kind and place, as an array."""
    return np.asarray(values.detach().cpu().float() if hasattr(values, "detach") else values)


def _from_torchio(source: Any) -> Parts:
    if hasattr(source, "get_images_dict"):  # a Subject
        scans = source.get_images_dict(intensity_only=True)
        if len(scans) != 1:
            raise ValueError(f"the subject has {len(scans)} scans ({', '.join(scans)}); give one of them")
        (source,) = scans.values()
    name = Path(str(source.path or "image")).name
    return Parts(_one_channel(source.data, "TorchIO image"), np.asarray(source.affine, float), name)


def _from_tensor(tensor: Any) -> Parts:
    raise ValueError("a tensor alone has no spacing; give (array in HU, affine), or a MetaTensor")


def _one_channel(tensor: Any, what: str) -> np.ndarray:
    """Return `(X, Y, Z)` of a tensor with one channel, and perhaps a batch of one, in front."""
    shape = tuple(tensor.shape)
    if any(size != 1 for size in shape[:-3]):
        raise ValueError(f"the {what} has shape {shape}; one 3D scan with one channel is needed")
    return plain(tensor).reshape(shape[-3:])


def _to_nibabel(array: np.ndarray, affine: np.ndarray, source: Any) -> Any:
    import nibabel

    return nibabel.Nifti1Image(array, affine)


def _to_simpleitk(array: np.ndarray, affine: np.ndarray, source: Any) -> Any:
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    directions = lps[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-4:
        raise ValueError("a SimpleITK image cannot be sheared; resample the scan, or save it as .nii.gz")
    image = sys.modules["SimpleITK"].GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(directions.ravel().tolist())
    return image


def _to_monai(array: np.ndarray, affine: np.ndarray, source: Any) -> Any:
    leading = (1,) * (source.ndim - 3)
    torch = sys.modules["torch"]
    values = torch.from_numpy(np.ascontiguousarray(array)).reshape(*leading, *array.shape)
    own = torch.from_numpy(np.array(affine))
    return type(source)(values, affine=own[None] if source.affine.ndim == 3 else own)


def _to_torchio(array: np.ndarray, affine: np.ndarray, source: Any) -> Any:
    library = sys.modules["torchio"]
    kind = library.LabelMap if np.issubdtype(array.dtype, np.integer) else library.ScalarImage
    values = sys.modules["torch"].from_numpy(np.ascontiguousarray(array))[None]
    return kind(tensor=values, affine=affine)
