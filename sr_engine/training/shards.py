"""Shards: what training reads of one volume; torch, numpy and safetensors alone.

A shard holds a volume, cropped to the head, in steps of 1/200 of its brightest tissue, 57 dB below
it, and its mask, both compressed: all of them fit into what travels to a lent machine. Its metadata
hold the source's hash and licence, which travel on into the weight file.
"""

import bz2
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

LEVELS = 200  # steps up to the head's 99.9th percentile
READERS = 8


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One training volume in memory: float16 intensities, head mask, and where it came from."""

    name: str
    volume: Tensor
    mask: Tensor
    whole_head: bool
    source_sha256: str


def write_shard(path: Path, volume: np.ndarray, mask: np.ndarray, meta: dict) -> None:
    """Write a volume, (K, J, I), not negative and 1 at its brightest tissue, with its mask."""
    steps = np.clip(np.rint(volume * LEVELS), 0, 65535).astype("<u2")
    # Low bytes and high bytes apart: the high ones are nearly all zero.
    planes = steps.reshape(-1).view(np.uint8).reshape(-1, 2).T
    tensors = {"volume": _packed(planes), "mask": _packed(np.packbits(mask))}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"shard": json.dumps({**meta, "shape": list(volume.shape)})})


def _packed(array: np.ndarray) -> Tensor:
    return torch.frombuffer(bytearray(bz2.compress(array.tobytes())), dtype=torch.uint8)


def _unpacked(tensor: Tensor) -> np.ndarray:
    return np.frombuffer(bz2.decompress(tensor.numpy().tobytes()), np.uint8)


def read_shard(path: Path) -> Shard:
    """Return the shard of a file that `write_shard` wrote."""
    with safe_open(path, framework="pt") as file:
        meta = json.loads(file.metadata()["shard"])
        planes = _unpacked(file.get_tensor("volume")).reshape(2, -1)
        bits = _unpacked(file.get_tensor("mask"))
    shape, count = meta["shape"], planes.shape[1]
    steps = planes[0] + 256.0 * planes[1].astype(np.float32)
    mask = np.unpackbits(bits, count=count).astype(bool)
    return Shard(
        name=meta["name"],
        volume=torch.from_numpy((steps / np.float32(LEVELS)).reshape(shape)).half(),
        mask=torch.from_numpy(mask.reshape(shape)),
        whole_head=meta["whole_head"],
        source_sha256=meta["source_sha256"],
    )


def shard_paths(folder: Path | str, use: str) -> list[Path]:
    """Return the shards of `folder` for one use, in the order of their names."""
    return sorted((Path(folder) / use).glob("*.safetensors"))


def read_shards(folder: Path | str, use: str = "train") -> list[Shard]:
    """Return all shards of `folder` for one use.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    paths = shard_paths(folder, use)
    if not paths:
        raise FileNotFoundError(f"no shards in {Path(folder) / use}: run `sr-engine pack` first")
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(read_shard, paths))
