"""The paper's data, from DICOM to a manifest."""

import pytest

import ctssl
from tests.support.dicom import write_rtstruct, write_series

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'ctssl[dicom]'")


def test_the_papers_data_become_a_manifest(tmp_path):
    """Synthetic series of the structure that TCIA gives out: one patient with RTSTRUCT, one without, one broken."""
    import csv

    from training.data import manifest, nsclc

    root = tmp_path / "tcia"
    for i in (1, 2):
        write_series(root / f"LUNG1-00{i}" / "study" / "ct", uid=f"1.2.{i}")
        for file in (root / f"LUNG1-00{i}" / "study" / "ct").iterdir():
            image = pydicom.dcmread(file)
            image.PatientID, image.Manufacturer, image.ConvolutionKernel = f"LUNG1-00{i}", "SIEMENS", "B30f"
            image.ContrastBolusAgent, image.SliceThickness = "Ultravist", 3
            image.save_as(file, enforce_file_format=True)
    corner = [
        (-10 + 0.4, -20 + 0.7, 35.0),
        (-10 + 1.1, -20 + 0.7, 35.0),
        (-10 + 1.1, -20 + 2.5, 35.0),
        (-10 + 0.4, -20 + 2.5, 35.0),
    ]
    write_rtstruct(
        root / "LUNG1-001" / "study" / "rt" / "1.dcm",
        {"GTV-1": [corner], "Lung": [corner]},
        series="1.2.1",
        patient="LUNG1-001",
    )
    nsclc.main([str(root), "--out", str(tmp_path / "out")])
    with open(tmp_path / "out" / "manifest.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["patient"], row["kernel_bin"], row["contrast"], row["thickness_mm"]) == (
        "LUNG1-001",
        "smooth",
        "yes",
        "3.0",
    )
    mask = ctssl.read(tmp_path / "out" / row["label"]).array
    assert mask.sum() == 2 * 3 and mask[1:3, 1:4, 2].all()
    assert manifest.find_scans(tmp_path / "out" / "manifest.csv")[0].patient == "LUNG1-001"


def test_kernels_fall_into_the_papers_bins():
    from training.data.nsclc import kernel_bin

    cases = {
        ("GE MEDICAL SYSTEMS", "STANDARD"): "smooth",
        ("GE MEDICAL SYSTEMS", "BONEPLUS"): "medium",
        ("GE MEDICAL SYSTEMS", "LUNG"): "sharp",
        ("SIEMENS", "B30f"): "smooth",
        ("SIEMENS", "B40f"): "medium",
        ("SIEMENS", "B45f"): "medium",
        ("SIEMENS", "B60s"): "sharp",
        ("SIEMENS", "I70f"): "sharp",
        ("Philips", "C"): "",
    }
    assert {case: kernel_bin(*case) for case in cases} == cases
