"""Simulated pairs: drawn once, applied the same way ever after."""

import numpy as np
import pytest
import torch

from sr_engine.training.dataset import SlicePool
from sr_engine.training.shards import Shard, read_shard, write_shard
from sr_engine.training.simulate import Draw, draw, recoloured, reconstruction, simulate

NOTHING = {
    "ratio": (1.0, 1.0, 1.0),
    "profile": ("identity", "identity", "identity"),
    "snr": 0.0,
    "gamma": 1.0,
    "flips": (False, False, False),
    "bias": np.zeros(20),
    "bias_known": True,
    "warp": np.zeros((3, 20)),
    "warp_known": True,
    "lesions": 0,
    "seed": 1,
}


@pytest.fixture
def ball():
    k, i, j = np.meshgrid(*[np.linspace(-1, 1, 72)] * 3, indexing="ij")
    radius = np.sqrt(k**2 + i**2 + j**2)
    volume = np.where(radius < 0.8, 0.7 + 0.2 * np.sin(9 * i) * np.cos(8 * j + 5 * k), 0.0)
    return torch.from_numpy(volume.astype(np.float32)), torch.from_numpy(radius < 0.8)


def test_an_acquisition_that_does_nothing_gives_the_volume_back(ball):
    scene = simulate(*ball, Draw(**NOTHING))
    assert torch.allclose(scene.low, scene.high)
    assert scene.noise < 1e-6


def test_thick_slices_lose_detail_along_their_axis_only(ball):
    d = Draw(**{**NOTHING, "ratio": (4.0, 1.0, 1.0), "profile": ("box", "identity", "identity")})
    scene = simulate(*ball, d)
    lost = (scene.high - scene.low)[scene.mask].square().mean()
    assert lost > 1e-4
    # The mean over 4 neighbours along the first axis is what was measured.
    groups = scene.high.unflatten(0, (-1, 4)).mean(1)
    again = scene.low.unflatten(0, (-1, 4)).mean(1)
    inner = slice(3, -3)
    assert (groups - again)[inner].abs().mean() < 0.02


def test_noise_has_the_signal_to_noise_ratio_that_was_drawn(ball):
    quiet = simulate(*ball, Draw(**NOTHING))
    noisy = simulate(*ball, Draw(**{**NOTHING, "snr": 25.0}))
    scale = noisy.high.max() / quiet.high.max()
    difference = (noisy.low / scale - quiet.low)[ball[1]]
    expected = float(ball[0][ball[1]].mean()) / 25 / float(ball[0].max() / quiet.high.max())
    assert float(difference.std()) == pytest.approx(expected, rel=0.05)


def test_contrast_and_shading_change_both_sides(ball):
    bias = np.zeros(20)
    bias[1] = 0.3
    scene = simulate(*ball, Draw(**{**NOTHING, "gamma": 1.3, "bias": bias}))
    assert torch.allclose(scene.low, scene.high)


def test_draws_cover_thick_and_isotropic_noisy_and_clean_known_and_unknown():
    rng = np.random.default_rng(0)
    draws = [draw(rng) for _ in range(300)]
    isotropic = [d for d in draws if d.profile == ("kspace",) * 3]
    assert 100 < len(isotropic) < 200
    assert {d.ratio.index(max(d.ratio)) for d in draws} == {0, 1, 2}
    assert any(d.snr == 0 for d in draws) and any(0 < d.snr < 20 for d in draws)
    assert 0.2 < np.mean([not d.bias_known for d in draws]) < 0.4
    assert 0.2 < np.mean([not d.warp_known for d in draws]) < 0.4


def test_batches_are_the_same_for_the_same_seed_and_fit_the_network(ball):
    shard = Shard(
        name="ball", volume=ball[0].half(), mask=ball[1], whole_head=False, source_sha256="0" * 64
    )

    def batch(seed):
        pool = SlicePool([shard], context=2, crop=64, scenes=2, seed=seed)
        return pool.batch(4)

    one, again, other = batch(1), batch(1), batch(2)
    assert one.high.shape == (4, 1, 64, 64)
    assert one.condition.slices.shape == (4, 5, 64, 64)
    assert one.condition.b.shape == (4, 1, 32, 32) and one.condition.g.shape == (4, 4, 32, 32)
    assert torch.equal(one.condition.slices, again.condition.slices)
    assert not torch.equal(one.high, other.high)


