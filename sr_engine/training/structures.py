"""The network that finds structure in the residual: its scenes, its training, its place in a file.

Its scenes are what the student makes of simulated scans of the training volumes, with lesions in
them: the whole pipeline runs, with an onlooker where the network will stand. They are kept on disk,
so that an interrupted run goes on and a repetition makes none again. Two processor cores need about
ten minutes for a hundred of them; the training is as short.
"""

import json
import math
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from highdicom import Volume
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from sr_engine.errors import RecipeError
from sr_engine.model import bundle
from sr_engine.model.diffusion import parameter_count
from sr_engine.model.structures import (
    StructureConfig,
    StructureNet,
    acquisition_of,
    axis_order,
    network_input,
    thick_axis,
)
from sr_engine.physics.axis_model import Profile, ProfileName
from sr_engine.physics.forward_model import AcquisitionModel, add_rician_noise, shared_field
from sr_engine.physics.resample import grid_like
from sr_engine.physics.small_structures import Seen
from sr_engine.pipeline import Acquired, enhance_volume
from sr_engine.recipe import Recipe
from sr_engine.training.checkpoint import load_state, save_state
from sr_engine.training.lesions import ellipsoid
from sr_engine.training.shards import Shard, read_shards
from sr_engine.training.simulate import along, reconstruction, zoomed
from sr_engine.training.train import device_name

Report = Callable[[str], None]
STAGE = "structures"
TARGET_MM = (0.87, 1.25)  # voxel of the reference: volumes are coarser than what is made of them
ISOTROPIC, THICK, IN_PLANE = (1.25, 2.6), (2.0, 6.0), (1.05, 1.6)  # measured over target voxel
USUAL_SNR, SNR = 25.0, (12.0, 60.0)
RECONSTRUCTED = 0.2  # share of the scans that the scanner zero-filled, half of them filtered
WHOLE_HEADS = 0.2  # share of the scans
LESION_MM3 = (1500.0, 4000.0)  # of the head for each lesion
SMALL_SHARE, SMALL_MM, LARGE_MM, LONGEST = 0.7, (1.0, 3.2), (3.2, 6.0), 1.8
CONTRAST = (0.05, 0.3)  # of the brightest tissue
APART_MM = 3.0
TRUE_VOXELS, RAISED_VOXELS = 1.6, 1.2  # measured voxels: shown as it is from, most raised below
CLIP_NORM, WARM_UP_STEPS, SPEAK_EVERY_S, KEEP_EVERY_S = 1.0, 100, 20.0, 120.0
AVERAGE_HALF_LIFE_STEPS = 140


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What the training weighs, for one kind of acquisition.

    Attributes
    ----------
    lesion_weight   of the voxels of planted lesions beside all others
    raised          by how much more than is there a lesion of a measured voxel is to be found
    noise_share     what leaving noise in the residual, beside lesions, is worth; below 1
    """

    lesion_weight: float
    raised: float
    noise_share: float


@dataclass(frozen=True, kw_only=True)
class StructuresConfig:
    """The stage, as config/training/structures.toml holds it."""

    data: str  # folder of shards, see training/pack.py; the scenes are kept in it
    out: str  # the student's file with this network added
    student: str = "default"
    scenes: int = 100
    minutes: float = 10.0
    batch: int = 4
    crop: int = 40  # voxels of the measured grid; half as many across thick slices
    learning_rate: float = 2e-3
    seed: int = 1
    thick: Aim = field(default_factory=lambda: Aim(lesion_weight=1, raised=0, noise_share=0))
    isotropic: Aim = field(default_factory=lambda: Aim(lesion_weight=1, raised=0, noise_share=0))
    model: StructureConfig = field(default_factory=StructureConfig)

    @classmethod
    def read(cls, path: Path) -> "StructuresConfig":
        """Return the configuration of a TOML file.

        Raises
        ------
        RecipeError
            If a key is unknown or missing, or the file is no TOML.
        """
        try:
            values = tomllib.loads(path.read_text())
            values.pop("stage", None)
            for name, kind in (("thick", Aim), ("isotropic", Aim), ("model", StructureConfig)):
                if name in values:
                    values[name] = kind(**values[name])
            return cls(**values)
        except (TypeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"{path}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class StructureScene:
    """One simulated scan after the student, on the measured grid, in sigmas of the noise.

    Attributes
    ----------
    given : (3, K, I, J)          what the network sees
    acquisition : (9,)            and is told
    target : (K, I, J)            the structure that the result lacks
    raised : (K, I, J)            what is added to it where lesions are to be found stronger
    weight : (K, I, J)            1 in the middle of a lesion, 0 where none is
    counts : (K, I, J), bool      the head
    thick                         whether its slices, along the last axis, are thick
    """

    given: Tensor
    acquisition: Tensor
    target: Tensor
    raised: Tensor
    weight: Tensor
    counts: Tensor
    thick: bool


class Onlooker:
    """Stands where the network will: notes what it is shown, and finds nothing."""

    def __init__(self) -> None:
        self.seen: Seen | None = None

    def find(self, seen: Seen) -> np.ndarray:
        """Return zeros."""
        self.seen = seen
        return np.zeros_like(seen.residual)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A simulated scan: the volume, how it was acquired, and what is true of it."""

    volume: Volume
    acquired: Acquired
    truth: np.ndarray
    affine: np.ndarray
    weight: np.ndarray
    raised: np.ndarray


