"""The commands that measure: evaluate, lesions, real, report."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sr_engine.errors import InputRefused

if TYPE_CHECKING:
    from sr_engine.evaluation.methods import Tools

RESERVED = ("student", "cubic", "zerofill")
INPUTS = "iso2_snr25,iso2_snr0,thick4_snr25,thick4_snr0"


def add_commands(commands) -> None:
    """Add the grammar of the measuring commands."""
    _add_evaluate(commands)
    _add_lesions(commands)
    _add_real(commands)
    _add_report(commands)


def say(line: str) -> None:
    """Print a line at once: a measurement runs for hours."""
    print(line, flush=True)


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=int, default=1, help="network calls a slice [1]")
    command.add_argument("--weights", default="default", help="bundled name or file")
    command.add_argument("--device", default="auto", help="auto, cpu or cuda:N [auto]")


def _add_pages(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--pages", type=Path, help="folder for images of each result: they show a patient's head"
    )


def _add_use(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--use",
        choices=("evaluation", "validation"),
        default="evaluation",
        help="of the manifest's rows; choices are made on validation [evaluation]",
    )


def _add_other_weights(parser) -> None:
    parser.add_argument("--regression", default="", help="weights of the plain regression U-Net")
    parser.add_argument("--teacher", default="", help="weights of the teacher")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="other weights as a method NAME, e.g. a stage of the distillation; repeatable",
    )
    parser.add_argument("--teacher-steps", type=int, default=8, help="[8]")


def _add_evaluate(commands) -> None:
    evaluate = commands.add_parser("evaluate", help="score methods on volumes with a reference")
    evaluate.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    evaluate.add_argument("--out", type=Path, help="report as JSON; rows in it are not made again")
    evaluate.add_argument(
        "--methods",
        default="student,cubic,zerofill",
        help="student, axis0, axis1, axis2, plain-mean, no-consistency, no-noise-reduction, "
        "no-small-structures, no-b, no-g, regression, teacher, cubic, zerofill; student@4: 4 steps",
    )
    evaluate.add_argument("--cases", default="", help="only files whose name holds this text")
    _add_use(evaluate)
    evaluate.add_argument("--contrast", default="T1w", help="T1w, T2w or FLAIR [T1w]")
    evaluate.add_argument(
        "--inputs", default=INPUTS, help="also in mm: iso1.5_snr25, thick5_snr25 (1 x 1 x 5)"
    )
    _add_other_weights(evaluate)
    evaluate.add_argument(
        "--blobs", type=int, default=0, help="plant N blobs a size in each result of the student"
    )
    evaluate.add_argument(
        "--blob-contrast", type=float, default=0.15, help="1: the brightest of the head [0.15]"
    )
    _add_pages(evaluate)
    _add_weights(evaluate)
    evaluate.set_defaults(run=run_evaluate)


def _add_lesions(commands) -> None:
    lesions = commands.add_parser("lesions", help="plant lesions: what is kept, what is invented")
    lesions.add_argument("--data", type=Path, required=True, help="folder with manifest.csv")
    lesions.add_argument("--out", type=Path, help="report as JSON; rows in it are not made again")
    lesions.add_argument("--cases", default="", help="only files whose name holds this text")
    _add_use(lesions)
    lesions.add_argument("--inputs", default="iso2_snr25,thick4_snr25")
    lesions.add_argument("--methods", default="student,cubic")
    _add_other_weights(lesions)
    lesions.add_argument("--count", type=int, default=32, help="lesions a volume [32]")
    lesions.add_argument("--sizes-mm", default="1,2,3,5", help="diameters [1,2,3,5]")
    lesions.add_argument(
        "--lesion-mask", type=Path, help="plant nothing: follow the real lesions of one case"
    )
    lesions.add_argument("--contrast", default="FLAIR", help="of the real lesions' case [FLAIR]")
    _add_weights(lesions)
    lesions.set_defaults(run=run_lesions)


def _add_real(commands) -> None:
    real = commands.add_parser("real", help="noise and sharpness of inputs without a reference")
    real.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        help="NIfTI files, DICOM series, or folders of either",
    )
    real.add_argument(
        "--cases", default="", help="only names that hold one of these, e.g. oasis,ms_"
    )
    real.add_argument("--spacing-mm", type=float, default=0.7, help="target voxel size [0.7]")
    real.add_argument("--out", type=Path, help="report as JSON; rows in it are not made again")
    _add_pages(real)
    _add_weights(real)
    real.set_defaults(run=run_real)


def _add_report(commands) -> None:
    report = commands.add_parser("report", help="tables and plots of measured figures")
    report.add_argument("json", type=Path, nargs="+", help="of evaluate, lesions or real")
    report.add_argument("--out", type=Path, required=True, help="folder for tables.md and plots")
    report.set_defaults(run=run_report)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Score methods against references."""
    from sr_engine.evaluation.evaluate import Extras, evaluate

    methods = arguments.methods.split(",")
    evaluate(
        arguments.data,
        methods=methods,
        inputs=arguments.inputs.split(","),
        tools=_tools(methods, arguments),
        cases=arguments.cases,
        contrast=arguments.contrast,
        use=arguments.use,
        extras=Extras(
            blobs=arguments.blobs, blob_contrast=arguments.blob_contrast, pages=arguments.pages
        ),
        out=arguments.out,
        say=say,
    )


