"""The verdict on a result before it leaves: does it explain the measured data, and is it whole?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sr_engine.physics.forward_model import expected_magnitude
from sr_engine.physics.lines import (
    gaussian_filter,
    largest_filter,
    mean_filter,
    smallest_filter,
)

SMALL_LESION_MM = 5.0  # full width of the window in which the residual is averaged
FWHM = math.sqrt(8 * math.log(2))
RIM_FROM = 8  # voxels: a shorter axis has no rim to spare
DARK = 0.1  # normalised intensity below which an output of 0 is no loss
CORNER_SLICES = 16  # measured tissue does not have one value in so many slices


@dataclass(frozen=True, kw_only=True)
class QualityLimits:
    """What is let through; normalised intensities: the 99.9th percentile of the head is 1.

    Attributes
    ----------
    residual_over_noise
        Residual to the measured data over its noise, root mean square in the head.
    blob_z, blob_intensity
        Residual averaged over 5 mm: both its deviation from noise, in standard deviations, and
        its size must be exceeded.
    model_error
        Share of the signal that the acquisition model may miss; added to the noise.
    edge_error
        Share of the local contrast that it may miss; not counted as a structure.
    spread_p99
        99th percentile of the disagreement of the three axes.
    clipped
        Share of the head at or below 0, or brighter than anything measured by half.
    coverage
        Least share of the head in which the output still shows at least half the measured signal.
    bright_corners
        Corners of the measured slices, of four, that may hold one bright value from the first
        slice to the last.
    """

    residual_over_noise: float = 1.5
    blob_z: float = 6.5
    blob_intensity: float = 0.027
    model_error: float = 0.01
    edge_error: float = 0.04
    spread_p99: float = 0.15
    clipped: float = 0.005
    coverage: float = 0.98
    bright_corners: int = 1


@dataclass(frozen=True, kw_only=True)
class QualityReport:
    """The verdict; `findings` are sentences for an administrator, empty when passed."""

    passed: bool
    findings: tuple[str, ...]
    figures: dict[str, float]


def judge(
    *,
    measured: np.ndarray,
    predicted_low: np.ndarray,
    measured_mask: np.ndarray,
    measured_spacing_mm: Sequence[float],
    noise_sigma: float,
    output: np.ndarray,
    upsampled: np.ndarray,
    spread: np.ndarray,
    mask: np.ndarray,
    limits: QualityLimits | None = None,
) -> QualityReport:
    """Return whether the result may be sent without a person looking at it.

    Parameters
    ----------
    measured, predicted_low, measured_mask
        The series, A x of the result, and the head, on the measured grid (k, i, j).
    output, upsampled, spread, mask
        The result, the cubic interpolation, the spread and the head on the fine grid.
    noise_sigma
        Noise of one channel of `measured`. All intensities are normalised.
    """
    limits = limits or QualityLimits()
    broken = _broken(output, predicted_low, mask, measured_mask)
    if broken:
        return QualityReport(passed=False, findings=(broken,), figures={})
    figures = _residual(
        measured, predicted_low, measured_mask, measured_spacing_mm, noise_sigma, limits
    )
    figures |= _content(output, upsampled, spread, mask)
    figures["bright_corners"] = float(_bright_corners(measured))
    findings = tuple(_findings(figures, limits))
    return QualityReport(passed=not findings, findings=findings, figures=figures)


def _broken(
    output: np.ndarray, predicted_low: np.ndarray, mask: np.ndarray, measured_mask: np.ndarray
) -> str | None:
    """Return what makes every figure meaningless, if anything."""
    if not (np.isfinite(output).all() and np.isfinite(predicted_low).all()):
        return "The result holds values that are not numbers."
    if not (mask.any() and measured_mask.any()):
        return "No head was found in the series, so the result cannot be judged."
    if np.ptp(output[mask]) == 0:
        return f"The result is empty: every voxel of the head is {output[mask][0]:g}."
    return None


def _residual(
    measured: np.ndarray,
    predicted_low: np.ndarray,
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    noise_sigma: float,
    limits: QualityLimits,
) -> dict[str, float]:
    """Return how far the result is from explaining what was measured."""
    residual = np.asarray(measured, np.float32) - expected_magnitude(
        predicted_low, measured, noise_sigma
    )
    noise = math.hypot(noise_sigma, limits.model_error)
    kernel_voxels = [SMALL_LESION_MM / FWHM / mm for mm in spacing_mm]
    inner = mask & _off_the_rim(mask.shape)
    smooth = gaussian_filter(np.where(inner, residual, 0), kernel_voxels)
    # Slice profile and position are known to a few per cent of a voxel: what that explains next to
    # a steep edge is no structure of its own.
    steep = largest_filter(measured, 3) - smallest_filter(measured, 3)
    blob = np.where(inner, np.abs(smooth) - limits.edge_error * steep, 0)
    worst = np.unravel_index(int(np.argmax(blob)), blob.shape)
    rms = float(np.sqrt(np.mean(residual[mask] ** 2.0)))
    return {
        "residual_over_noise": rms / noise,
        "residual_rms": rms,
        "noise_sigma": noise_sigma,
        "blob_z": max(float(blob[worst]), 0.0) / (noise * noise_gain(kernel_voxels)),
        "blob_intensity": float(np.copysign(max(blob[worst], 0.0), smooth[worst])),
        "blob_slice": float(worst[0] + 1),
        "blob_row": float(worst[1] + 1),
        "blob_column": float(worst[2] + 1),
    }


def _off_the_rim(shape: tuple[int, ...]) -> np.ndarray:
    """Return all but the outermost voxels: what wraps or is cut there, no model explains."""
    inner = np.zeros(shape, bool)
    inner[tuple(slice(1, -1) if n >= RIM_FROM else slice(None) for n in shape)] = True
    return inner


def noise_gain(kernel_voxels: Sequence[float]) -> float:
    """Return the deviation of unit white noise after a Gaussian filter of these sigmas."""
    gain = 1.0
    for sigma in kernel_voxels:
        impulse = np.zeros(2 * math.ceil(5 * sigma) + 3)
        impulse[len(impulse) // 2] = 1.0
        gain *= float(np.linalg.norm(ndimage.gaussian_filter1d(impulse, sigma)))
    return gain


def _content(
    output: np.ndarray, upsampled: np.ndarray, spread: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    """Return what the result looks like beside the plain interpolation."""
    out, plain = output[mask], upsampled[mask]
    lost = (out <= 0) & (plain > DARK)
    glaring = out > 1.5 * plain.max()
    signal = mean_filter(upsampled, 3)
    bright = mask & (signal > DARK)
    kept = mean_filter(output, 3) > 0.5 * signal
    return {
        "spread_p99": float(np.percentile(spread[mask], 99)),
        "clipped": float((lost | glaring).mean()),
        "coverage": float(kept[bright].mean()) if bright.any() else 0.0,
    }


def _bright_corners(measured: np.ndarray) -> int:
    """Return how many corners of the slices look padded: one bright value in all slices.

    Not how much of the volume is head: a tight crop of a brain fills it as well. But what was
    measured has noise; padding has none, and only a bright one is taken for the head.
    """
    corners = np.asarray(measured)[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # (slices, 4)
    if len(corners) < CORNER_SLICES:
        return 0
    return int(np.count_nonzero((np.ptp(corners, axis=0) == 0) & (corners[0] > DARK)))


def _findings(figures: dict[str, float], limits: QualityLimits) -> list[str]:
    findings = []
    if figures["residual_over_noise"] > limits.residual_over_noise:
        findings.append(
            "The result does not explain the measured series: the difference in the head is "
            f"{figures['residual_over_noise']:.1f} times the noise "
            f"(limit {limits.residual_over_noise:g})."
        )
    if figures["blob_z"] > limits.blob_z and abs(figures["blob_intensity"]) > limits.blob_intensity:
        kind = "lacks" if figures["blob_intensity"] > 0 else "shows"
        findings.append(
            f"The result {kind} a structure of about {SMALL_LESION_MM:g} mm that the measured "
            f"series does not agree with, near slice {figures['blob_slice']:.0f}, row "
            f"{figures['blob_row']:.0f}, column {figures['blob_column']:.0f}: "
            f"{figures['blob_z']:.0f} standard deviations of the noise (limit {limits.blob_z:g})."
        )
    if figures["spread_p99"] > limits.spread_p99:
        findings.append(
            f"The three axes disagree: 1 % of the head differs by more than "
            f"{figures['spread_p99']:.2f} of full intensity (limit {limits.spread_p99:g})."
        )
    if figures["clipped"] > limits.clipped:
        findings.append(
            f"{figures['clipped']:.1%} of the head is cut off at black or white "
            f"(limit {limits.clipped:.1%})."
        )
    if figures["coverage"] < limits.coverage:
        findings.append(
            f"Only {figures['coverage']:.1%} of the head shows in the result "
            f"(at least {limits.coverage:.0%} is expected)."
        )
    if figures["bright_corners"] > limits.bright_corners:
        findings.append(
            f"{figures['bright_corners']:.0f} of the four corners of the measured slices hold one "
            "bright value throughout: it looks like padding that the header does not declare, and "
            "was taken for the head."
        )
    return findings