def scan(shard: Shard, seed: int) -> Scan:
    """Return a random scan of a volume, with lesions in it."""
    rng = np.random.default_rng(seed)
    voxel_mm = np.array(shard.voxel_mm)
    zoom = np.maximum(1.0, rng.uniform(*TARGET_MM) / voxel_mm)
    k, i, j = zoom.tolist()
    zoomed_high, zoomed_mask = zoomed(shard.volume.float(), shard.mask, (k, i, j), 8)
    high = zoomed_high.numpy() ** np.float32(np.exp(rng.uniform(-0.25, 0.25)))
    mask = zoomed_mask.numpy()
    high_mm = voxel_mm * np.array(shard.volume.shape) / np.array(high.shape)
    affine = np.diag([*high_mm, 1.0])
    ratio, names = _sampling(rng)
    shape, low_affine = shared_field(high.shape, affine, (high_mm * ratio).tolist())
    widths = np.diag(low_affine)[:3]
    lesions, weight, raised = _plant(high, mask, high_mm, float(np.prod(widths)), rng)
    truth = high + lesions
    profiles = [Profile(name=n, width_mm=float(w)) for n, w in zip(names, widths, strict=True)]
    model = AcquisitionModel.from_grids(high.shape, affine, shape, low_affine, profiles=profiles)
    low = np.abs(model.forward(truth))
    usual = rng.random() < 0.25
    snr = USUAL_SNR if usual else float(np.exp(rng.uniform(*np.log(SNR))))
    sigma = float(low[low > low.mean()].mean()) / snr
    if rng.random() < RECONSTRUCTED:
        low, low_affine = _reconstructed(low, low_affine, high.shape, names, sigma, rng)
    else:
        low = add_rician_noise(low, sigma, seed)
    a, b, c = widths.tolist()
    return Scan(
        volume=Volume(low.astype(np.float32), low_affine, coordinate_system="PATIENT"),
        acquired=Acquired(
            profiles=(profiles[0], profiles[1], profiles[2]), acquired_voxel_mm=(a, b, c)
        ),
        truth=truth,
        affine=affine,
        weight=weight,
        raised=raised,
    )


def _sampling(rng: np.random.Generator) -> tuple[np.ndarray, list[ProfileName]]:
    """Return measured over target voxel and the profile of each axis."""
    names: list[ProfileName] = ["kspace"] * 3
    if rng.random() < 0.5:
        return np.full(3, 2.0 if rng.random() < 0.3 else rng.uniform(*ISOTROPIC)), names
    thick = int(rng.integers(3))
    ratio = np.full(3, 1.0 if rng.random() < 0.6 else rng.uniform(*IN_PLANE))
    ratio[thick] = 4.0 if rng.random() < 0.3 else rng.uniform(*THICK)
    names[thick] = "box"
    return ratio, names


