"""The methods that are compared: the engine as it ships, with a part switched off, and the peers.

``student``, ``regression`` and ``teacher`` are weight files. ``axis0`` .. ``axis2``,
``plain-mean``, ``no-consistency``, ``no-b`` and ``no-g`` are the student with one part switched
off. Other weight files can be given other names, e.g. stages of the distillation. All take a
number of steps, ``student@4``. ``cubic`` and ``zerofill`` are the linear methods: the line to beat.
"""

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from highdicom import Volume
from scipy import fft

from sr_engine.errors import InputRefused
from sr_engine.evaluation.memory import peak_mib, reset_peak
from sr_engine.inference import NetworkInput, predict_triaxial
from sr_engine.model.bundle import Bundle, load
from sr_engine.physics.resample import Grid, grid_like, interpolate
from sr_engine.pipeline import Enhancement, acquired_of_volume, enhance_volume
from sr_engine.quality import QualityReport
from sr_engine.recipe import Recipe

LINEAR = ("cubic", "zerofill")
ROLES = ("student", "regression", "teacher")
AXES = ("axis0", "axis1", "axis2")
SWITCHED_OFF: dict[str, dict[str, Any]] = {
    "plain-mean": {"weighted_fusion": False},
    "no-consistency": {"data_consistency": False},
    "no-noise-reduction": {"reduce_noise": False},
    "no-small-structures": {"keep_small_structures": False},
    "no-b": {"use_bias_field": False},
    "no-g": {"use_gradient_map": False},
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method as it was asked for; linear ones have no steps and no role.

    `role` is whose weights it runs on.
    """

    name: str
    kind: str
    role: str
    steps: int


class Stacks:
    """The three stacks of the last input, so that what differs later only is not predicted again.

    A single axis, the fusion of all three and the result without data consistency differ in what
    happens to the same stacks.
    """

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._stacks: list[np.ndarray] = []
        self.reused = False

    def predict(
        self, given: NetworkInput, bundle: Bundle, *, axes: Sequence[int], **options: Any
    ) -> list[np.ndarray]:
        """Return what `predict_triaxial` gives for those axes."""
        guidance = (given.bias_log is None, given.displacement_mm is None)
        content = zlib.crc32(given.volume.tobytes())
        key = (bundle.sha256, options["steps"], options["seed"], content, given.noise, guidance)
        self.reused = key == self._key
        if not self.reused:
            self._stacks = predict_triaxial(given, bundle, axes=(0, 1, 2), **options)
            self._key = key
        return [self._stacks[axis].copy() for axis in axes]


@dataclass(frozen=True, kw_only=True)
class Tools:
    """The weights that are compared, by role, and where they run."""

    bundles: dict[str, Bundle]
    steps: int
    teacher_steps: int
    device: str
    stacks: Stacks = field(default_factory=Stacks)

    def method(self, name: str) -> Method:
        """Return the method `name`.

        Raises
        ------
        InputRefused
            If there is no such method, or its weights were not given.
        """
        kind, _, steps = name.partition("@")
        known = (*ROLES, *AXES, *SWITCHED_OFF, *LINEAR)
        if kind not in (*known, *self.bundles) or not (steps or "1").isdigit():
            raise InputRefused(f"unknown method {name!r}: {', '.join(known)}, student@4 ...")
        if kind in LINEAR:
            return Method(name=name, kind=kind, role="", steps=0)
        role = "student" if kind in (*AXES, *SWITCHED_OFF) else kind
        if role not in self.bundles:
            raise InputRefused(f"method {name!r} needs the option --{role} FILE")
        default = {"teacher": self.teacher_steps, "regression": 1}.get(kind, self.steps)
        return Method(name=name, kind=kind, role=role, steps=int(steps) if steps else default)

    def weights(self, method: Method) -> str:
        """Return the identity of the weights of a method; empty for a linear one."""
        return self.bundles[method.role].sha256[:16] if method.role else ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a method made of an input, on the grid and in the units of the reference."""

    array: np.ndarray
    seconds: float | None  # None: the network's part was there already
    peak_mib: float
    spread: np.ndarray | None = None
    report: QualityReport | None = None
    g_known: bool = False


def load_tools(
    methods: Sequence[str],
    *,
    weights: str = "default",
    others: dict[str, str] | None = None,
    steps: int = 1,
    teacher_steps: int = 8,
    device: str = "auto",
) -> Tools:
    """Return the tools for `methods`; the student's weights are read only where one needs them.

    Parameters
    ----------
    others
        Further weight files by role: ``regression``, ``teacher``, or any name that is then a
        method, e.g. a stage of the distillation.
    """
    bundles = {role: load(file) for role, file in (others or {}).items()}
    if any(name.partition("@")[0] not in (*LINEAR, *ROLES[1:], *bundles) for name in methods):
        bundles["student"] = load(weights)
    return Tools(bundles=bundles, steps=steps, teacher_steps=teacher_steps, device=device)


def run_method(method: Method, low: Volume, reference: Volume, tools: Tools) -> Outcome:
    """Return what `method` makes of an input, on the grid of the reference."""
    reset_peak()
    started = time.monotonic()
    grid = grid_like(reference.affine, reference.array.shape)
    if method.kind == "cubic":
        array, result = interpolate(low, grid).array, None
    elif method.kind == "zerofill":
        array, result = zero_fill(low.array, reference.array.shape), None
    else:
        array, result = _enhanced(method, low, grid, tools)
    reused = bool(method.role) and tools.stacks.reused
    return Outcome(
        array=array,
        seconds=None if reused else round(time.monotonic() - started, 2),
        peak_mib=peak_mib(),
        spread=result.spread if result and method.kind not in AXES else None,
        report=result.report if result else None,
        g_known=bool(result and result.gradient.valid),
    )


def _enhanced(
    method: Method, low: Volume, grid: Grid, tools: Tools
) -> tuple[np.ndarray, Enhancement]:
    """Return the engine's result and its array."""

    def predict(given: NetworkInput, bundle: Bundle, **options: Any) -> list[np.ndarray]:
        if method.kind in AXES:
            options["axes"] = (AXES.index(method.kind),)
        return tools.stacks.predict(given, bundle, **options)

    single = {"weighted_fusion": False} if method.kind in AXES else {}
    switched_off = SWITCHED_OFF.get(method.kind, single)
    result = enhance_volume(
        low,
        acquired_of_volume(low),
        Recipe(steps=method.steps, **switched_off),
        tools.bundles[method.role],
        like=grid,
        device=tools.device,
        predict=predict,
    )
    return result.volume.array, result


def zero_fill(low: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return `low` on `shape`, both sharing one field of view, by padding k-space with zeros."""
    high = low.astype(np.complex64)
    for axis, n in enumerate(shape):
        m = low.shape[axis]
        if m == n:
            continue
        spectrum = np.moveaxis(fft.fft(high, axis=axis), axis, -1)
        wave = np.rint(fft.fftfreq(m) * m).astype(int)  # signed index of each component
        shift = np.exp(-2j * np.pi * wave / n * (0.5 * n / m - 0.5)).astype(np.complex64)
        padded = np.zeros((*spectrum.shape[:-1], n), np.complex64)
        padded[..., wave % n] = spectrum * shift
        high = np.moveaxis(fft.ifft(padded, axis=-1), -1, axis) * np.float32(n / m)
    return np.abs(high).astype(np.float32)
