"""Seeded damage: bytes, JSON trees, CSV tables, NIfTI headers and DICOM elements as no honest program writes them."""

import gzip
import io
import json
import struct
from typing import Any

import numpy as np

NUMBERS = [
    0,
    -1,
    1,
    2,
    7,
    255,
    256,
    32767,
    65535,
    10**6,
    10**9,
    2**31,
    2**63,
    10**30,
    -(10**9),
    0.5,
    1e-30,
    1e30,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
]
TEXTS = [
    "",
    ".",
    "..",
    "../../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "\x1b[31m",
    "nan",
    "-1",
    "²",
    "é" * 80,
    "x" * 5000,
    "CON",
    "None",
    "[]",
    "images/case0.nii.gz",
    "tumour",
    "\ud800",
    "=1+1",
    "a,b",
    '"',
    "\n",
]


def one_of(rng: np.random.Generator, things: list | tuple) -> Any:
    return things[int(rng.integers(len(things)))]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes: flipped bits, runs of one byte, pieces cut out, doubled, moved or put in, the end cut off."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        if not found:
            break
        at, length = int(rng.integers(len(found))), int(rng.integers(1, 17))
        how = rng.integers(7)
        if how == 0:
            found[at] ^= 1 << int(rng.integers(8))
        elif how == 1:
            found[at : at + length] = bytes([int(one_of(rng, (0, 255, 127, 32)))]) * len(
                found[at : at + length]
            )
        elif how == 2:
            del found[at : at + length]
        elif how == 3:
            found[at:at] = found[at : at + length]
        elif how == 4:
            found[at:at] = rng.bytes(length)
        elif how == 5:
            found[at : at + length] = rng.bytes(len(found[at : at + length]))
        else:
            del found[at:]
    return bytes(found)


def nasty(rng: np.random.Generator) -> Any:
    """A value that is seldom the right one."""
    how = rng.integers(7)
    if how < 3:
        return one_of(rng, NUMBERS)
    if how < 5:
        return one_of(rng, TEXTS)
    if how == 5:
        return one_of(
            rng,
            (None, True, False, [], {}, [[]], {"": 0}, [1, "a"], {"1": {"2": []}}, [10**6] * 4, [2] * 100),
        )
    deep: Any = 0
    for _ in range(int(rng.integers(2, 200))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


def tree(value: Any, rng: np.random.Generator) -> Any:
    """A copy of a JSON value with one place of it changed, left out or doubled."""
    value = json.loads(json.dumps(value))
    place, way = value, []
    while isinstance(place, (dict, list)) and place and (not way or rng.random() < 0.7):
        key = one_of(rng, list(place) if isinstance(place, dict) else range(len(place)))  # type: ignore[arg-type]
        way.append((place, key))
        place = place[key]
    if not way:
        return nasty(rng)
    parent, key = way[-1]
    how = rng.integers(5)
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, dict):
        parent[str(one_of(rng, TEXTS))] = nasty(rng)
    elif how == 2 and isinstance(parent, list):
        parent.extend(parent[:1] * int(rng.integers(1, 50)))
    else:
        parent[key] = nasty(rng)
    return value


def json_text(value: Any, rng: np.random.Generator) -> bytes:
    """A JSON file: its tree changed, or its bytes, or brackets without end, or another encoding."""
    how = rng.integers(10)
    if how < 7:
        return json.dumps(tree(value, rng)).encode()
    text = json.dumps(value)
    if how == 7:
        return damaged(text.encode(), rng)
    return one_of(
        rng,
        (
            b"[" * 200_000,
            b'{"a":' * 100_000,
            text.encode("utf-16"),
            b"",
            b"null",
            b"9" * 5000,
            text.encode()[: len(text) // 2],
            b"\xff\xfe" + text.encode(),
            text.encode() * 2,
        ),
    )


def table_text(text: str, rng: np.random.Generator) -> bytes:
    """A CSV: a cell, a column or a row changed, or the bytes."""
    rows = [line.split(",") for line in text.splitlines()]
    how = rng.integers(9)
    if how < 5:
        row = one_of(rng, rows)
        row[int(rng.integers(len(row)))] = str(one_of(rng, TEXTS))
    elif how == 5:
        rows[0][int(rng.integers(len(rows[0])))] = str(one_of(rng, rows[0]))
    elif how == 6:
        row = one_of(rng, rows)
        one_of(
            rng,
            (row.append, lambda v: row.pop(), lambda v: rows.append(list(row)), lambda v: row.insert(0, v)),
        )("x")
    elif how == 7:
        return damaged(text.encode(), rng)
    else:
        row = one_of(rng, rows)
        row[int(rng.integers(len(row)))] = one_of(rng, ("y" * 200_000, '"' + "z\n" * 90_000, "a\0b"))
    joined = "\n".join(",".join(row) for row in rows) + "\n"
    coding = one_of(rng, ("utf-8",) * 8 + ("utf-16", "utf-8-sig"))
    return joined.encode(coding, "surrogatepass")


def nifti(data: bytes, rng: np.random.Generator) -> bytes:
    """An uncompressed NIfTI-1 file with one to three fields of its header changed; sometimes the bytes, or the byte order."""
    import nibabel

    if rng.random() < 0.2:
        return damaged(data[:352], rng) + data[352:] if rng.random() < 0.7 else damaged(data, rng)
    header = np.frombuffer(data[:348], nibabel.Nifti1Header.template_dtype).copy()
    fields = (
        "dim",
        "dim",
        "dim",
        "pixdim",
        "pixdim",
        "datatype",
        "bitpix",
        "vox_offset",
        "scl_slope",
        "scl_inter",
        "qform_code",
        "sform_code",
        "quatern_b",
        "quatern_c",
        "qoffset_x",
        "srow_x",
        "srow_y",
        "srow_z",
        "magic",
        "sizeof_hdr",
        "intent_code",
        "xyzt_units",
        "glmin",
    )
    for _ in range(rng.integers(1, 4)):
        field = header[one_of(rng, fields)]
        if field.dtype.kind == "S":
            header["magic"] = one_of(rng, (b"ni1", b"n+2", b"", b"n+1x"))
            continue
        value = one_of(rng, NUMBERS)
        if field.dtype.kind in "iu":
            info = np.iinfo(field.dtype)
            value = (
                int(np.clip(np.nan_to_num(float(value)), info.min, info.max))
                if rng.random() < 0.7
                else int(rng.integers(info.min, info.max))
            )
        with np.errstate(all="ignore"):
            field[(0, *[int(rng.integers(n)) for n in field.shape[1:]])] = value
    if rng.random() < 0.05:
        header = header.byteswap()
    return header.tobytes() + data[348:]


def packed(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def zeros_packed(gigabytes: float) -> bytes:
    """A gzip file of a few megabytes that unpacks to so many gigabytes."""
    return packed(bytes(64 << 20)) * int(gigabytes * 16)


def safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    """A safetensors file with a changed length, header or body."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    how = rng.integers(8)
    if how == 0:
        wrong = one_of(rng, (0, 1, length - 1, length + 1, len(data), 10**8, 10**9, 2**63, 2**64 - 1))
        return struct.pack("<Q", wrong) + header + body
    if how == 1:
        return damaged(data, rng)
    if how == 2:
        return data[: int(rng.integers(len(data)))]
    found = json.loads(header)
    if how < 6:
        entry = found[one_of(rng, sorted(k for k in found if k != "__metadata__"))]
        key = one_of(rng, ("shape", "data_offsets", "dtype"))
        choices = {
            "shape": [10**9, 0, -1, 2**62, 3],
            "data_offsets": [0, -1, 10**12, len(body), 8],
            "dtype": ["F16", "I64", "F64", "BOOL", "F8_E4M3", "F4", "C64", "X", None],
        }
        if key == "dtype" or not entry[key]:
            entry["dtype"] = one_of(rng, choices["dtype"])
        else:
            entry[key][int(rng.integers(len(entry[key])))] = one_of(rng, choices[key])
    else:
        found = tree(found, rng)
    text = json.dumps(found).encode()
    return struct.pack("<Q", len(text)) + text + body


TAGS = (
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "RescaleSlope",
    "RescaleIntercept",
    "SeriesInstanceUID",
    "Modality",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "PixelData",
    "SOPInstanceUID",
    "PatientID",
)
VALUES = {
    "US": [0, 1, 5, 65535, 40000],
    "DS": [
        "nan",
        "inf",
        "-inf",
        "1e300",
        "0",
        "-1",
        "",
        "abc",
        "1\\2",
        "nan\\0\\0",
        "1e30\\1e30\\1e30",
        "0\\0",
        "-1\\1",
        "1\\0\\0\\1\\0\\0",
        "0\\0\\0\\0\\0\\0",
        "nan\\0\\0\\0\\1\\0",
    ],
    "IS": ["0", "-1", "100000", "x", "2"],
    "LO": ["", "abc", "../../x", "x" * 70, "\x1b[31m"],
    "FD": [float("nan"), 1e300],
}


def dicom(data: bytes, rng: np.random.Generator) -> bytes:
    """A DICOM file with an element left out, of another type, or absurd; or its bytes changed, or its end cut off."""
    import pydicom
    from pydicom.dataelem import DataElement

    if rng.random() < 0.3:
        return damaged(data, rng)
    whole = dataset = pydicom.dcmread(io.BytesIO(data))
    while rng.random() < 0.8 and (inner := [e for e in dataset if e.VR == "SQ" and len(e.value)]):
        dataset = one_of(rng, list(one_of(rng, inner).value))
    known = TAGS if dataset is whole else [e.tag for e in dataset]
    tag = one_of(rng, [t for t in known if t in dataset or rng.random() < 0.3] or ["Rows"])
    if rng.random() < 0.35 and tag in dataset:
        del dataset[tag]
    elif tag == "PixelData" and tag in dataset:
        dataset.PixelData = dataset.PixelData[: int(rng.integers(len(dataset.PixelData)))]
    else:
        own = {"Rows": "US", "Columns": "US", "NumberOfFrames": "IS"}.get(str(tag), "DS")
        kind = own if rng.random() < 0.7 else one_of(rng, sorted(VALUES))
        value = one_of(rng, VALUES[kind])
        dataset[tag] = DataElement(tag, kind, value, validation_mode=pydicom.config.IGNORE)
    stream = io.BytesIO()
    try:
        whole.save_as(stream, enforce_file_format=True)
    except Exception:  # pydicom will not write everything
        return damaged(data, rng)
    return stream.getvalue()