def _plant(
    high: np.ndarray,
    mask: np.ndarray,
    high_mm: np.ndarray,
    measured_mm3: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lesions apart from one another, their weight, and what of them may be raised.

    The weight is such that its measured image is about 1 in the middle of each of them.
    """
    voxel_mm3 = float(np.prod(high_mm))
    mm, side_mm = voxel_mm3 ** (1 / 3), measured_mm3 ** (1 / 3)
    added, weight, raised = (np.zeros(high.shape, np.float32) for _ in range(3))
    taken = np.zeros(high.shape, bool)
    places = np.argwhere(mask)
    for index in rng.integers(
        len(places), size=int(len(places) * voxel_mm3 / rng.uniform(*LESION_MM3))
    ):
        size_mm = rng.uniform(*(SMALL_MM if rng.random() < SMALL_SHARE else LARGE_MM))
        radii = 0.5 * size_mm / mm * rng.uniform(1.0, LONGEST, 3) ** rng.integers(0, 2)
        reach = math.ceil(float(radii.max()) + APART_MM / mm)
        near = tuple(slice(max(0, at - reach), at + reach + 1) for at in places[index])
        if taken[near].any():
            continue
        box, share = ellipsoid(high.shape, places[index] + rng.uniform(-0.5, 0.5, 3), radii)
        taken[box] = True
        contrast = np.float32(rng.choice((-1, 1)) * rng.uniform(*CONTRAST))
        added[box] += np.maximum(contrast * share, -high[box])
        measured_share = min(1.0, float(share.sum()) * voxel_mm3 / measured_mm3)
        weight[box] = np.maximum(weight[box], share / max(measured_share, 0.02))
        small = (TRUE_VOXELS - size_mm / side_mm) / (TRUE_VOXELS - RAISED_VOXELS)
        raised[box] += added[box] * np.float32(np.clip(small, 0, 1)) * (share > 0)
    return added, weight, raised


def _reconstructed(
    low: np.ndarray,
    affine: np.ndarray,
    finest: Sequence[int],
    names: Sequence[ProfileName],
    sigma: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a scanner that zero-fills, and perhaps filters, makes of a noisy acquisition."""
    zero_fill = rng.uniform(1.3, 2.0)
    tapered = rng.uniform(0.2, 0.8) if rng.random() < 0.5 else 0.0
    real, imaginary = (
        torch.from_numpy(part + sigma * rng.standard_normal(low.shape, dtype=np.float32))
        for part in (low, np.zeros_like(low))
    )
    made = affine.copy()
    for axis, name in enumerate(names):
        if name != "kspace":
            continue
        n = low.shape[axis]
        more = max(n, min(finest[axis], round(n * zero_fill)))
        matrix = reconstruction(n, more, tapered)
        real, imaginary = along(matrix, real, axis), along(matrix, imaginary, axis)
        made[axis, axis] = affine[axis, axis] * n / more
        made[axis, 3] += affine[axis, axis] * (0.5 * n / more - 0.5)
    return torch.hypot(real, imaginary).numpy(), made


def look(made: Scan, student: bundle.Bundle) -> StructureScene | None:
    """Return what the network would see after `student`; None where it would not be asked."""
    onlooker = Onlooker()
    enhance_volume(
        made.volume,
        made.acquired,
        Recipe(use_bias_field=False),
        replace(student, structures=onlooker),
        like=grid_like(made.affine, made.truth.shape),
    )
    seen = onlooker.seen
    if seen is None:
        return None
    measured = made.volume.array[seen.box]
    divisor = float((measured * measured).sum() / (measured * seen.measured).sum())

    def shown(volume: np.ndarray, unit: float) -> np.ndarray:
        return seen.model.forward(volume / np.float32(unit))[seen.box]

    order = axis_order(seen)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array.transpose(order)))

    unit = divisor * seen.sigma
    return StructureScene(
        given=torch.from_numpy(network_input(seen, order)),
        acquisition=torch.from_numpy(acquisition_of(seen, order)),
        target=tensor(shown(made.truth, unit) - seen.predicted / np.float32(seen.sigma)),
        raised=tensor(shown(made.raised, unit)),
        weight=tensor(np.clip(shown(made.weight, 1.0), 0, 1)),
        counts=tensor(seen.counts),
        thick=thick_axis(seen) is not None,
    )


def keep_scene(path: Path, scene: StructureScene, meta: dict[str, str]) -> None:
    """Write a scene in float16."""
    tensors = {k: v for k, v in vars(scene).items() if isinstance(v, Tensor)}
    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    part = path.with_suffix(".part")
    save_file(half, part, {**meta, "thick": json.dumps(scene.thick)})
    part.replace(path)


