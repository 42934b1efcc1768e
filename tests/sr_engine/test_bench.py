"""The benchmark's own arithmetic."""

import pytest
import torch

from sr_engine import bench
from sr_engine.model import bundle, speed
from sr_engine.model.diffusion import ModelConfig, SuperResolver, parameter_count

SMALL = ModelConfig(widths=(8, 16), condition_channels=4, condition_width=8)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "small.safetensors"
    bundle.save(path, SuperResolver(SMALL), {"stage": "student"})
    return str(path)


def test_a_series_is_timed_by_stage_beside_a_plain_run(weights, tmp_path):
    head = bench.synthetic_head((24, 48, 48))
    bench.write_acquisition(head, tmp_path / "in", tags={})

    report = bench.bench(
        tmp_path / "in", steps=2, weights=weights, device="cpu", progress=lambda stage, share: None
    )

    assert report["instances_in"] == 24
    assert report["instances_out"] == report["shape"][0]
    assert {"read", "student", "consistency", "write"} <= set(report["seconds"])
    ratio = report["plain_seconds"] / report["seconds"]["student"]
    assert report["plain_over_student"] == pytest.approx(ratio, rel=0.2)
    assert set(report["cpu_seconds"]) == set(report["seconds"])
    assert report["roofline"]["least_seconds_computed"]["H200"] > 0
    assert report["parameters"] == parameter_count(SuperResolver(SMALL))
    assert "student" in bench.table(report)


def test_two_steps_cost_twice_the_unet_and_the_encoder_once():
    model = SuperResolver(SMALL)
    one, two, three = (speed.macs_per_slice(model, steps) for steps in (1, 2, 3))

    assert three - two == two - one  # a step is a U-Net
    assert one > two - one  # E2 and the codec run once


def test_a_convolution_is_counted_by_hand():
    model = SuperResolver(SMALL)
    half = speed.SLICE // 2
    first = half * half * model.unet.first.weight.numel()
    assert speed.macs_per_slice(model, 1) > first


def test_the_traffic_of_a_convolution_is_its_input_weights_and_output():
    layer = torch.nn.Conv2d(3, 8, 3, padding=1)
    x = torch.zeros(1, 3, 10, 12)
    with speed.TrafficCounter() as counter, torch.inference_mode():
        layer(x).relu()
    assert counter.bytes == 4 * (3 * 120 + 8 * 120 + 8 * 3 * 9 + 8)


def test_the_bare_network_is_timed_and_set_against_a_peak():
    report = speed.measure(
        SuperResolver(SMALL), (3, 16, 24), steps=1, batch=2, device=torch.device("cpu")
    )
    assert set(report["seconds_a_volume"]) == {"float32", "bfloat16"}
    macs = sum(
        n * speed.macs_per_slice(SuperResolver(SMALL), 1, sides)
        for n, sides in ((3, (16, 24)), (16, (3, 24)), (24, (3, 16)))
    )
    assert report["roofline"]["macs"] == macs
    seconds = report["roofline"]["least_seconds_computed"]
    assert seconds["H200"] <= seconds["H100"]
