"""`sr-engine`: enhance, simulate, pack, train, bench; evaluate, lesions, real, report.

Exit codes: 0 done, 1 the input is at fault, 2 usage, 3 internal failure.
"""

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sr_engine import __version__
from sr_engine.cli import measuring
from sr_engine.errors import EngineError, InputRefused
from sr_engine.recipe import Recipe

NIFTI = (".nii", ".nii.gz")


def is_nifti(path: Path) -> bool:
    """Return whether the name is that of a NIfTI file."""
    return path.name.endswith(NIFTI)


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = argparse.ArgumentParser(prog="sr-engine", description=__doc__.splitlines()[0])
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    _add_enhance(commands)
    _add_simulate(commands)
    _add_training(commands)
    _add_bench(commands)
    measuring.add_commands(commands)
    return top


def _add_enhance(commands) -> None:
    enhance = commands.add_parser("enhance", help="make one series or volume 7T-like")
    enhance.add_argument("input", type=Path, help="folder of one DICOM series, or .nii.gz")
    enhance.add_argument("output", type=Path, help="folder for the derived series, or .nii.gz")
    grid = enhance.add_mutually_exclusive_group()
    grid.add_argument("--spacing-mm", type=float, default=0.7, help="target voxel size [0.7]")
    grid.add_argument("--like", type=Path, help="write on the grid of this .nii.gz")
    enhance.add_argument("--steps", type=int, default=1, help="network calls a slice [1]")
    enhance.add_argument("--device", default="auto", help="auto, cpu or cuda:N [auto]")
    enhance.add_argument("--seed", type=int, default=0)
    enhance.add_argument("--weights", default="default", help="bundled name or file")
    enhance.add_argument("--no-consistency", action="store_true", help="skip the data step")
    enhance.add_argument(
        "--no-noise-reduction",
        action="store_true",
        help="leave the noise that the network left in calm tissue",
    )
    enhance.add_argument(
        "--no-small-structures",
        action="store_true",
        help="let small structures be weaker than they were measured",
    )
    enhance.add_argument(
        "--memory-mib", type=int, default=1024, help="for the network, beside the volumes [1024]"
    )
    enhance.add_argument("--json", action="store_true", help="print one JSON document")
    enhance.set_defaults(run=run_enhance)


def _add_simulate(commands) -> None:
    simulate = commands.add_parser("simulate", help="measure a volume as a scanner would")
    simulate.add_argument("high", type=Path)
    simulate.add_argument("low", type=Path)
    simulate.add_argument(
        "--voxel-mm", default="2x2x2", help="voxel size of the result, e.g. 1x1x4 [2x2x2]"
    )
    simulate.add_argument("--snr", type=float, default=0.0, help="head over noise; 0: none [0]")
    simulate.add_argument("--seed", type=int, default=0)
    simulate.set_defaults(run=run_simulate)


def _add_training(commands) -> None:
    pack = commands.add_parser("pack", help="turn the volumes of a manifest into training shards")
    pack.add_argument("manifest", type=Path)
    pack.add_argument("out", type=Path)
    pack.set_defaults(run=run_pack)
    train = commands.add_parser("train", help="run one training stage")
    train.add_argument("stage", choices=("autoencoder", "teacher", "student"))
    train.add_argument("--config", type=Path, required=True, help="see config/training")
    train.add_argument("--minutes", type=float, help="time budget; overrides the configuration")
    train.add_argument("--resume", action="store_true", help="go on from the saved state")
    train.add_argument("--device", default="auto")
    train.set_defaults(run=run_train)
    average = commands.add_parser("average", help="the mean of the weights of several sittings")
    average.add_argument("out", type=Path, help="weight file to write")
    average.add_argument("files", nargs="+", help="FILE or FILE=SHARE [1]")
    average.set_defaults(run=run_average)


def _add_bench(commands) -> None:
    bench = commands.add_parser("bench", help="time and memory by stage")
    bench.add_argument("--input", type=Path, help="DICOM folder; default: a synthetic head")
    bench.add_argument("--steps", type=int, default=1)
    bench.add_argument("--weights", default="default")
    bench.add_argument("--device", default="auto")
    bench.add_argument("--json", action="store_true")
    bench.set_defaults(run=run_bench)


def progress_printer(quiet: bool) -> Callable[[str, float], None]:
    """Return a progress callback: one line on stderr that is rewritten; nothing when quiet."""
    if quiet or not sys.stderr.isatty():
        return lambda stage, share: None

    def show(stage: str, share: float) -> None:
        end = "\n" if share >= 1 else ""
        print(f"\r{stage:<14} {100 * share:5.1f} %", end=end, file=sys.stderr, flush=True)

    return show