def test_every_crop_is_what_lies_at_its_place_in_its_scene(ball):
    """The flat indices, the turned axes and the guidance fields, against plain slicing."""
    shard = Shard(
        name="ball", volume=ball[0].half(), mask=ball[1], whole_head=False, source_sha256="0" * 64
    )
    pool = SlicePool([shard], context=1, crop=16, scenes=2, seed=4)
    low = [
        pool.low[n * pool.capacity :][: int(np.prod(shape))].reshape(*shape).float()
        for n, shape in enumerate(pool.shapes.tolist())
    ]
    crop = pool.batch(8).condition.slices

    def occurs(block, volume):
        """Return whether the three slices of a crop lie side by side somewhere in the volume."""
        for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
            turned = volume.permute(order)
            windows = turned.unfold(1, 16, 1).unfold(2, 16, 1)[:, :, :, ::5, ::5]
            middle = (windows == block[1, ::5, ::5]).all(-1).all(-1)
            for k, j, i in middle.nonzero().tolist():
                near = [max(k - 1, 0), k, min(k + 1, len(turned) - 1)]
                if torch.equal(turned[near, j : j + 16, i : i + 16], block):
                    return True
        return False

    assert all(any(occurs(block, volume) for volume in low) for block in crop)


def test_a_shard_comes_back_as_it_was_written(ball, tmp_path):
    volume, mask = (part.numpy() for part in ball)
    meta = {"name": "ball", "whole_head": True, "source_sha256": "ab" * 32}
    write_shard(tmp_path / "ball.safetensors", 2 * volume, mask, meta)

    shard = read_shard(tmp_path / "ball.safetensors")

    assert shard.whole_head and shard.source_sha256 == "ab" * 32
    assert torch.equal(shard.mask, ball[1])
    assert (shard.volume.float() - 2 * ball[0]).abs().max() < 0.0035  # half a step and rounding


def test_zero_filling_keeps_the_samples_and_a_filter_tames_the_rim():
    wave = np.cos(2 * np.pi * 3 * np.arange(24) / 24)
    filled = reconstruction(24, 72, 0.0) @ wave
    assert np.allclose(filled[1::3], wave, atol=1e-9)  # voxel 3 n + 1 of 72 lies on voxel n of 24
    filtered = reconstruction(24, 24, 0.5)
    rim = np.cos(2 * np.pi * 11 * np.arange(24) / 24)
    assert np.allclose(filtered @ wave, wave, atol=1e-9)
    assert np.abs(filtered @ rim).max() < 0.2


def test_another_contrast_leaves_air_dark_and_changes_tissue(ball):
    colours = np.array([0.9, 0.7, 0.5, 0.3, 0.1])
    changed = recoloured(ball[0], colours)
    assert changed[~ball[1]].abs().max() == 0
    assert torch.corrcoef(torch.stack([ball[0][ball[1]], changed[ball[1]]]))[0, 1] < -0.9


def test_the_noise_the_network_is_told_is_the_estimate_of_the_product(ball):
    noisy = simulate(*ball, Draw(**{**NOTHING, "snr": 25.0}))
    true = float(ball[0][ball[1]].mean()) / 25 / float(torch.quantile(ball[0][ball[1]], 0.999))
    assert noisy.noise == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_drawn_gives_finite_pairs_on_one_grid(ball, seed):
    scene = simulate(*ball, draw(np.random.default_rng(seed)))
    assert scene.high.shape == scene.low.shape == scene.mask.shape == scene.planted.shape
    assert torch.isfinite(scene.low).all() and torch.isfinite(scene.high).all()
    assert scene.error > 0
