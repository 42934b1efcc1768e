"""What the bare network costs: counted, timed, and set against a device's published peak.

``python -m sr_engine.model.speed --device cuda:0`` needs torch, numpy and safetensors alone.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from sr_engine.model import bundle
from sr_engine.model.autoencoder import FACTOR
from sr_engine.model.diffusion import Condition, SuperResolver
from sr_engine.model.run import Replayed, Sampling, can_replay, choose_device, predict_slices
from sr_engine.model.unet import ACQUISITION_FIELDS, G_CHANNELS

SLICE = 256  # side of the slice whose multiply-accumulates are counted
TIMED = 4  # batches an axis
WHOLE_HEAD = "258x320x320"  # 180 x 224 x 224 mm at 0.7 mm


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a device does at most, by its data sheet: bfloat16 without sparsity, memory."""

    flop_per_s: float
    bytes_per_s: float


# NVIDIA's data sheets of the SXM modules.
PEAKS = {
    "H100": Peak(flop_per_s=989e12, bytes_per_s=3.35e12),
    "H200": Peak(flop_per_s=989e12, bytes_per_s=4.8e12),
}


# Under inference_mode a convolution is seen before it is taken apart, otherwise after.
CONVOLUTIONS = (
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv_transpose2d.input,
    torch.ops.aten.convolution.default,
)


class TrafficCounter(TorchDispatchMode):
    """Adds up the bytes that convolutions read and write, as if all else were fused into them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in CONVOLUTIONS:
            moved = [part for part in (*args, out) if isinstance(part, torch.Tensor)]
            self.bytes += sum(part.numel() * part.element_size() for part in moved)
        return out


def blank_condition(
    model: SuperResolver, height: int, width: int, device: torch.device, count: int = 1
) -> Condition:
    """Return the condition of featureless slices, their sides padded to the network's multiple."""
    multiple = model.config.multiple
    rows, columns = height + -height % multiple, width + -width % multiple
    half = rows // FACTOR, columns // FACTOR
    return Condition(
        slices=torch.zeros(count, 2 * model.config.context + 1, rows, columns, device=device),
        b=torch.zeros(count, 1, *half, device=device),
        g=torch.zeros(count, G_CHANNELS, *half, device=device),
        acquisition=torch.zeros(count, len(ACQUISITION_FIELDS), device=device),
    )


def macs_per_slice(
    model: SuperResolver, steps: int, sides: tuple[int, int] = (SLICE, SLICE)
) -> int:
    """Return the multiply-accumulates of one slice through the whole network."""
    place = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter:
        predict_slices(model, blank_condition(model, *sides, place), steps=steps)
    return int(counter.get_total_flops()) // 2


def bytes_per_slice(model: SuperResolver, steps: int, sides: tuple[int, int]) -> int:
    """Return the bytes that the convolutions of one slice move in bfloat16, see TrafficCounter."""
    place = next(model.parameters()).device
    with TrafficCounter() as counter:
        predict_slices(model, blank_condition(model, *sides, place), steps=steps)
    return counter.bytes // 2  # counted in float32


def roofline(model: SuperResolver, shape: tuple[int, ...], steps: int) -> dict:
    """Return what a volume costs along three axes, and the time that the peaks would allow.

    Computed, not measured: every slice whole, air and all.
    """
    macs = moved = 0
    for axis, count in enumerate(shape):
        height, width = (n for a, n in enumerate(shape) if a != axis)
        macs += count * macs_per_slice(model, steps, (height, width))
        moved += count * bytes_per_slice(model, steps, (height, width))
    least = {
        name: float(f"{max(2 * macs / peak.flop_per_s, moved / peak.bytes_per_s):.3g}")
        for name, peak in PEAKS.items()
    }
    return {
        "macs": macs,
        "bytes": moved,
        "flop_per_byte": round(2 * macs / moved, 1),
        "least_seconds_computed": least,
    }


def volume_seconds(
    run: Callable[[Condition], object],
    model: SuperResolver,
    shape: tuple[int, ...],
    device: torch.device,
    *,
    batch: int = 1,
    timed: int = TIMED,
) -> float:
    """Return what `run` takes for every slice of the three axes of a volume of `shape`.

    A few batches an axis are timed after one to warm up, and multiplied.
    """
    total = 0.0
    for axis, count in enumerate(shape):
        height, width = (n for a, n in enumerate(shape) if a != axis)
        condition = blank_condition(model, height, width, device, batch)
        run(condition)
        _wait(device)
        begun = time.perf_counter()
        for _ in range(timed):
            run(condition)
        _wait(device)
        total += count * (time.perf_counter() - begun) / (timed * batch)
    return total


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ways(
    model: SuperResolver, device: torch.device, steps: int
) -> dict[str, Callable[[Condition], object]]:
    """Return the ways to run the network, the plain one first."""
    runs: dict[str, Callable[[Condition], object]] = {
        "float32": lambda given: predict_slices(model, given, steps=steps),
        "bfloat16": lambda given: predict_slices(model, given, steps=steps, half=True),
    }
    if can_replay(device):
        graphs: dict[tuple[int, ...], Replayed] = {}

        def replay(given: Condition) -> object:
            shape = tuple(given.slices.shape)
            if shape not in graphs:
                graphs[shape] = Replayed(model, given, Sampling(steps=steps))
            return graphs[shape](given, 0)

        runs["bfloat16, recorded graph"] = replay
    return runs


def measure(
    model: SuperResolver, shape: tuple[int, ...], *, steps: int, batch: int, device: torch.device
) -> dict:
    """Return the seconds of each way to run the network over a volume, and the roofline."""
    model = model.to(device, memory_format=torch.channels_last)
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else "cpu"
    seconds = {
        way: round(volume_seconds(run, model, shape, device, batch=batch), 4)
        for way, run in ways(model, device, steps).items()
    }
    line = roofline(model, shape, steps)
    least = [s for known, s in line["least_seconds_computed"].items() if known in name]
    return {
        "device": name,
        "torch": torch.__version__,
        "shape": list(shape),
        "steps": steps,
        "batch": batch,
        "seconds_a_volume": seconds,
        "share_of_roofline": round(least[0] / min(seconds.values()), 3) if least else None,
        "peak_gpu_mib": round(torch.cuda.max_memory_allocated(device) / 2**20) if cuda else None,
        "roofline": line,
    }


def main() -> None:
    """Time the bare network and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:N [auto]")
    parser.add_argument("--weights", default="default", help="bundled name or file")
    parser.add_argument("--shape", default=WHOLE_HEAD, help=f"voxels of the volume [{WHOLE_HEAD}]")
    parser.add_argument("--steps", type=int, default=1, help="network calls a slice [1]")
    parser.add_argument("--batch", type=int, default=1, help="slices at once [1]")
    asked = parser.parse_args()
    report = measure(
        bundle.load(asked.weights).model,
        tuple(int(n) for n in asked.shape.split("x")),
        steps=asked.steps,
        batch=asked.batch,
        device=choose_device(asked.device),
    )
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
