"""The student runs at every position of every axis, leaves air alone, and repeats itself."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from sr_engine.errors import EngineError
from sr_engine.inference import choose_device, predict_triaxial
from sr_engine.model import bundle
from sr_engine.model.diffusion import ModelConfig, SuperResolver
from sr_engine.slices import MARGIN, NetworkInput, fade, head_box

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
