"""Is the kernel shift right? Real pairs: one acquisition, reconstructed with a smooth and with a sharp
kernel.

`python -m training.experiments.shifts_proof` (half a minute) reads `paired_kernels` of the data folder and
writes `results/shifts_proof.json`, `.md` and `.png`; `--show` only prints. Two patients, Philips B/L and
Siemens B40f/B70f: they describe, they prove no p-value.

The shift has two numbers, how much and with which power of the frequency. Ways to choose them, with more and
more of this patient:
- other patient: both fitted on the other patient, so on another maker's pair of kernels;
- severity 3: the package's default (both pairs were known when the severities were chosen);
- unpaired: the power from the other patient; how much from a comparison of the slices to be shifted with
  slices of the other kernel from the other half of the body, which needs scans of both kernels, but no pair
  of them (`unpaired`);
- severity: the nearest of the five that the package has, chosen on the pair of the other half of the body;
- own: both fitted on the pair of the other half of the body. Each half of the body is judged, with numbers
  from the other half; the table has the means.

Judged by the noise power spectrum (NPS) of homogeneous tissue, as the root mean square of its log ratio to
the real one, and by the response across the skin and the borders of the lungs, as the root mean square
difference of the mean profile in HU. Only frequencies below 0.33/mm count, since the scans are at 1.5 mm.
Their HU are rounded to steps of 4, a floor of 3 HU^2 mm^2 that both kernels share, and they were resampled
from 0.84 and 0.65 mm, which folds noise of the sharp kernel from above 0.33/mm into what is measured: no
filter of the smooth scan can make that part, so a gap in the NPS has to stay.

What came out: the shape carries over from one patient to the other, the amount does not. With the other
patient's shape, and the amount from unpaired slices, spectra and borders of both patients come closer, in
both directions and in each half of the body. So they do at the default severity and at the nearest one (5 for
the Philips pair, 2 or 3 for the Siemens pair), but for the borders of the lungs in the upper half of the
Siemens pair, which stay as they are. The amount of another maker's pair is too little for one patient, and
too much for the other, whose scans it brings apart: L lies further from B than B70f from B40f, which no fit
to the other pair can know. How much a kernel sharpens has to be chosen or measured, not assumed.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage, optimize

import ctssl
from ctssl.files.text import markdown
from ctssl.shifts.kernel import EXPONENT, SEVERITIES, filter_slices, ratio
from ctssl.volume.volume import Volume
from training.data.corpora import data_folder

RESULTS = Path(__file__).parent / "results"
COMMAND = "python -m training.experiments.shifts_proof"
PAIRS = {  # patient: smooth, sharp
    "A0001 (Philips B, L)": ("Lung_Dx-A0001_B", "Lung_Dx-A0001_L"),
    "A0002 (Siemens B40f, B70f)": ("Lung_Dx-A0002_B40f", "Lung_Dx-A0002_B70f"),
}
HIGHEST = 0.33  # cycles/mm
BINS = np.linspace(0.02, HIGHEST, 14)
PATCH = 16  # pixels along each side, 24 mm
REACH_MM = 9.0
LOW = 4  # rings, to 0.115 cycles/mm, by which two spectra are put on one level
HIGHEST_HU = 300.0  # above it bone would rule the spectrum
DEFAULT = 3
WAYS = ("other patient", f"severity {DEFAULT}", "unpaired", "severity", "own")


class Pair(NamedTuple):
    """The same slices, smooth and sharp, on one grid."""

    smooth: Volume
    sharp: Volume

    def halves(self) -> "tuple[Pair, Pair]":
        """Return the lower and the upper half of the body, with no slice in common."""
        middle = self.smooth.shape[2] // 2
        lower, upper = (
            Pair(*(Volume(np.ascontiguousarray(v.array[:, :, part]), v.affine, v.name) for v in self))
            for part in (slice(None, middle), slice(middle, None))
        )
        return lower, upper


def pair(patient: str) -> Pair:
    """Return both reconstructions, cropped to the voxels that they share."""
    smooth, sharp = (
        ctssl.read(data_folder() / "paired_kernels" / f"{name}.nii.gz") for name in PAIRS[patient]
    )
    offset = (np.linalg.inv(smooth.affine) @ sharp.affine)[:3, 3]
    whole = np.round(offset).astype(int)
    if np.abs(offset - whole).max() > 0.01 or not np.allclose(smooth.spacing_mm, sharp.spacing_mm, atol=1e-3):
        raise ValueError(
            f"{patient}: the grids of the two reconstructions are no shifted copies of each other"
        )
    low, high = np.maximum(whole, 0), np.minimum(smooth.shape, np.array(sharp.shape) + whole)
    ours = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    theirs = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, whole, strict=True))
    affine = smooth.affine.copy()
    affine[:3, 3] = (smooth.affine @ [*low, 1])[:3]
    arrays = smooth.array[ours], sharp.array[theirs]
    return Pair(
        *(
            Volume(np.ascontiguousarray(a), affine, v.name)
            for a, v in zip(arrays, (smooth, sharp), strict=True)
        )
    )


def radial(power: np.ndarray, spacing: tuple[float, ...], bins: np.ndarray = BINS) -> np.ndarray:
    """Return the mean of `(x, y)` values in frequency space over rings."""
    f = np.hypot(
        *np.meshgrid(
            *(np.fft.fftfreq(n, s) for n, s in zip(power.shape, spacing, strict=True)), indexing="ij"
        )
    )
    ring = np.digitize(f, bins)
    return np.array([power[ring == i].mean() for i in range(1, len(bins))])


def whole_slices(array: np.ndarray) -> Any:
    """Return axial slices `(x, y, z)` in frequency space, without their mean, under a Hann window."""
    window = np.outer(*(np.hanning(n) for n in array.shape[:2]))[..., None]
    return np.fft.fft2((array - array.mean((0, 1))) * window, axes=(0, 1))


def transfer(two: Pair) -> np.ndarray:
    """Return the ratio of sharp to smooth by ring, from the cross spectrum of whole slices: both hold the same projections."""
    one, other = (whole_slices(v.array) for v in two)
    cross, own = (one.conj() * other).real.sum(2), (np.abs(one) ** 2).sum(2)
    spacing = two.smooth.spacing_mm[:2]
    return radial(cross, spacing) / radial(own, spacing)


def fit(two: Pair) -> tuple[float, float]:
    """Return the strength and exponent of the shift that fit `transfer` best, by least squares of the logarithm."""
    wanted, middle = np.log(transfer(two)), (BINS[1:] + BINS[:-1]) / 2

    def away(x: np.ndarray) -> np.ndarray:
        return np.log(ratio(middle, np.exp(x[0]), exponent=np.exp(x[1]))) - wanted

    strength, exponent = np.exp(optimize.least_squares(away, [0.0, np.log(2.0)]).x)
    return float(strength), float(exponent)


def unpaired(scan: Volume, like: Volume, exponent: float) -> float:
    """Return the strength by which `scan` has to be shifted to be as sharp as `like`, a scan of other anatomy; below 0:
    smoother.

    From the spectra of axial slices, the median over slices. Both without their mean over the lowest rings,
    where kernels hardly differ, so that it does not matter how much anatomy there is. Of what kind it is does
    matter, and the dose: both are of one body here.
    """
    middle = (BINS[1:] + BINS[:-1]) / 2

    def level(values: np.ndarray) -> np.ndarray:
        return values - values[:LOW].mean()

    wanted = level((spectrum(like) - spectrum(scan)) / 2)
    found = optimize.least_squares(lambda s: level(np.log(relative(middle, s[0], exponent))) - wanted, [0.0])
    return float(found.x[0])


def relative(frequency: np.ndarray, strength: float, exponent: float) -> np.ndarray:
    """Return the shift's ratio; for a strength below 0, its inverse."""
    return ratio(frequency, abs(strength), exponent=exponent) ** np.sign(strength)


