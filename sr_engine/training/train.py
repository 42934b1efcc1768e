"""The three training stages: autoencoder, teacher, student.

Every stage is resumable, has a budget in minutes, and writes its record (data hashes,
configuration, losses, wall time, device) into the weight file.
"""

import copy
import json
import math
import platform
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from sr_engine.errors import RecipeError
from sr_engine.model import bundle
from sr_engine.model.diffusion import (
    Condition,
    ModelConfig,
    SuperResolver,
    loss_weight,
    parameter_count,
    sample_sigma,
)
from sr_engine.model.unet import ResidualBlock
from sr_engine.training.checkpoint import load_state, save_state
from sr_engine.training.dataset import Batch, SlicePool
from sr_engine.training.distill import Distiller
from sr_engine.training.feed import FedPool
from sr_engine.training.grow import from_one_level, grow
from sr_engine.training.muon import Muon, is_matrix
from sr_engine.training.shards import read_shards, shard_paths

Report = Callable[[str], None]
STAGES = ("autoencoder", "teacher", "student")
AVERAGE_HALF_LIFE_STEPS = 300
CLIP_NORM = 1.0
SPEAK_EVERY_S, KEEP_EVERY_S = 20.0, 200.0
COMPILED_SHAPES = 64  # of one block, before torch gives up compiling
VALIDATION_SCENES, VALIDATION_CROPS, VALIDATION_CROP, VALIDATION_SEED = 12, 192, 64, 5


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One stage, as a file of config/training holds it."""

    stage: str
    data: str  # folder of shards, see training/pack.py
    out: str  # weight file to write; its training state lies beside it
    minutes: float = 60.0
    batch: int = 16
    crop: int = 64
    scenes: int = 8
    refresh_every: int = 50
    learning_rate: float = 6e-4  # of AdamW: embeddings, biases, thin layers
    matrix_learning_rate: float = 0.015  # of Muon: convolutions
    warm_up_steps: int = 300
    seed: int = 1
    codec: str = ""  # weight file whose autoencoder is taken over, frozen
    initial: str = ""  # weight file of the same or narrower networks to start from; empty: random
    one_level: bool = False  # `initial` knows the sampler's first state only: the others start so
    teacher: str = ""  # student: weight file to distil from; empty: from the data alone
    distill_steps: tuple[int, ...] = (4, 2, 1)  # teacher steps are halved stage by stage
    distill_share: float = 1.0  # of a batch: what the teacher is asked about; it costs most
    distill_weight: float = 0.5
    feature_weight: float = 0.05
    first_share: float = 0.5  # of a batch: starts where the sampler does, at zero
    trajectory_share: float = 0.3  # of a batch: lies on the sampler's own path; the rest is noised
    lesion_weight: float = 3.0  # added to the weight of a planted lesion's samples
    half: bool = False  # convolutions in bfloat16: for processors that have such instructions
    compiled: bool = False  # blocks through torch.compile: for GPUs, costs a minute at the start
    workers: int = 0  # processes that simulate scenes; 0: the training does it in between
    last_share: float = 0.02  # of the learning rates, at the end: high where a stage goes on
    model: ModelConfig = field(default_factory=ModelConfig)

    @classmethod
    def read(cls, path: Path) -> "TrainConfig":
        """Return the configuration of a TOML file.

        Raises
        ------
        RecipeError
            If a key is unknown, the stage is none of STAGES, or the file is no TOML.
        """
        try:
            values = tomllib.loads(path.read_text())
            model = ModelConfig.from_dict({"widths": (32, 64, 128), **values.pop("model", {})})
            if "distill_steps" in values:
                values["distill_steps"] = tuple(values["distill_steps"])
            config = cls(model=model, **values)
        except (TypeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"{path}: {error}") from error
        if config.stage not in STAGES:
            raise RecipeError(f"{path}: stage must be one of {STAGES}, not {config.stage!r}")
        return config


class Trainer:
    """One stage from its start, or its saved state, to its weight file."""

    def __init__(self, config: TrainConfig, device: str, report: Report) -> None:
        self.config, self.device, self.report = config, torch.device(device), report
        torch.manual_seed(config.seed)
        self.model = SuperResolver(config.model)
        self.earlier: dict[str, object] = {}
        if config.initial:
            start = bundle.load(config.initial)
            if config.one_level:
                from_one_level(start.model)
            self.model.load_state_dict(grow(start.model, config.model).state_dict())
            self.earlier = {"sha256": start.sha256, "record": start.record}
        elif config.codec:
            self.model.codec.load_state_dict(bundle.load(config.codec).model.codec.state_dict())
        self.model.to(self.device, memory_format=torch.channels_last)
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.trained = list(self._trained_parameters())
        self.optimisers = build_optimisers(self.trained, config)
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)  # not after hours of training
        self.shards = read_shards(config.data)
        self.distiller = Distiller.build(config, self.model, self.device)
        self.step, self.seconds, self.scenes = 0, 0.0, 0
        self.losses: list[list[float]] = []
        self.unseen = self._validation_batch()
        self.generator = torch.Generator(self.device).manual_seed(config.seed)

    def _trained_parameters(self):
        for name, parameter in self.model.named_parameters():
            in_codec = name.startswith("codec.")
            wanted = in_codec == (self.config.stage == "autoencoder")
            parameter.requires_grad_(wanted)
            if wanted:
                yield parameter

    def _validation_batch(self) -> Batch | None:
        """Return the same crops of unseen volumes for every run; None without such shards."""
        if self.config.stage == "autoencoder" or not shard_paths(self.config.data, "validation"):
            return None
        pool = SlicePool(
            read_shards(self.config.data, "validation"),
            context=self.config.model.context,
            crop=VALIDATION_CROP,
            scenes=VALIDATION_SCENES,
            seed=VALIDATION_SEED,
            device=self.device,
        )
        return pool.batch(VALIDATION_CROPS)

    def _pool(self) -> SlicePool:
        options = {
            "context": self.config.model.context,
            "crop": self.config.crop,
            "scenes": self.config.scenes,
            "seed": self.config.seed + self.step,
            "device": self.device,
        }
        if self.config.workers:
            return FedPool(self.shards, workers=self.config.workers, **options)
        return SlicePool(self.shards, **options)

    @property
    def state_path(self) -> Path:
        """Where the resumable state lies."""
        return Path(self.config.out).with_suffix(".state.safetensors")

    @property
    def out_name(self) -> str:
        """Return the name of the weight file: its folder is a matter of the machine."""
        return Path(self.config.out).name

    def resume(self) -> None:
        """Go on where the saved state ended."""
        progress = load_state(self.state_path, self.model, self.average, self.optimisers)
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.losses = progress["losses"]
        self.report(f"resumed at step {self.step}, {self.seconds / 60:.1f} min")

    def run(self) -> str:
        """Train until the budget is spent; return the SHA-256 of the weight file."""
        config = self.config
        started, before = time.monotonic(), self.seconds
        pool = self._pool()
        if config.compiled:
            compile_blocks(self.model)
        budget, stage = config.minutes * 60, None
        spoken, kept, recent = started - SPEAK_EVERY_S, started, []
        try:
            while self.seconds < budget:
                if self.step % config.refresh_every == 0:
                    pool.refresh()
                recent.append(self._update(pool.batch(config.batch), self.seconds / budget))
                self.step += 1
                now = time.monotonic()
                self.seconds, self.scenes = before + now - started, pool.replaced
                if now - spoken > SPEAK_EVERY_S:
                    self._tell(recent, budget, now - spoken)
                    spoken, recent = now, []
                if now - kept > KEEP_EVERY_S:
                    kept = now
                    self._save_state()
                    self.write()
                if self.distiller is not None:
                    stage = self._keep_stage(stage)
        finally:
            pool.close()
        self._save_state()
        return self.write()

    def _keep_stage(self, before: int | None) -> int | None:
        """Keep the weights of a stage of the distillation that ends; return the stage."""
        assert self.distiller is not None
        progress = self.seconds / (self.config.minutes * 60)
        now = self.distiller.steps_at(progress) if progress < 1 else None
        if before is not None and now not in (before, None):
            self.write(Path(self.config.out).with_suffix(f".steps{before}.safetensors"))
        return now

    def _tell(self, recent: list[Tensor], budget: float, seconds: float) -> None:
        mean = float(torch.stack(recent).mean())
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean} before step {self.step}")
        row, unseen = [self.step, round(self.seconds, 1), round(mean, 5)], ""
        if self.unseen is not None:
            gain = first_step_gain_db(self.average, self.unseen)
            row.append(round(gain, 4))
            unseen = f"validation {gain:+.3f} dB "
        self.losses.append(row)
        self.report(
            f"{self.config.stage} step {self.step} loss {mean:.4f} {unseen}"
            f"{self.seconds / 60:.1f}/{budget / 60:.1f} min, "
            f"{len(recent) * self.config.batch / seconds:.0f} crops/s, {self.scenes} scenes"
        )

    def _update(self, batch: Batch, progress: float) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.half):
            loss = self._loss(batch, progress)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, CLIP_NORM)
        share = self._learning_rate(progress)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["initial_lr"] * share
            optimiser.step()
        decay = 0.5 ** (1 / min(AVERAGE_HALF_LIFE_STEPS, 1 + self.step / 4))
        with torch.no_grad():
            kept, new = list(self.average.parameters()), list(self.model.parameters())
            torch._foreach_lerp_(kept, new, 1 - decay)
        return loss.detach()  # not read here: the device need not wait for this process

    def _learning_rate(self, progress: float) -> float:
        """Return the share of the configured rates: a ramp, then half a cosine."""
        warm = min(1.0, (self.step + 1) / self.config.warm_up_steps)
        last = self.config.last_share
        return warm * (last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))

    def _loss(self, batch: Batch, progress: float) -> Tensor:
        if self.config.stage == "autoencoder":
            return self.model.codec.detail_energy(batch.high)
        if self.distiller is not None:
            return self.distiller.loss(self.model, batch, progress, self.generator)
        return denoising_loss(self.model, batch, self.config, self.generator)

    def _refuse_no_numbers(self) -> None:
        """Raise FloatingPointError where a weight is no number: nothing good is overwritten."""
        if not all(bool(torch.isfinite(weight).all()) for weight in self.average.parameters()):
            raise FloatingPointError(f"weights are no numbers at step {self.step}")

    def _save_state(self) -> None:
        self._refuse_no_numbers()
        progress = {"step": self.step, "seconds": self.seconds, "losses": self.losses}
        save_state(self.state_path, self.model, self.average, self.optimisers, progress)

    def write(self, path: Path | None = None) -> str:
        """Write the averaged weights with their record; return the file's SHA-256."""
        self._refuse_no_numbers()
        record = {
            "stage": self.config.stage,
            "training": json.loads(json.dumps(asdict(self.config))) | {"out": self.out_name},
            "data": {shard.name: shard.source_sha256 for shard in self.shards},
            "steps": self.step,
            "scenes": self.scenes,
            "seconds": round(self.seconds, 1),
            "losses": self.losses,
            "parameters": parameter_count(self.model),
            "device": device_name(self.device),
            "torch": torch.__version__,
            "initial": self.earlier,
            "teacher_sha256": self.distiller.teacher_sha256 if self.distiller else "",
        }
        return bundle.save(path or Path(self.config.out), self.average, record, self.config.half)