def read_scene(path: Path) -> StructureScene:
    """Return a scene that `keep_scene` wrote."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        thick = json.loads(file.metadata()["thick"])
    full = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    return StructureScene(thick=thick, **full)


def make_scenes(
    config: StructuresConfig, shards: Sequence[Shard], student: bundle.Bundle, report: Report
) -> list[StructureScene]:
    """Return the scenes, those of an earlier run with the same student from the disk."""
    folder = Path(config.data) / STAGE / student.sha256[:16]
    folder.mkdir(parents=True, exist_ok=True)
    heads = [shard for shard in shards if shard.whole_head]
    brains = [shard for shard in shards if not shard.whole_head] or heads
    scenes: list[StructureScene] = []
    number = 0
    while len(scenes) < config.scenes and number < 2 * config.scenes + 10:
        path = folder / f"{config.seed}-{number:04d}.safetensors"
        empty = path.with_suffix(".empty")
        if not (path.is_file() or empty.is_file()):
            rng = np.random.default_rng([config.seed, number])
            among = heads if heads and rng.random() < WHOLE_HEADS else brains
            shard = among[int(rng.integers(len(among)))]
            started = time.monotonic()
            scene = look(scan(shard, int(rng.integers(2**31))), student)
            if scene is None:
                empty.touch()
            else:
                keep_scene(path, scene, {"shard": shard.name})
            report(
                f"scene {number} of {shard.name}: {'kept' if scene else 'nothing to look for'}, "
                f"{time.monotonic() - started:.1f} s"
            )
        if path.is_file():
            scenes.append(read_scene(path))
        number += 1
    if not scenes:
        raise RecipeError("in no scene was there anything to look for")
    return scenes


class StructureTrainer:
    """The stage from its scenes, or its saved state, to its weight file."""

    def __init__(self, config: StructuresConfig, device: str, report: Report) -> None:
        self.config, self.device, self.report = config, torch.device(device), report
        torch.manual_seed(config.seed)
        self.student = bundle.load(config.student)
        self.shards = read_shards(config.data)
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        self.scenes = make_scenes(config, self.shards, self.student, report)
        self.model = StructureNet(config.model).to(self.device)
        self.average = StructureNet(config.model).to(self.device).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), config.learning_rate, weight_decay=1e-4
        )
        self.step, self.seconds = 0, 0.0
        self.losses: list[list[float]] = []

    @property
    def state_path(self) -> Path:
        """Where the resumable state lies."""
        return Path(self.config.out).with_suffix(".state.safetensors")

    def resume(self) -> None:
        """Go on where the saved state ended."""
        progress = load_state(self.state_path, self.model, self.average, [self.optimiser])
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.losses = progress["losses"]
        self.report(f"resumed at step {self.step}, {self.seconds / 60:.1f} min")

    def run(self) -> str:
        """Train until the budget is spent; return the SHA-256 of the weight file."""
        config = self.config
        rng = np.random.default_rng([config.seed, self.step])
        kinds = [[s for s in self.scenes if s.thick is thick] for thick in (True, False)]
        kinds = [kind for kind in kinds if kind]
        started, before, budget = time.monotonic(), self.seconds, 60 * config.minutes
        spoken = kept = started
        recent: list[float] = []
        while self.seconds < budget:
            for group in self.optimiser.param_groups:
                group["lr"] = config.learning_rate * self._share(self.seconds / budget)
            recent.append(self._update(kinds[self.step % len(kinds)], rng))
            self.step += 1
            now = time.monotonic()
            self.seconds = before + now - started
            if now - spoken > SPEAK_EVERY_S:
                self._tell(recent)
                spoken, recent = now, []
            if now - kept > KEEP_EVERY_S:
                self._save_state()
                kept = now
        self._save_state()
        return self._write()

    def _share(self, progress: float) -> float:
        warm = min(1.0, (self.step + 1) / WARM_UP_STEPS)
        return warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def _update(self, scenes: Sequence[StructureScene], rng: np.random.Generator) -> float:
        config = self.config
        crops = [
            cut(scenes[int(rng.integers(len(scenes)))], config.crop, rng)
            for _ in range(config.batch)
        ]
        given, acquisition, target, raised, weight, counts = (
            torch.stack(parts).to(self.device) for parts in zip(*crops, strict=True)
        )
        aim = config.thick if scenes[0].thick else config.isotropic
        found = self.model(given, acquisition)
        error = (found - target - aim.raised * raised) ** 2 * (1 + aim.lesion_weight * weight)
        left = (given[:, 0] - found) ** 2 * (1 - weight)
        share = counts / counts.sum().clamp(min=1)
        loss = ((error - aim.noise_share * left) * share).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimiser.step()
        decay = 0.5 ** (1 / min(AVERAGE_HALF_LIFE_STEPS, 1 + self.step / 4))
        with torch.no_grad():
            new = list(self.model.parameters())
            torch._foreach_lerp_(list(self.average.parameters()), new, 1 - decay)
        return float(loss.detach())

    def _tell(self, recent: Sequence[float]) -> None:
        mean = float(np.mean(recent))
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean} before step {self.step}")
        self.losses.append([self.step, round(self.seconds, 1), round(mean, 4)])
        self.report(
            f"{STAGE} step {self.step} loss {mean:.3f} "
            f"{self.seconds / 60:.1f}/{self.config.minutes:.1f} min"
        )

    def _save_state(self) -> None:
        progress = {"step": self.step, "seconds": self.seconds, "losses": self.losses}
        save_state(self.state_path, self.model, self.average, [self.optimiser], progress)

    def _write(self) -> str:
        """Write the student with this network beside it; its own record stays."""
        record = self.student.record | {
            STAGE: {
                "training": asdict(self.config) | {"out": Path(self.config.out).name},
                "student_sha256": self.student.sha256,
                "data": {shard.name: shard.source_sha256 for shard in self.shards},
                "scenes": len(self.scenes),
                "steps": self.step,
                "seconds": round(self.seconds, 1),
                "losses": self.losses,
                "parameters": parameter_count(self.average),
                "device": device_name(self.device),
                "torch": torch.__version__,
            }
        }
        half = all(
            torch.equal(value, value.half().float())
            for value in self.student.model.state_dict().values()
        )
        return bundle.save(
            Path(self.config.out), self.student.model, record, half, self.average.cpu()
        )


def cut(scene: StructureScene, crop: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
    """Return a random piece of a scene, turned at random as a scan might lie.

    Slices stay slices: thick ones are along the last axis.
    """
    sides = (crop, crop, crop // 2 if scene.thick else crop)
    shape = scene.target.shape
    sizes = [min(side, n) for side, n in zip(sides, shape, strict=True)]
    starts = [int(rng.integers(n - size + 1)) for n, size in zip(shape, sizes, strict=True)]
    box = tuple(slice(at, at + size) for at, size in zip(starts, sizes, strict=True))
    margin = [
        p for side, size in zip(sides[::-1], sizes[::-1], strict=True) for p in (0, side - size)
    ]
    order = [*rng.permutation(2), 2] if scene.thick else list(rng.permutation(3))
    flips = [axis - 3 for axis in range(3) if rng.random() < 0.5]

    def turned(part: Tensor) -> Tensor:
        part = functional.pad(part[(Ellipsis, *box)], margin).flip(flips)
        lead = part.dim() - 3
        return part.permute(*range(lead), *[lead + int(axis) for axis in order])

    told = scene.acquisition.reshape(3, 3)[:, [int(axis) for axis in order]].reshape(-1)
    parts = (scene.target, scene.raised, scene.weight, scene.counts)
    return turned(scene.given), told, *(turned(part) for part in parts)


def train_structures(
    config: StructuresConfig,
    *,
    minutes: float | None = None,
    resume: bool = False,
    device: str = "cpu",
    report: Report = print,
) -> str:
    """Run the stage; return the SHA-256 of the weight file.

    Raises
    ------
    RecipeError
        If there is nothing to learn from, or no state to resume.
    """
    if minutes is not None:
        config = replace(config, minutes=minutes)
    trainer = StructureTrainer(config, device, report)
    if resume:
        if not trainer.state_path.is_file():
            raise RecipeError(f"nothing to resume: there is no {trainer.state_path}")
        trainer.resume()
    return trainer.run()
