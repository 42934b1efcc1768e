"""The checkout itself: what must never be in it, and what must agree with what."""

import ast
import re
import subprocess
import sys
from configparser import ConfigParser
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from dicom_node.settings import load_settings
from sr_engine import __version__

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dicom_node", "sr_engine")
OURS = {*PACKAGES, "benchmarks", "tests"}
BROUGHT_ALONG = {"pydantic_core"}  # by pydantic
# Needed at run time without an import of ours: decoders that pydicom looks up by itself.
PLUGINS = {"pyjpegls", "pylibjpeg", "pylibjpeg-openjpeg", "python-gdcm"}

# One letter of each word stands in brackets, so that this file does not find itself.
FORBIDDEN = {
    "a path of a developer's machine": r"(?<![\w.])/(wor[k]|roo[t]|hom[e]/\w+)/",
    "a registry host": r"py[p]i\.org|python[h]osted\.org|download\.py[t]orch\.org|gh[c]r\.io",
    "unpickling": r"pick[l]e\.load|import pick[l]e|allow_pick[l]e=True|weights_[o]nly=False",
    "unsafe YAML": r"yam[l]\.load\(",
    "a shell for no need": r"shel[l]=True",
}


@cache
def tracked_files() -> tuple[Path, ...]:
    """Return every file that git tracks or would track."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listing.stdout.split("\0") if name]
    return tuple(ROOT / name for name in names if (ROOT / name).is_file())


def texts() -> dict[Path, str]:
    """Return the tracked text files with their contents."""
    found = {}
    for path in tracked_files():
        data = path.read_bytes()
        if b"\0" not in data:
            found[path] = data.decode()
    return found


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_tracked_file_holds(what):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path, text in texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(FORBIDDEN[what], line)
    ]

    assert found == []


def test_only_weights_are_large():
    large = [
        str(path.relative_to(ROOT))
        for path in tracked_files()
        if path.stat().st_size > 2**20 and path.suffix != ".safetensors"
    ]

    assert large == []


@cache
def setup_cfg() -> ConfigParser:
    """Return setup.cfg."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(text: str) -> list[Requirement]:
    """Return the requirements of one setup.cfg option."""
    return [Requirement(line) for line in text.splitlines() if line.strip()]


def base_requirements() -> list[Requirement]:
    """Return what the product needs to run."""
    return requirements(setup_cfg()["options"]["install_requires"])


def extra_requirements(*names: str) -> list[Requirement]:
    """Return what the extras called `names` add; without names: all of them."""
    extras = setup_cfg()["options.extras_require"]
    return [r for name in names or extras for r in requirements(extras[name])]


def pins() -> dict[str, Version]:
    """Return the exact versions of constraints.txt by canonical name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


@pytest.mark.parametrize("requirement", base_requirements() + extra_requirements(), ids=str)
def test_every_requirement_has_a_pin_inside_its_range(requirement):
    pin = pins()[canonicalize_name(requirement.name)]

    assert requirement.specifier.contains(pin)


def third_party_imports(*folders: str) -> set[str]:
    """Return the distributions that the Python files below `folders` import."""
    modules = set()
    for path in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(str(node.module).split(".")[0])
    outside = modules - set(sys.stdlib_module_names) - OURS - BROUGHT_ALONG
    distributions = packages_distributions()
    return {canonicalize_name(distributions.get(name, [name])[0]) for name in outside}


def test_what_is_imported_is_declared():
    needed = base_requirements() + extra_requirements("demo", "report")
    product = {canonicalize_name(r.name) for r in needed}
    tests = {canonicalize_name(r.name) for r in extra_requirements("test")}

    assert third_party_imports(*PACKAGES) - product == set()
    assert third_party_imports("tests", "benchmarks") - product - tests == set()


def test_what_is_declared_is_imported():
    declared = {canonicalize_name(r.name) for r in base_requirements()}

    assert declared - third_party_imports(*PACKAGES) - PLUGINS == set()


def test_every_make_target_is_documented():
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE))
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True).stdout

    assert phony
    assert {target for target in phony if f"make {target} " not in listed} == set()


def test_every_link_between_the_documents_leads_somewhere():
    broken = [
        f"{path.relative_to(ROOT)}: {target}"
        for path, text in texts().items()
        if path.suffix == ".md"
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
        if not (path.parent / target).exists()
    ]

    assert broken == []


def test_the_configuration_in_the_readme_is_accepted(tmp_path):
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "node.toml"
    path.write_text(block)

    assert [peer.name for peer in load_settings(path, {}).peers] == ["scanner", "pacs"]


def test_the_version_is_the_same_everywhere():
    assert setup_cfg()["metadata"]["version"] == "attr: sr_engine.__version__"
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"dicom-node:{__version__}" in (ROOT / "deploy/compose.yml").read_text()


def installed_data() -> set[Path]:
    """Return every file that setup.cfg carries into an installation beside the code."""
    options = setup_cfg()
    found = {
        path
        for globs in options["options.data_files"].values()
        for glob in globs.split()
        for path in ROOT.glob(glob)
    }
    for package, globs in options["options.package_data"].items():
        folder = ROOT.joinpath(*package.split("."))
        found |= {path for glob in globs.split() for path in folder.glob(glob)}
    return found


def test_an_installation_carries_every_data_file():
    folders = [ROOT / name for name in ("config", *PACKAGES)]
    data = {
        path
        for path in tracked_files()
        if path.suffix != ".py" and any(folder in path.parents for folder in folders)
    }

    assert data
    assert data - installed_data() == set()