def build_optimisers(parameters: list[Tensor], config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for the convolutions and AdamW for all else, each knowing its first rate."""
    matrices = [p for p in parameters if is_matrix(p)]
    others = [p for p in parameters if not is_matrix(p)]
    found: list[torch.optim.Optimizer] = []
    if matrices:
        found.append(Muon(matrices, lr=config.matrix_learning_rate))
    if others:
        found.append(
            torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
        )
    for optimiser in found:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return found


def device_name(device: torch.device) -> str:
    """Return the name of the processor for the training record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def compile_blocks(model: SuperResolver) -> None:
    """Have torch compile every residual block, for the shapes that it meets."""
    torch._dynamo.config.recompile_limit = COMPILED_SHAPES
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            block.compile(dynamic=False)


def denoising_loss(
    model: SuperResolver, batch: Batch, config: TrainConfig, generator: torch.Generator
) -> Tensor:
    """Return the denoising loss of a batch, each crop weighted by how hard its scene is.

    A share of the batch starts where the product's sampler does (zero at sigma_max, temperature
    0), another share lies on the path from there; only the rest is noise around the truth. What
    the product runs is what is trained. Dividing by the error of the whole scene makes the loss of
    a scene its relative squared error, whose logarithm is the gain in dB.

    Source: Karras 2022, equation 2 with the weights of table 1.
    """
    device = batch.high.device
    with torch.autocast(device.type, enabled=False):
        clean = model.residual(batch.high, batch.condition.slices)
    count = len(clean)
    latent = model.condition(batch.condition.slices)
    first = int(config.first_share * count)
    own = slice(first, first + int(config.trajectory_share * count))
    sigma = sample_sigma(model.config, count, generator)
    sigma[:first] = model.config.sigma_max
    noise = torch.randn(clean.shape, generator=generator, device=device)
    noised = clean + sigma[:, None, None, None] * noise
    noised[:first] = 0
    if own.stop > own.start:
        noised[own] = own_path(model, sigma[own], latent[own], batch.condition[own])
    weight = loss_weight(sigma)
    weight[: own.stop] = 1.0  # the state's error does not shrink with sigma there
    estimate = model.denoise(noised, sigma, latent, batch.condition)
    weight = weight * (1 + config.lesion_weight * batch.planted)
    return (weight * (estimate - clean).square() / hardness(model, batch)).mean()


def hardness(model: SuperResolver, batch: Batch) -> Tensor:
    """Return the expected square (B, 1, 1, 1) of a crop's clean residual, with a floor."""
    return (batch.error / model.config.residual_std**2 + 0.05)[:, None, None, None]


@torch.no_grad()
def first_step_gain_db(model: SuperResolver, batch: Batch) -> float:
    """Return by how much one network call lowers the error of interpolation, mean in dB."""
    clean = model.residual(batch.high, batch.condition.slices)
    sigma = clean.new_full((len(clean),), model.config.sigma_max)
    latent = model.condition(batch.condition.slices)
    estimate = model.denoise(torch.zeros_like(clean), sigma, latent, batch.condition)
    before, after = (x.square().mean(dim=(1, 2, 3)) for x in (clean, estimate - clean))
    return float(10 * torch.log10(before / after).mean())


def own_path(model: SuperResolver, sigma: Tensor, latent: Tensor, condition: Condition) -> Tensor:
    """Return where one Euler step from zero at sigma_max to `sigma` leads: (B, 4, h, w)."""
    top = torch.full_like(sigma, model.config.sigma_max)
    zero = torch.zeros(len(sigma), 4, *latent.shape[2:], device=latent.device)
    with torch.no_grad():
        first = model.denoise(zero, top, latent, condition)
    return (1 - sigma / top)[:, None, None, None] * first


def train(
    config: TrainConfig,
    *,
    minutes: float | None = None,
    resume: bool = False,
    device: str = "cpu",
    report: Report = print,
) -> str:
    """Run one stage; return the SHA-256 of the weight file that it wrote."""
    if minutes is not None:
        config = replace(config, minutes=minutes)
    trainer = Trainer(config, device, report)
    report(
        f"{config.stage}: {parameter_count(trainer.model)} parameters, {len(trainer.shards)} "
        f"volumes, {config.minutes:g} min on {device_name(trainer.device)}"
    )
    if resume and trainer.state_path.is_file():
        trainer.resume()
    return trainer.run()
