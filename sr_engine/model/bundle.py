"""A bundle: one safetensors file with weights, configuration and training record inside.

Nothing is unpickled. The file's SHA-256 is its identity: it goes into UIDs and provenance.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sr_engine.errors import WeightsError
from sr_engine.model.diffusion import ModelConfig, SuperResolver

FORMAT = "dicom-node-sr/1"
WEIGHTS = Path(__file__).parent / "weights"
DEFAULT = "student"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A loaded weight file: `model` is in evaluation mode on the CPU."""

    name: str
    sha256: str
    model: SuperResolver
    record: dict[str, Any]


def resolve(weights: str) -> Path:
    """Return the path that `weights` names: "default", a bundled name, or a file."""
    name = DEFAULT if weights == "default" else weights
    bundled = WEIGHTS / f"{name}.safetensors"
    return bundled if bundled.is_file() else Path(name)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(path: Path, model: SuperResolver, record: dict[str, Any], half: bool = False) -> str:
    """Write `model` and its training `record` to `path`; return the file's SHA-256.

    Parameters
    ----------
    half
        Store float16 tensors: half the size; loading turns them back into float32.
    """
    dtype = torch.float16 if half else torch.float32
    tensors = {k: v.detach().cpu().to(dtype).contiguous() for k, v in model.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(model.config.to_dict(), sort_keys=True),
        "record": json.dumps(record, sort_keys=True),
    }
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata)
    part.replace(path)
    return file_sha256(path)


def load(weights: str | Path = "default", expected_sha256: str | None = None) -> Bundle:
    """Return the bundle of a weight file.

    Raises
    ------
    WeightsError
        If there is no such file, it is no bundle of ours, its tensors do not fit its
        configuration or hold a value that is no number, or its hash is not `expected_sha256`.
    """
    path = resolve(str(weights))
    if not path.is_file():
        raise WeightsError(f"no weight file {path} (bundled: {', '.join(bundled()) or 'none'})")
    sha256 = file_sha256(path)
    if expected_sha256 and sha256 != expected_sha256:
        raise WeightsError(
            f"{path}: SHA-256 is {sha256[:16]}…, the configuration expects {expected_sha256[:16]}…"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: no readable safetensors file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"{path}: format {metadata.get('format')!r}, not {FORMAT!r}")
    try:
        record = json.loads(metadata["record"])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path}: no training record in it") from error
    model = _build(path, metadata, tensors)
    return Bundle(name=path.stem, sha256=sha256, model=model, record=record)


def _build(path: Path, metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> SuperResolver:
    bad = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise WeightsError(f"{path}: tensor {bad[0]} holds a value that is no number")
    try:
        model = SuperResolver(ModelConfig.from_dict(json.loads(metadata["config"])))
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{path}: the tensors do not fit the configuration ({reason})"
        ) from error
    return model.eval()


def bundled() -> list[str]:
    """Return the names of the weight files that came with the package."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
