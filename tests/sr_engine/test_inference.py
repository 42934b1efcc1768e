"""The student runs at every position of every axis, leaves air alone, and repeats itself."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from sr_engine.errors import EngineError
from sr_engine.inference import choose_device, predict_triaxial
from sr_engine.model import bundle
from sr_engine.model.diffusion import ModelConfig, SuperResolver
from sr_engine.model.run import Replayed, Sampling, computes_in_half, predict_slices
from sr_engine.model.speed import blank_condition
from sr_engine.slices import CONTEXT, MARGIN, AxisSlices, NetworkInput, fade, head_box

SHAPE = (21, 34, 29)  # no side is a multiple of the network's


def network(noise: float) -> bundle.Bundle:
    torch.manual_seed(4)
    model = SuperResolver(ModelConfig(widths=(4, 8), condition_channels=4, condition_width=4))
    for parameter in model.parameters():
        parameter.data += noise * torch.randn_like(parameter)
    return bundle.Bundle(name="t", sha256="0" * 64, model=model.eval(), record={})


@pytest.fixture
def given():
    rng = np.random.default_rng(2)
    mask = np.zeros(SHAPE, bool)
    mask[9:12, 14:20, 10:15] = True
    return NetworkInput(
        volume=rng.random(SHAPE, dtype=np.float32),
        mask=mask,
        bias_log=0.1 * rng.random(SHAPE, dtype=np.float32),
        displacement_mm=rng.random((3, *SHAPE), dtype=np.float32),
        ratio=(3.0, 1.0, 1.0),
        profile=("box", "kspace", "kspace"),
        noise=0.02,
    )


def test_an_untrained_network_gives_the_input_back_along_all_axes(given):
    stacks = predict_triaxial(given, network(0.0), steps=2, device="cpu")
    assert len(stacks) == 3
    for stack in stacks:
        assert np.allclose(stack, given.volume, atol=1e-5)


def test_only_the_box_around_the_head_is_changed(given):
    box = head_box(given.mask)
    assert [(s.start, s.stop) for s in box] == [(1, 20), (6, 28), (2, 23)]
    outside = np.ones(SHAPE, bool)
    outside[box] = False

    for stack in predict_triaxial(given, network(0.1), steps=1, device="cpu"):
        assert np.array_equal(stack[outside], given.volume[outside])
        assert not np.allclose(stack[box], given.volume[box], atol=1e-3)


def test_the_change_fades_out_around_the_head_and_is_whole_in_it(given):
    blurred = network(0.1)
    (stack,) = predict_triaxial(given, blurred, steps=1, device="cpu", axes=(0,))
    change = np.abs(stack - given.volume)
    distance = ndimage.distance_transform_cdt(~given.mask, metric="chessboard")
    head = change[given.mask].mean()
    assert change[distance == MARGIN].mean() < 0.2 * head
    assert change[distance > MARGIN].max(initial=0) == 0
    whole = fade(given.mask)
    assert whole[given.mask] == pytest.approx(1)
    assert whole[distance == MARGIN - 1].max() < 0.5


def test_the_same_input_and_seed_give_the_same_bytes(given):
    first = predict_triaxial(given, network(0.1), steps=2, device="cpu", temperature=1.0, seed=5)
    again = predict_triaxial(given, network(0.1), steps=2, device="cpu", temperature=1.0, seed=5)
    other = predict_triaxial(given, network(0.1), steps=2, device="cpu", temperature=1.0, seed=6)
    for a, b, c in zip(first, again, other, strict=True):
        assert np.array_equal(a, b)
        assert not np.array_equal(a, c)


def test_the_three_axes_see_different_slices(given):
    a, b, c = predict_triaxial(given, network(0.1), steps=1, device="cpu")
    assert not np.allclose(a, b, atol=1e-3) and not np.allclose(b, c, atol=1e-3)


def test_progress_rises_to_one(given):
    seen = []
    predict_triaxial(given, network(0.0), steps=1, device="cpu", progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1.0)


def test_a_network_that_gives_no_number_is_an_error_not_an_image(given):
    broken = network(0.0)
    broken.model.unet.last.bias.data[:] = float("nan")
    with pytest.raises(EngineError, match="no numbers"):
        predict_triaxial(given, broken, steps=1, device="cpu")


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(EngineError, match="nonsense"):
        choose_device("nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="cuda:0"):
            choose_device("cuda:0")


def test_the_number_of_threads_and_the_memory_do_not_change_the_bytes(given, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = predict_triaxial(given, network(0.1), steps=1, device="cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    together = predict_triaxial(given, network(0.1), steps=1, device="cpu")
    short = predict_triaxial(given, network(0.1), steps=1, device="cpu", memory_mib=0)
    for a, b, c in zip(alone, together, short, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)


def test_torch_keeps_its_number_of_threads(given):
    before = torch.get_num_threads()
    predict_triaxial(given, network(0.1), steps=1, device="cpu", axes=(0,))
    assert torch.get_num_threads() == before


def test_a_slice_is_cut_to_the_head_and_what_is_around_it():
    mask = np.zeros((20, 160, 144), bool)
    mask[10, 70:80, 20:30] = True
    given = NetworkInput(
        volume=np.random.default_rng(1).random(mask.shape, dtype=np.float32),
        mask=mask,
        bias_log=None,
        displacement_mm=None,
        ratio=(1.0, 1.0, 1.0),
        profile=("box", "kspace", "kspace"),
        noise=0.02,
    )
    whole = (slice(0, 20), slice(0, 160), slice(0, 144))
    model = network(0.02).model
    slices = AxisSlices(given, whole, fade(mask), 0, model.config, torch.device("cpu"))

    windows = slices.windows()

    assert windows[0] is None and windows[19] is None  # nothing but air is shown
    shown = np.nonzero(fade(mask)[10].any(axis=1))[0]
    rows = windows[10].rows
    assert rows.start <= shown[0] - CONTEXT and rows.stop > shown[-1] + CONTEXT
    assert windows[10].pixels < 0.5 * slices.whole.pixels
    assert rows.start % model.config.multiple == rows.stop % model.config.multiple == 0

    made = []
    for window in (windows[10], slices.whole):
        x = predict_slices(model, slices.condition(slice(10, 11), window), steps=1)
        slices.put(slice(10, 11), window, x)
        made.append(slices.made[10].clone())
    assert torch.allclose(*made, atol=1e-4)
    assert not torch.allclose(made[0], slices.plain[10], atol=1e-3)


def test_bfloat16_is_near_float32():
    if not computes_in_half(torch.device("cpu")):
        pytest.skip("this processor has no bfloat16: the network runs in float32 here")
    model = network(0.1).model
    given = blank_condition(model, 48, 40, torch.device("cpu"))
    given.slices.copy_(torch.rand(given.slices.shape, generator=torch.Generator().manual_seed(1)))
    plain = predict_slices(model, given, steps=1)
    half = predict_slices(model, given, steps=1, half=True)
    change = (plain - given.slices[:, 2, None]).abs().mean()
    assert 0 < (half - plain).abs().mean() < 0.02 * change


needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="this machine has no CUDA device: the GPU path is not run"
)


@needs_gpu
def test_a_gpu_gives_what_the_cpu_gives_and_repeats_itself(given):
    cpu = predict_triaxial(given, network(0.1), steps=2, device="cpu")
    gpu = predict_triaxial(given, network(0.1), steps=2, device="cuda:0")
    again = predict_triaxial(given, network(0.1), steps=2, device="cuda:0")
    for a, b, c in zip(cpu, gpu, again, strict=True):
        assert np.array_equal(b, c)
        assert np.abs(a - b).mean() < 0.02 * np.abs(a - given.volume).mean()


@needs_gpu
def test_a_recorded_graph_gives_what_the_network_gives():
    place = torch.device("cuda:0")
    model = network(0.1).model.to(place, memory_format=torch.channels_last)
    first, second = (blank_condition(model, 48, 40, place, 3) for _ in range(2))
    second.slices.uniform_()
    recorded = Replayed(model, first, Sampling(steps=2))
    plain = predict_slices(model, second, steps=2, half=True)
    assert torch.allclose(recorded(second, 0), plain, atol=1e-3)
