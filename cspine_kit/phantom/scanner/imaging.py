"""From what is there to what the scanner shows: kernel, dose noise, streaks, motion, padding.

In: HU (z, y, x) and a `Scan`. Out: the same volume as pictured, int16 HU. Example::

    shown = picture(rng, np.full(scan.grid.shape, 50, np.int16), scan)

Noise has the ramp spectrum of filtered back-projection times the kernel (Riederer et al., Phys
Med Biol 1978;23:446), and is correlated between slices that overlap.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from cspine_kit.phantom.anatomy.shapes import Array
from cspine_kit.phantom.scanner.scan import Scan

METAL_HU = 2600
STREAK_ANGLES = 180


def kernel(shape: tuple[int, int], pixel_mm: float, sharpness: float) -> tuple[Array, Array]:
    """Transfer of signal and of white noise, both for rfft2 of `shape` (rows, columns)."""
    fy = np.fft.fftfreq(shape[0], pixel_mm)[:, None]
    fx = np.fft.rfftfreq(shape[1], pixel_mm)[None, :]
    f = np.hypot(fy, fx)
    soft = np.exp(-((f / (0.45 + 0.45 * sharpness)) ** 2))
    signal = soft * (1.0 + 1.2 * max(0.0, sharpness) * (f / 0.6) ** 2 / (1.0 + (f / 0.6) ** 2))
    noise = np.sqrt(f + 0.02) * signal
    return signal.astype(np.float32), noise.astype(np.float32)


def _shoulder_streaks(rng: np.random.Generator, plane: Array, pixel_mm: float) -> Array:
    """Horizontal streaks where the path through the shoulders is long."""
    long_path = (plane > -300).sum(axis=1).mean() * pixel_mm
    touching = max((plane[:, 0] > -300).sum(), (plane[:, -1] > -300).sum()) * pixel_mm
    strength = 0.25 * max(0.0, touching - 25.0) * min(1.0, long_path / 80.0)
    rows, cols = plane.shape
    knots = rng.standard_normal((rows, max(4, cols // 40)), dtype=np.float32)
    places = np.linspace(0, knots.shape[1] - 1.001, cols)
    low = places.astype(int)
    part = (places - low).astype(np.float32)
    lines = knots[:, low] * (1 - part) + knots[:, low + 1] * part
    return np.asarray(strength * lines, np.float32)


def _metal_streaks(rng: np.random.Generator, plane: Array) -> Array | None:
    """Bright and dark rays from the middle of the metal in a slice."""
    ys, xs = np.nonzero(plane > METAL_HU)
    if len(ys) < 3:
        return None
    y0, x0 = ys.mean(), xs.mean()
    dy = np.arange(plane.shape[0], dtype=np.float32)[:, None] - np.float32(y0)
    dx = np.arange(plane.shape[1], dtype=np.float32)[None, :] - np.float32(x0)
    turn = (np.arctan2(dy, dx) / np.pi + 1.0) * (STREAK_ANGLES / 2)
    rays = rng.standard_normal(STREAK_ANGLES + 2, dtype=np.float32)
    low = turn.astype(np.int32)
    value = rays[low] + (turn - low) * (rays[low + 1] - rays[low])
    reach = np.sqrt(len(ys)) * 4.0
    return np.asarray(260.0 * value * reach / (reach + np.hypot(dy, dx)), np.float32)


def _circle(shape: tuple[int, int]) -> NDArray[np.bool_]:
    """True outside the circle of reconstruction."""
    y, x = (np.linspace(-1, 1, n)[:, None] for n in shape)
    return np.asarray(y**2 + x.T**2 > 1.0)


def picture(rng: np.random.Generator, hu: NDArray[np.int16], scan: Scan) -> NDArray[np.int16]:
    """What the scanner shows of `hu` (z, y, x); overwrites and returns it."""
    shape = (hu.shape[1], hu.shape[2])
    signal, noise = kernel(shape, scan.spacing_mm[1], scan.sharpness)
    scale = scan.noise_hu / max(1e-6, _gain(noise, shape))
    overlap = min(0.8, max(0.0, 1.0 - scan.spacing_mm[0] / scan.thickness_mm))
    outside = _circle(shape) if scan.pad_hu is not None else None
    before = np.zeros(shape, np.float32)
    moving = rng.random() < 0.15 * min(1.0, scan.streaks)
    still = rng.random(len(hu)) > (0.03 if moving else 0.0)
    for index in range(len(hu)):
        plane = hu[index].astype(np.float32)
        white = rng.standard_normal(shape, dtype=np.float32)
        before = np.float32(overlap) * before + np.float32(np.sqrt(1 - overlap**2)) * white
        spectrum = fft.rfft2(plane) * signal + fft.rfft2(before) * (noise * np.float32(scale))
        shown = fft.irfft2(spectrum, s=shape)
        if scan.streaks:
            shown += scan.streaks * _shoulder_streaks(rng, plane, scan.spacing_mm[1])
            metal = _metal_streaks(rng, plane)
            if metal is not None:
                shown += scan.streaks * metal
            if not still[index]:
                shown = np.roll(shown, int(rng.integers(-3, 4)), axis=1)
        np.maximum(shown, -1024, out=shown)
        if outside is not None:
            shown[outside] = scan.pad_hu
        hu[index] = np.rint(np.minimum(shown, 20000))
    return hu


def _gain(noise: Array, shape: tuple[int, int]) -> float:
    """Standard deviation that unit white noise has after the noise transfer."""
    power = noise.astype(np.float64) ** 2
    twice = np.full(power.shape[1], 2.0)
    twice[0] = 1.0
    if shape[1] % 2 == 0:
        twice[-1] = 1.0
    return float(np.sqrt((power * twice).sum() / (shape[0] * shape[1])))
