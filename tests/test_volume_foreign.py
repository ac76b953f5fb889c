"""Images of other libraries, read with the geometry that these libraries give them, and given back as their kind."""

import nibabel
import numpy as np
import pytest
import torch
from monai.data.dataloader import DataLoader
from monai.data.dataset import Dataset
from monai.data.meta_tensor import MetaTensor
from monai.transforms.io.array import LoadImage
from monai.utils.enums import SpaceKeys

import ctssl
from ctssl.inference.folder import scan_sha256
from ctssl.volume.volume import Volume, files_of
from ctssl.zoo import Preprocess
from training.data.cache import prepare_corpus
from training.data.manifest import Scan

sitk = pytest.importorskip("SimpleITK", reason="needs SimpleITK (pip install -e '.[dev]')")
tio = pytest.importorskip("torchio", reason="needs torchio (pip install -e '.[dev]')")


@pytest.fixture
def scan(tmp_path) -> Volume:
    """A scan whose axes, spacings and origin differ all."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * (0.8, 1.5, 3.0)
    affine[:3, 3] = (12.0, -40.0, 7.5)
    array = rng.normal(0, 300, (9, 11, 13)).astype(np.float32)
    path = Volume(array, affine).save(tmp_path / "scan.nii.gz")
    return ctssl.read(path)


def images(path) -> dict:
    """The file as each library reads it itself."""
    return {
        "nibabel": nibabel.load(path),
        "simpleitk": sitk.ReadImage(str(path)),
        "monai": LoadImage(image_only=True, ensure_channel_first=True)(path),
        "torchio": tio.ScalarImage(path),
    }


@pytest.mark.parametrize("kind", ["nibabel", "simpleitk", "monai", "torchio"])
def test_there_and_back(scan, tmp_path, kind):
    image = images(tmp_path / "scan.nii.gz")[kind]
    found = ctssl.read(image)
    np.testing.assert_allclose(found.array, scan.array, atol=1e-3)
    np.testing.assert_allclose(found.affine, scan.affine, atol=1e-4)
    mask = Volume((scan.array > 0).astype(np.uint8), scan.affine)
    back = mask.like(image)
    assert isinstance(back, tio.LabelMap if kind == "torchio" else type(image))
    again = ctssl.read(back)
    np.testing.assert_array_equal(again.array, mask.array)
    np.testing.assert_allclose(again.affine, scan.affine, atol=1e-4)


def test_a_batch_of_one_keeps_its_shape(scan):
    tensor = MetaTensor(torch.from_numpy(scan.array)[None, None], affine=torch.from_numpy(scan.affine))
    assert ctssl.read(tensor).shape == scan.shape and scan.like(tensor).shape == (1, 1, *scan.shape)


def test_a_metatensor_in_lps_lies_where_it_says(scan):
    """As a loader with `affine_lps_to_ras=False` gives it."""
    lps = torch.from_numpy(np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine)
    found = ctssl.read(MetaTensor(torch.from_numpy(scan.array), affine=lps, meta={"space": SpaceKeys.LPS}))
    np.testing.assert_allclose(found.affine, scan.affine, atol=1e-6)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
def test_files_of_itk(scan, tmp_path, ending):
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "scan.nii.gz")), str(tmp_path / f"scan{ending}"))
    found = ctssl.read(tmp_path / f"scan{ending}")
    assert found.name == f"scan{ending}"
    np.testing.assert_allclose(found.array, scan.array, atol=1e-3)
    np.testing.assert_allclose(found.affine, scan.affine, atol=1e-4)
    (tmp_path / "broken.nrrd").write_text("NRRD0004\n")
    with pytest.raises(ValueError, match="cannot read .* with SimpleITK"):
        ctssl.read(tmp_path / "broken.nrrd")


def test_a_subject_with_one_scan_is_that_scan(scan, tmp_path):
    image = tio.ScalarImage(tmp_path / "scan.nii.gz")
    mask = tio.LabelMap(tensor=(image.data > 0).to(torch.uint8), affine=image.affine)
    assert ctssl.read(tio.Subject(ct=image, mask=mask)).shape == scan.shape
    with pytest.raises(ValueError, match=r"2 scans \(ct, pet\)"):
        ctssl.read(tio.Subject(ct=image, pet=image))


def test_what_cannot_be_is_said(scan, tmp_path):
    with pytest.raises(ValueError, match="a tensor alone has no spacing"):
        ctssl.read(torch.rand(4, 4, 4))
    with pytest.raises(ValueError, match="one channel is needed"):
        ctssl.read(MetaTensor(torch.rand(2, 4, 4, 4)))
    with pytest.raises(TypeError, match="cannot make a str"):
        scan.like("scan.nii.gz")
    sheared = scan.affine.copy()
    sheared[0, 2] += 2.0
    with pytest.raises(ValueError, match="cannot be sheared"):
        Volume(scan.array, sheared).like(sitk.ReadImage(str(tmp_path / "scan.nii.gz")))


@pytest.mark.slow
def test_every_function_takes_them(labelled, tiny_segmenter):
    path = labelled / "images" / "case0.nii.gz"
    net = ctssl.load_segmenter(tiny_segmenter)
    expected = net.segment(path)
    for image in images(path).values():
        mask = net.segment(image)
        assert np.mean(mask.array == expected.array) > 0.999
        np.testing.assert_allclose(ctssl.read(mask.like(image)).affine, expected.affine, atol=1e-3)
        assert torch.allclose(net.encoder.embed(image), net.encoder.embed(path), atol=1e-3)
        assert ctssl.shift(image, "dose").shape == expected.shape


def test_a_batch_of_monais_loader_is_one_scan(scan, tmp_path):
    load = LoadImage(image_only=True, ensure_channel_first=True)
    batch = next(iter(DataLoader(Dataset([tmp_path / "scan.nii.gz"], load), batch_size=1)))
    found = ctssl.read(batch)
    np.testing.assert_allclose(found.affine, scan.affine, atol=1e-4)
    np.testing.assert_allclose(found.array, scan.array, atol=1e-3)
    back = scan.like(batch)
    assert back.shape == (1, 1, *scan.shape) and back.affine.shape == batch.affine.shape


def test_tensors_of_any_kind_with_an_affine_are_scans(scan):
    affine = torch.from_numpy(scan.affine)
    for tensor in (torch.from_numpy(scan.array).requires_grad_(), torch.from_numpy(scan.array).bfloat16()):
        found = ctssl.read((tensor, affine))
        np.testing.assert_allclose(found.array, scan.array, rtol=0.01, atol=1)
        np.testing.assert_array_equal(found.affine, scan.affine)
    assert ctssl.read((tensor, scan.affine.tolist())).shape == scan.shape


def test_a_mask_of_a_scan_without_codes_lies_where_other_programs_put_the_scan(scan, tmp_path):
    image = nibabel.Nifti1Image(scan.array, None)
    image.header.set_zooms((0.8, 1.5, 3.0))
    nibabel.save(image, tmp_path / "bare.nii.gz")
    bare = ctssl.read(tmp_path / "bare.nii.gz")
    bare.on_grid((scan.array > 0).astype(np.uint8)).save(tmp_path / "mask.nii.gz")
    one, two = (sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("bare", "mask"))
    assert (one.GetOrigin(), one.GetDirection(), one.GetSpacing()) == (
        two.GetOrigin(),
        two.GetDirection(),
        two.GetSpacing(),
    )


def scan_at(path, hu):
    array = np.full((12, 12, 12), -1000, np.int16)
    array[3:9, 3:9, 3:9] = hu
    array[0, 0, 0] = 400
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 2.0, 2.0))
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr", ".mha", ".nrrd"])
def test_two_scans_of_one_header_are_two_scans(tmp_path, suffix):
    one, two = (scan_at(tmp_path / name / f"ct{suffix}", hu) for name, hu in (("a", -600), ("b", 100)))
    assert len(files_of(one)) == (2 if suffix in (".mhd", ".nhdr") else 1) and files_of(one)[0] == one
    assert scan_sha256(one) != scan_sha256(two)
    corpus = prepare_corpus([Scan(one, "a"), Scan(two, "b")], Preprocess(2.0), tmp_path / "cache")
    assert not np.array_equal(corpus.scan(0), corpus.scan(1))
    scan_at(one, 100)
    assert scan_sha256(one) == scan_sha256(two)


def test_a_header_that_lists_slices_counts_all_files_beside_it(tmp_path):
    path = scan_at(tmp_path / "a" / "ct.mhd", 0)
    text = path.read_text().replace("ElementDataFile = ct.raw", "ElementDataFile = slice%03d.raw 1 12 1")
    path.write_text(text)
    assert files_of(path) == [path, path.with_name("ct.raw")]


def test_a_slice_names_its_series_and_a_folder_what_lies_below_it(tmp_path):
    from tests.support.dicom import write_series

    folder = tmp_path / "study" / "series"
    write_series(folder, edit=lambda k, image: setattr(image, "RescaleIntercept", -1500))
    slices = files_of(folder)
    before = [scan_sha256(path) for path in (slices[0], folder, folder.parent)]
    prepared = prepare_corpus([Scan(folder.parent, "a")], Preprocess(2.0), tmp_path / "cache").voxels
    write_series(folder, edit=lambda k, image: setattr(image, "RescaleIntercept", -1500 + 40 * (k == 2)))
    assert files_of(folder) == files_of(slices[0]) == slices == files_of(folder.parent)
    assert all(
        old != scan_sha256(path) for old, path in zip(before, (slices[0], folder, folder.parent), strict=True)
    )
    again = prepare_corpus([Scan(folder.parent, "a")], Preprocess(2.0), tmp_path / "cache").voxels
    assert again != prepared


def test_a_label_map_is_refused_before_it_ends_the_process():
    label = sitk.Cast(sitk.GetImageFromArray(np.ones((4, 4, 4), np.uint8)), sitk.sitkLabelUInt8)
    with pytest.raises(ValueError, match="is a label map; give SimpleITK.Cast"):
        ctssl.read(label)
