"""The house's floors: who may import whom (design section 2, docs/architecture.md)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Top floor first; imports run strictly downward. Rooms on one floor do not know each other.
LEVELS = {
    "dicom_node": (
        ("cli",),
        ("demo",),
        ("service",),
        ("web", "housekeeping", "conformance", "performer"),
        ("worker", "sender", "pull"),
        ("release_gate", "retention", "withdrawal"),
        ("gate_companions", "gate_spread"),
        ("gate_rules", "gate_pixels", "gate_multiframe"),
        ("gate_frames",),
        ("gate_case",),
        ("gate_geometry",),
        ("assembly", "network"),
        ("intake", "sending"),
        ("store",),
        ("examination", "comparison", "corrections", "rejection_notes", "loops"),
        ("headers",),
        ("content", "pixel_files", "telemetry", "signing", "certificates"),
        ("settings", "elements", "together", "private_values", "multipart"),
        ("rules", "states", "retry", "order", "bombs", "syntaxes"),
        ("errors", "edges", "heaps", "brief_calls"),
    ),
    "sr_engine": (
        ("cli",),
        ("bench", "training", "evaluation"),
        ("pipeline",),
        ("inference", "quality", "fusion", "dicom", "nifti"),
        ("slices",),
        ("model", "physics"),
        ("recipe", "timing", "threads"),
        ("errors",),
    ),
}

# The doors from the service to the engine: what a module may import there, and when.
DOORS = {
    "dicom_node.assembly.geometry": {"sr_engine.dicom.sorting"},
    "dicom_node.assembly.parts": {"sr_engine.dicom.sorting"},
    "dicom_node.assembly.summary": {"sr_engine.dicom.sorting"},
    "dicom_node.bombs": {"sr_engine.dicom.padding"},
    "dicom_node.cli": {"sr_engine", "sr_engine.errors"},
    "dicom_node.cli.origin": {
        "sr_engine.dicom.provenance",
        "sr_engine.dicom.seal",
        "sr_engine.errors",
    },
    "dicom_node.elements": {"sr_engine.dicom.padding"},
    "dicom_node.gate_case": {"sr_engine.dicom.provenance"},
    "dicom_node.gate_companions": {"sr_engine.dicom.provenance", "sr_engine.errors"},
    "dicom_node.gate_pixels": {"sr_engine.dicom.provenance", "sr_engine.errors"},
    "dicom_node.gate_rules": {"sr_engine.dicom.provenance", "sr_engine.errors"},
    "dicom_node.release_gate": {"sr_engine.dicom.provenance", "sr_engine.dicom.sorting"},
    "dicom_node.settings": {"sr_engine.recipe"},
    "dicom_node.settings.sections": {"sr_engine.recipe", "sr_engine.errors"},
    "dicom_node.worker": {"sr_engine.errors", "sr_engine.recipe"},
    "dicom_node.worker.orders": {"sr_engine.dicom.kinds", "sr_engine.errors"},
    "dicom_node.worker.readiness": {"sr_engine.errors"},
    "dicom_node.worker.outputs": {"sr_engine.dicom.kinds", "sr_engine.dicom.provenance"},
}
LAZY_DOORS = {
    "dicom_node.worker",
    "dicom_node.worker.weights",
    "dicom_node.demo",
    "dicom_node.conformance.services",
}  # any engine module, inside a function

# Third parties stay in few files.
CONFINED = {
    "pynetdicom": ("dicom_node.network",),
    "httpx": ("dicom_node.network",),
    "sqlalchemy": ("dicom_node.store",),
    "alembic": ("dicom_node.store",),
    "apscheduler": ("dicom_node.housekeeping",),
    "starlette": ("dicom_node.web",),
    "uvicorn": ("dicom_node.web", "dicom_node.service"),
    "structlog": ("dicom_node.telemetry",),
    "cryptography": ("dicom_node.signing", "dicom_node.certificates"),
    "prometheus_client": ("dicom_node.telemetry", "dicom_node.web"),
    "pydantic": ("dicom_node.settings", "dicom_node.web"),
    "torch": (
        "sr_engine.model",
        "sr_engine.slices",
        "sr_engine.inference",
        "sr_engine.training",
        "sr_engine.bench",
    ),
    "safetensors": ("sr_engine.model", "sr_engine.training"),
    "SimpleITK": ("sr_engine.physics",),
    "highdicom": ("sr_engine",),
    "nibabel": ("sr_engine",),
    "matplotlib": ("sr_engine.evaluation",),
}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import statement: `importer` asks for `imported` in line `line`."""

    importer: str
    imported: str
    line: int
    lazy: bool  # inside a function
    typing_only: bool  # under ``if TYPE_CHECKING``

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(path: Path) -> str:
    """Return the dotted name of the file at `path`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    """Return True when `name` is a module or package of this tree."""
    place = ROOT.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def imported_names(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules that the statement `node`, standing in `package`, asks for."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parents, node.module or ""]).strip(".") if node.level else node.module
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            yield whole if is_module(whole) else str(base)


def walk(node: ast.AST, lazy: bool, typing_only: bool) -> Iterator[tuple[ast.AST, bool, bool]]:
    """Yield every node below `node` and whether it runs late or never."""
    for child in ast.iter_child_nodes(node):
        late = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        never = typing_only or (
            isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        )
        yield child, late, never
        yield from walk(child, late, never)


@cache
def all_imports() -> tuple[Import, ...]:
    """Return every import statement of the two packages."""
    found = []
    for path in sorted(file for top in LEVELS for file in (ROOT / top).rglob("*.py")):
        name = module_name(path)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node, lazy, typing_only in walk(ast.parse(path.read_text()), False, False):
            found += [
                Import(
                    importer=name,
                    imported=imported,
                    line=node.lineno,
                    lazy=lazy,
                    typing_only=typing_only,
                )
                for imported in imported_names(node, package)
            ]
    return tuple(found)


def within(name: str, *packages: str) -> bool:
    """Return True when `name` is one of `packages` or inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def room(name: str) -> str:
    """Return the second part of a dotted name: the room the module stands in."""
    return name.split(".")[1] if "." in name else ""