def run_enhance(arguments: argparse.Namespace) -> None:
    """Enhance a DICOM folder or a NIfTI file."""
    from sr_engine.model import bundle

    recipe = Recipe(
        spacing_mm=arguments.spacing_mm,
        steps=arguments.steps,
        seed=arguments.seed,
        data_consistency=not arguments.no_consistency,
        reduce_noise=not arguments.no_noise_reduction,
        keep_small_structures=not arguments.no_small_structures,
    )
    if not arguments.input.exists():
        raise InputRefused(f"{arguments.input}: no such file or folder")
    weights = bundle.load(arguments.weights)
    run = _enhance_nifti if is_nifti(arguments.input) else _enhance_series
    summary = run(arguments, recipe, weights)
    if arguments.json:
        print(json.dumps(summary, indent=1))
    else:
        verdict = "PASS" if summary["passed"] else "HOLD: " + "; ".join(summary["findings"])
        print(f"{summary['output']}  {verdict}")


def _enhance_nifti(arguments: argparse.Namespace, recipe: Recipe, weights) -> dict:
    from sr_engine.nifti import read_nifti, write_nifti
    from sr_engine.physics.resample import grid_like
    from sr_engine.pipeline import acquired_of_volume, enhance_volume

    volume = read_nifti(arguments.input)
    like = None
    if arguments.like:
        reference = read_nifti(arguments.like)
        like = grid_like(reference.affine, reference.array.shape)
    result = enhance_volume(
        volume,
        acquired_of_volume(volume),
        recipe,
        weights,
        like=like,
        device=arguments.device,
        memory_mib=arguments.memory_mib,
        progress=progress_printer(arguments.json),
    )
    write_nifti(arguments.output, result.volume)
    return _summary(arguments.output, result.report, result.stages)


def _enhance_series(arguments: argparse.Namespace, recipe: Recipe, weights) -> dict:
    from sr_engine.dicom.writer import JobIdentity
    from sr_engine.pipeline import enhance

    arguments.output.mkdir(parents=True, exist_ok=True)
    result = enhance(
        sorted(p for p in arguments.input.rglob("*") if p.is_file()),
        arguments.output,
        recipe=recipe,
        job=JobIdentity(job_id="cli", created=datetime.now(UTC)),
        bundle=weights,
        device=arguments.device,
        memory_mib=arguments.memory_mib,
        progress=progress_printer(arguments.json),
    )
    summary = _summary(arguments.output, result.report, result.stages)
    return summary | {
        "series_uid": result.written.series_uid,
        "instances": len(result.written.paths),
    }


def _summary(output: Path, report, stages) -> dict:
    return {
        "output": str(output),
        "passed": report.passed,
        "findings": list(report.findings),
        "figures": report.figures,
        "seconds": stages.seconds,
        "cpu_seconds": stages.cpu_seconds,
        "peak_mib": stages.peak_mib,
    }


def run_simulate(arguments: argparse.Namespace) -> None:
    """Degrade a NIfTI volume."""
    from sr_engine.training.degrade import degrade_file

    degrade_file(
        arguments.high,
        arguments.low,
        voxel_mm=_voxel(arguments.voxel_mm),
        snr=arguments.snr,
        seed=arguments.seed,
    )


def _voxel(text: str) -> tuple[float, float, float]:
    try:
        i, j, k = (float(part) for part in text.split("x"))
    except ValueError:
        raise InputRefused(f"--voxel-mm must read like 1x1x4, not {text!r}") from None
    return i, j, k


def run_pack(arguments: argparse.Namespace) -> None:
    """Write training shards."""
    from sr_engine.training.pack import pack

    pack(arguments.manifest, arguments.out, lambda line: print(line, flush=True))


def run_average(arguments: argparse.Namespace) -> None:
    """Average weight files."""
    from sr_engine.training.average import average

    pairs = [text.rpartition("=") if "=" in text else (text, "", "1") for text in arguments.files]
    try:
        shares = [float(share) for _, _, share in pairs]
    except ValueError as error:
        raise InputRefused(f"FILE=SHARE with a number, please: {error}") from error
    print(average([Path(file) for file, _, _ in pairs], shares, arguments.out))


def run_train(arguments: argparse.Namespace) -> None:
    """Run one training stage."""
    from sr_engine.model.run import choose_device
    from sr_engine.training.train import TrainConfig, train

    config = TrainConfig.read(arguments.config)
    if config.stage != arguments.stage:
        raise InputRefused(f"{arguments.config} is of stage {config.stage}, not {arguments.stage}")
    sha256 = train(
        config,
        minutes=arguments.minutes,
        resume=arguments.resume,
        device=str(choose_device(arguments.device)),
        report=lambda line: print(line, flush=True),
    )
    print(f"{config.out}  sha256 {sha256}")


def run_bench(arguments: argparse.Namespace) -> None:
    """Time one job by stage."""
    from sr_engine.bench import bench, table

    report = bench(
        arguments.input,
        steps=arguments.steps,
        weights=arguments.weights,
        device=arguments.device,
        progress=progress_printer(arguments.json),
    )
    print(json.dumps(report, indent=1) if arguments.json else table(report))


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except EngineError as error:
        print(f"sr-engine: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, MemoryError) as error:
        print(f"sr-engine: {type(error).__name__}: {error}", file=sys.stderr)
        return 3
    return 0