def _tools(methods: list[str], arguments: argparse.Namespace) -> "Tools":
    from sr_engine.evaluation.methods import load_tools

    return load_tools(
        methods,
        weights=arguments.weights,
        others=_other_weights(arguments),
        steps=arguments.steps,
        teacher_steps=arguments.teacher_steps,
        device=arguments.device,
    )


def _other_weights(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the weight files beside the student's by the name of their method."""
    others = {"regression": arguments.regression, "teacher": arguments.teacher}
    for text in arguments.also:
        name, _, file = text.partition("=")
        if not (name and file) or name in RESERVED:
            raise InputRefused(f"--also must read like stage2=FILE with a new name, not {text!r}")
        others[name] = file
    return {name: file for name, file in others.items() if file}


def run_lesions(arguments: argparse.Namespace) -> None:
    """Follow planted or real lesions through degradation and enhancement."""
    from sr_engine.evaluation.lesions import measure_lesions
    from sr_engine.evaluation.real_lesions import measure_real_lesions

    methods = arguments.methods.split(",")
    common = {
        "inputs": arguments.inputs.split(","),
        "methods": methods,
        "tools": _tools(methods, arguments),
        "cases": arguments.cases,
        "out": arguments.out,
        "say": say,
    }
    if arguments.lesion_mask:
        measure_real_lesions(
            arguments.data, arguments.lesion_mask, contrast=arguments.contrast, **common
        )
    else:
        sizes_mm = _numbers("--sizes-mm", arguments.sizes_mm)
        measure_lesions(
            arguments.data, use=arguments.use, count=arguments.count, sizes_mm=sizes_mm, **common
        )


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputRefused(f"{option} must read like 2,3,5, not {text!r}") from None


def run_real(arguments: argparse.Namespace) -> None:
    """Measure noise and sharpness of real series against cubic interpolation."""
    from sr_engine.evaluation.real import measure_real
    from sr_engine.model import bundle
    from sr_engine.recipe import Recipe

    missing = [str(path) for path in arguments.data if not path.exists()]
    if missing:
        raise InputRefused(f"{missing[0]}: no such file or folder")
    measure_real(
        arguments.data,
        bundle.load(arguments.weights),
        cases=arguments.cases.split(","),
        recipe=Recipe(steps=arguments.steps, spacing_mm=arguments.spacing_mm),
        device=arguments.device,
        out=arguments.out,
        pages=arguments.pages,
        say=say,
    )


def run_report(arguments: argparse.Namespace) -> None:
    """Write tables and plots of measured figures."""
    from sr_engine.evaluation.report import write_report

    write_report(arguments.json, arguments.out, say=say)