def floor(name: str) -> int:
    """Return the height of the module's floor; 0 is the lowest, -1 the package itself."""
    rooms = LEVELS[name.split(".")[0]]
    heights = [len(rooms) - 1 - i for i, names in enumerate(rooms) if room(name) in names]
    return heights[0] if heights else -1


def test_every_room_stands_on_a_floor():
    homeless = {
        name
        for top in LEVELS
        for name in map(module_name, (ROOT / top).rglob("*.py"))
        if "." in name and floor(name) < 0
    }

    assert not homeless


@pytest.mark.parametrize("top", LEVELS)
def test_imports_run_strictly_downward(top):
    inside = [i for i in all_imports() if within(i.importer, top) and within(i.imported, top)]
    upward = [
        str(i)
        for i in inside
        if room(i.importer) != room(i.imported) and floor(i.importer) <= floor(i.imported)
    ]

    assert inside
    assert not upward


def test_the_engine_never_imports_the_service():
    assert not [
        str(i)
        for i in all_imports()
        if within(i.importer, "sr_engine") and within(i.imported, "dicom_node")
    ]


def test_the_service_reaches_the_engine_only_through_its_doors():
    forced = [
        str(i)
        for i in all_imports()
        if within(i.importer, "dicom_node")
        and within(i.imported, "sr_engine")
        and not i.typing_only
        and i.imported not in DOORS.get(i.importer, ())
        and not (i.lazy and i.importer in LAZY_DOORS)
    ]

    assert not forced


@pytest.mark.parametrize("library", CONFINED)
def test_a_third_party_stays_in_few_files(library):
    strays = [
        str(i)
        for i in all_imports()
        if within(i.imported, library) and not within(i.importer, *CONFINED[library])
    ]

    assert not strays


def run_python(source: str) -> subprocess.CompletedProcess:
    """Run `source` in a fresh interpreter, in the root of the tree."""
    return subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("module", ["dicom_node.service", "dicom_node.cli", "dicom_node.worker"])
def test_the_service_starts_without_torch(module):
    heavy = ("torch", "SimpleITK", "nibabel")

    result = run_python(f"import sys, {module}; print([n for n in {heavy} if n in sys.modules])")

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


# What torch itself drags in is torch's business; only an import that this tree asks for counts.
BARE_MACHINE = """
import builtins, importlib, sys

ALLOWED = {"torch", "numpy", "scipy", "safetensors", "sr_engine", *sys.stdlib_module_names}
real_import = builtins.__import__


def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    asker = (globals or {}).get("__name__", "")
    if level == 0 and asker.startswith("sr_engine") and name.split(".")[0] not in ALLOWED:
        raise ImportError(f"{asker} asks for {name}, which a bare GPU machine does not have")
    return real_import(name, globals, locals, fromlist, level)


builtins.__import__ = guarded
for module in MODULES:
    importlib.import_module(module)
"""


def bare_modules() -> list[str]:
    """Return the modules that must run where only torch, numpy and safetensors are."""
    model = [module_name(path) for path in sorted((ROOT / "sr_engine/model").glob("*.py"))]
    training = [f"sr_engine.training.{name}" for name in ("dataset", "train", "distill")]
    return model + training


def test_model_and_training_import_only_what_a_bare_gpu_machine_has():
    result = run_python(f"MODULES = {bare_modules()!r}\n{BARE_MACHINE}")

    assert result.returncode == 0, result.stderr


def test_model_and_training_have_no_late_import_of_anything_else():
    allowed = {"torch", "numpy", "scipy", "safetensors", "sr_engine", *sys.stdlib_module_names}
    strays = [
        str(i)
        for i in all_imports()
        if i.importer in bare_modules() and i.imported.split(".")[0] not in allowed
    ]

    assert not strays
