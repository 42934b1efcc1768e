"""What of a residual is more than white noise, band by band of spatial frequency; numpy only."""

import numpy as np

from sr_engine.threads import in_pieces

Array = np.ndarray

BANDS = 8  # frequency bands an axis; each holds hundreds of components


def wiener_shrink(residual: Array, noise_power: float) -> Array:
    """Return the part of `residual` that is more than white noise, float32.

    Parameters
    ----------
    noise_power
        Variance of the noise of one voxel.
    """
    residual = np.asarray(residual, np.float32)
    if noise_power <= 0:
        return residual
    spectrum = _transform(residual)
    bands = [
        _bands(count, kept) for count, kept in zip(residual.shape, spectrum.shape, strict=True)
    ]
    power = np.maximum(_mean_power(spectrum, bands), 1e-30)
    gain = np.clip(1.0 - noise_power / power, 0.0, 1.0).astype(np.float32)

    def shrink(piece: slice) -> None:
        spectrum[piece] *= gain[np.ix_(bands[0][piece], bands[1], bands[2])]

    in_pieces(shrink, len(spectrum))
    return _transform_back(spectrum, residual.shape[2])


def _bands(count: int, kept: int) -> Array:
    """Return the band of each of the first `kept` components of a transform of `count` samples."""
    frequency = np.abs(np.fft.fftfreq(count)[:kept])  # up to 0.5 a voxel
    return np.minimum((frequency * 2 * BANDS).astype(np.intp), BANDS - 1)


def _mean_power(spectrum: Array, bands: list[Array]) -> Array:
    """Return the mean power of the components of each band: (BANDS, BANDS, BANDS), float64."""
    belongs = [np.eye(BANDS)[band] for band in bands]  # (components, BANDS) an axis
    planes = np.empty((len(spectrum), BANDS, BANDS))

    def add_up(piece: slice) -> None:
        plane = spectrum[piece.start]
        planes[piece.start] = belongs[1].T @ (plane.real**2 + plane.imag**2) @ belongs[2]

    in_pieces(add_up, len(spectrum))
    counts = [part.sum(axis=0) for part in belongs]
    count = counts[0][:, None, None] * counts[1][:, None] * counts[2]
    return np.tensordot(belongs[0].T, planes, 1) / np.maximum(count, 1)


def _transform(x: Array) -> Array:
    """Return ``np.fft.rfftn(x, norm="ortho")``, computed by several threads."""
    spectrum = np.empty((*x.shape[:2], x.shape[2] // 2 + 1), np.complex64)

    def in_plane(piece: slice) -> None:
        spectrum[piece] = np.fft.rfftn(x[piece], axes=(1, 2), norm="ortho")

    def through(piece: slice) -> None:
        spectrum[:, piece] = np.fft.fft(spectrum[:, piece], axis=0, norm="ortho")

    in_pieces(in_plane, x.shape[0])
    in_pieces(through, x.shape[1])
    return spectrum


def _transform_back(spectrum: Array, columns: int) -> Array:
    """Return the inverse of `_transform`; `spectrum` is overwritten."""
    x = np.empty((*spectrum.shape[:2], columns), np.float32)
    size = (spectrum.shape[1], columns)

    def through(piece: slice) -> None:
        spectrum[:, piece] = np.fft.ifft(spectrum[:, piece], axis=0, norm="ortho")

    def in_plane(piece: slice) -> None:
        x[piece] = np.fft.irfftn(spectrum[piece], s=size, axes=(1, 2), norm="ortho")

    in_pieces(through, spectrum.shape[1])
    in_pieces(in_plane, spectrum.shape[0])
    return x
