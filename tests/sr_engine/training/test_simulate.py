"""Simulated pairs: drawn once, applied the same way ever after."""

import numpy as np
import pytest
import torch

from sr_engine.training.dataset import Shard, SlicePool
from sr_engine.training.simulate import Draw, draw, simulate

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
    assert scene.noise == 0


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