def spectrum(volume: Volume) -> np.ndarray:
    """Return the log power by ring, the median over axial slices."""
    power = np.abs(whole_slices(np.clip(volume.array, -1024.0, HIGHEST_HU))) ** 2
    return np.median(
        [np.log(radial(plane, volume.spacing_mm[:2])) for plane in np.moveaxis(power, 2, 0)], axis=0
    )


def nearest(two: Pair) -> tuple[float, float]:
    """Return the severity of the package that is nearest to `transfer`."""
    wanted, middle = np.log(transfer(two)), (BINS[1:] + BINS[:-1]) / 2
    off = {s: np.square(np.log(ratio(middle, strength)) - wanted).sum() for s, strength in SEVERITIES.items()}
    return SEVERITIES[min(off, key=lambda s: off[s])], EXPONENT


def patches(smooth: Volume, count: int = 60) -> list[tuple[int, int, int]]:
    """Return the corners of the most homogeneous squares of soft tissue."""
    found = []
    blurred = ndimage.gaussian_filter(smooth.array, (1.5, 1.5, 0))
    for x in range(0, smooth.shape[0] - PATCH, PATCH // 2):
        for y in range(0, smooth.shape[1] - PATCH, PATCH // 2):
            for z in range(smooth.shape[2]):
                square = blurred[x : x + PATCH, y : y + PATCH, z]
                if square.min() > -30 and square.max() < 130:
                    found.append((float(square.std()), (x, y, z)))
    return [corner for _, corner in sorted(found)[:count]]


def nps(volume: Volume, where: list[tuple[int, int, int]]) -> np.ndarray:
    """Return the noise power in HU^2 mm^2 by ring: the mean over squares, without their plane, under a Hann window."""
    axis = np.linspace(-1, 1, PATCH)
    plane = np.stack([np.ones((PATCH, PATCH)), *np.meshgrid(axis, axis, indexing="ij")], -1).reshape(-1, 3)
    window = np.outer(np.hanning(PATCH), np.hanning(PATCH))
    sx, sy = volume.spacing_mm[:2]
    total = np.zeros((PATCH, PATCH))
    for x, y, z in where:
        square = volume.array[x : x + PATCH, y : y + PATCH, z].reshape(-1).astype(float)
        rest = (square - plane @ np.linalg.lstsq(plane, square, rcond=None)[0]).reshape(PATCH, PATCH)
        total += np.abs(np.fft.fft2(rest * window)) ** 2 * sx * sy / (window**2).sum()
    return radial(total / len(where), (sx, sy), nps_bins())


def nps_bins() -> np.ndarray:
    """Return the rings of whole frequencies of a patch at 1.5 mm, without the lowest and without Nyquist's."""
    return (np.arange(1, 8) + 0.5) / (PATCH * 1.5)


def borders(smooth: Volume) -> dict[str, np.ndarray]:
    """Return the distances in mm within each slice: from the skin (air is negative) and from the lungs' borders (lung is
    negative)."""
    filled: list[Any] = [ndimage.binary_fill_holes(plane > -400) for plane in np.moveaxis(smooth.array, 2, 0)]
    body = np.stack(filled, -1)
    lung: Any = ndimage.binary_opening(body & (smooth.array < -400), np.ones((5, 5, 1)))
    deep = ndimage.binary_erosion(body, np.ones((15, 15, 1)))
    return {"skin": signed(body, smooth), "lung": np.where(deep, signed(~lung, smooth), np.nan)}


def signed(mask: np.ndarray, volume: Volume) -> np.ndarray:
    """Return the distance in mm within each slice from the border of a mask, negative outside."""
    result = np.empty(mask.shape, np.float32)
    for z in range(mask.shape[2]):
        inside, outside = (
            ndimage.distance_transform_edt(m, volume.spacing_mm[:2]) for m in (mask[..., z], ~mask[..., z])
        )
        result[..., z] = np.where(mask[..., z], inside - 0.75, 0.75 - outside)  # type: ignore[operator]
    return result


def edge_bins() -> np.ndarray:
    return np.arange(-REACH_MM, REACH_MM + 0.1, 1.5)


def profiles(volume: Volume, where: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the mean HU by distance from each border."""
    found = {}
    for name, distance in where.items():
        bins, near = edge_bins(), np.abs(np.nan_to_num(distance, nan=99)) < REACH_MM
        step = np.digitize(distance[near], bins)
        values = volume.array[near]
        found[name] = np.array([values[step == i].mean() for i in range(1, len(bins))])
    return found


def measured(two: Pair) -> dict[str, dict[str, np.ndarray]]:
    """Return NPS and profiles of both reconstructions, with a way to measure a third."""
    where, lines = patches(two.smooth), borders(two.smooth)

    def look(volume: Volume) -> dict[str, np.ndarray]:
        return {"nps": nps(volume, where), **profiles(volume, lines)}

    return {"smooth": look(two.smooth), "sharp": look(two.sharp), "look": look}  # type: ignore[dict-item]


def away(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    """Return how far two measurements are apart. NPS: root mean square log ratio; borders: root mean square HU."""
    result = {"nps": float(np.sqrt(np.mean(np.log(one["nps"] / other["nps"]) ** 2)))}
    return result | {k: float(np.sqrt(np.mean((one[k] - other[k]) ** 2))) for k in ("skin", "lung")}


def prove() -> dict[str, Any]:
    """Return all that was measured, as plain numbers."""
    pairs = {patient: pair(patient) for patient in PAIRS}
    fits = {patient: fit(two) for patient, two in pairs.items()}
    result: dict[str, Any] = {
        "command": COMMAND,
        "frequencies_per_mm": centres(nps_bins()).tolist(),
        "distances_mm": centres(edge_bins()).tolist(),
        "patients": {},
    }
    for patient, two in pairs.items():
        (other,) = [fits[name] for name in PAIRS if name != patient]
        lower, upper = two.halves()
        halves = {"lower half": judge(lower, upper, other), "upper half": judge(upper, lower, other)}
        result["patients"][patient] = {
            "real ratio": transfer(two).round(4).tolist(),
            "ratio_per_mm": centres(BINS).tolist(),
            "halves": halves,
        }
    return result


def judge(judged: Pair, known: Pair, other: tuple[float, float]) -> dict[str, Any]:
    """Return how well each way does on the slices of `judged`, with numbers from `known` or from the `other` patient."""
    seen: Any = measured(judged)
    entry: dict[str, Any] = {
        "smooth": plain(seen["smooth"]),
        "sharp": plain(seen["sharp"]),
        "before": away(seen["smooth"], seen["sharp"]),
        "ways": {},
    }
    for way in WAYS:
        there, back = numbers(way, judged, known, other)
        sharper, smoother = (
            seen["look"](shifted(judged.smooth, *there)),
            seen["look"](shifted(judged.sharp, *back)),
        )
        entry["ways"][way] = {
            "strength": [there[0], back[0]],
            "exponent": there[1],
            "sharpened": plain(sharper),
            "to sharp": away(sharper, seen["sharp"]),
            "to smooth": away(smoother, seen["smooth"]),
        }
    return entry


def numbers(
    way: str, judged: Pair, known: Pair, other: tuple[float, float]
) -> tuple[tuple[float, float], ...]:
    """Return the strength (below 0: smoother) and exponent of a way, first to sharpen, then to smooth."""
    if way == "unpaired":
        return tuple(
            (unpaired(scan, like, other[1]), other[1])
            for scan, like in ((judged.smooth, known.sharp), (judged.sharp, known.smooth))
        )
    if way == "other patient":
        strength, exponent = other
    elif way == "own":
        strength, exponent = fit(known)
    else:
        strength, exponent = nearest(known) if way == "severity" else (SEVERITIES[DEFAULT], EXPONENT)
    return (strength, exponent), (-strength, exponent)


def shifted(volume: Volume, strength: float, exponent: float) -> Volume:
    array = filter_slices(volume, lambda f: relative(f, strength, exponent))
    return Volume(array, volume.affine, volume.name)


def centres(bins: np.ndarray) -> np.ndarray:
    return ((bins[1:] + bins[:-1]) / 2).round(4)


def plain(values: dict[str, np.ndarray]) -> dict[str, list[float]]:
    return {key: value.round(3).tolist() for key, value in values.items()}


def mean(halves: dict[str, Any], *keys: str) -> Any:
    """Return the mean over both halves of the body, of a number, or of a curve."""
    found = []
    for half in halves.values():
        for key in keys:
            half = half[key]
        found.append(half)
    return np.mean(found, axis=0)


def table(result: dict[str, Any]) -> str:
    """Return how far the scans are from the real reconstruction, before and after the shift, as Markdown."""
    lines = []
    for patient, entry in result["patients"].items():
        for way in WAYS:
            for i, direction in enumerate(("to sharp", "to smooth")):
                cells = []
                for key, digits in (("nps", 2), ("skin", 1), ("lung", 1)):
                    before = mean(entry["halves"], "before", key)
                    after = mean(entry["halves"], "ways", way, direction, key)
                    cells.append(f"{before:.{digits}f} -> {after:.{digits}f}")
                strength = mean(entry["halves"], "ways", way, "strength")[i]
                lines.append([patient, way, direction, f"{strength:+.2f}", *cells])
    columns = ("patient", "numbers from", "direction", "strength", "NPS, log ratio", "skin, HU", "lung, HU")
    return markdown(columns, lines)


def picture(result: dict[str, Any], path: Path) -> None:
    """Draw the NPS, and the profile across the lungs' borders, of each patient: smooth, sharp, and the smooth one
    sharpened."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7.5), layout="constrained", facecolor="white")
    for row, (patient, entry) in zip(figure.subplots(2, 2), result["patients"].items(), strict=True):
        lines = [("smooth, real", ["smooth"], "0.6", "-"), ("sharp, real", ["sharp"], "black", "-")]
        colours = ("tab:red", "tab:purple", "tab:green", "tab:orange", "tab:blue")
        lines += [
            (f"shifted, {way}", ["ways", way, "sharpened"], colour, "--")
            for way, colour in zip(WAYS, colours, strict=True)
        ]
        for name, keys, colour, style in lines:
            nps = mean(entry["halves"], *keys, "nps")
            row[0].semilogy(result["frequencies_per_mm"], nps, style, color=colour, label=name)
            row[1].plot(result["distances_mm"], mean(entry["halves"], *keys, "lung"), style, color=colour)
        row[0].set(title=patient, xlabel="cycles/mm", ylabel="NPS, HU² mm²")
        row[1].set(
            title="across the lungs' borders", xlabel="mm from the border (lung is negative)", ylabel="HU"
        )
        row[0].legend(fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--show", action="store_true", help="print what was measured, measure nothing")
    args = parser.parse_args()
    path = RESULTS / "shifts_proof.json"
    if not args.show:
        result = prove()
        RESULTS.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(result))
        picture(result, path.with_suffix(".png"))
    print(table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
