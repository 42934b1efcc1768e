"""A linear operator that is one matrix an axis, applied to a volume; numpy only."""

from collections.abc import Sequence

import numpy as np

from sr_engine.threads import in_pieces

Array = np.ndarray
COLUMNS = 16384  # of the unfolded volume that are multiplied at once: 20 MB of it stay in the cache


def apply(matrices: Sequence[Array | None], x: Array) -> Array:
    """Return `x` multiplied along each axis, float32; None leaves an axis alone.

    Parameters
    ----------
    matrices : three of (m, n) or None
    x : (n0, n1, n2)

    The first axis goes first where it shrinks more than the others, last where it grows more.
    """
    through, rows, columns = (None if m is None else np.asarray(m, np.float32) for m in matrices)
    x = np.asarray(x, np.float32)
    if _growth(through) < min(_growth(rows), _growth(columns)):
        return _in_planes(rows, columns, _through(through, x))
    return _through(through, _in_planes(rows, columns, x))


def _growth(matrix: Array | None) -> float:
    return 1.0 if matrix is None else matrix.shape[0] / matrix.shape[1]


def _through(matrix: Array | None, x: Array) -> Array:
    """Return `x` multiplied along its first axis."""
    if matrix is None:
        return x
    flat = x.reshape(len(x), -1)
    out = np.empty((len(matrix), flat.shape[1]), np.float32)

    def multiply(piece: slice) -> None:
        out[:, piece] = matrix @ flat[:, piece]

    in_pieces(multiply, flat.shape[1], COLUMNS)
    return out.reshape(len(matrix), *x.shape[1:])


def _in_planes(rows: Array | None, columns: Array | None, x: Array) -> Array:
    """Return `x` multiplied along its second and third axis."""
    if rows is None and columns is None:
        return x
    n1 = x.shape[1] if rows is None else len(rows)
    n2 = x.shape[2] if columns is None else len(columns)
    out = np.empty((len(x), n1, n2), np.float32)
    rows_first = _growth(rows) <= _growth(columns)

    def multiply(piece: slice) -> None:
        plane = x[piece.start]
        for is_row in (rows_first, not rows_first):
            if is_row and rows is not None:
                plane = rows @ plane
            if not is_row and columns is not None:
                plane = plane @ columns.T
        out[piece.start] = plane

    in_pieces(multiply, len(x))
    return out
