"""Lesions in training data: where they are said to be, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sr_engine.model.diffusion import ModelConfig, SuperResolver
from sr_engine.training.dataset import SlicePool
from sr_engine.training.lesions import CONTRAST, MOST, RAISED, TRUE_VOXELS, plant, raised
from sr_engine.training.shards import Shard
from sr_engine.training.train import TrainConfig, denoising_loss

SHAPE = (40, 48, 44)


@pytest.fixture
def block():
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[6:-6, 6:-6, 6:-6] = True
    return torch.full(SHAPE, 0.5), mask


def test_lesions_are_dark_or_bright_and_as_strong_as_said(block):
    volume, mask = block
    changed, _, planted = plant(volume, mask, 60, seed=3, voxel=1.0)

    difference = changed - volume
    assert difference.max() > CONTRAST[0] and difference.min() < -CONTRAST[0]
    assert changed.min() >= 0
    assert bool(planted.any()) and float(planted.float().mean()) < 0.2
    # Within what is marked much changes, outside only the rims of partial voxels.
    outside = difference[planted == 0].square().sum()
    assert outside < 0.05 * difference.square().sum()


def test_a_sample_of_a_small_lesion_weighs_more(block):
    """By the inverse of the cross-section: a sphere of 1.2 voxels is there in few samples."""
    *_, planted = plant(*block, 200, seed=3, voxel=1.0)

    weights = set(planted.unique().tolist())
    assert {0, 1, int(MOST)} <= weights <= set(range(int(MOST) + 1))
    counts = torch.bincount(planted.flatten().int())
    assert counts[1] > counts[int(MOST)] > 0


@pytest.mark.parametrize(("voxel", "most"), [(0.5, 1.0), (3.0, 1 + RAISED)])
def test_the_target_shows_what_is_small_against_a_measured_voxel_stronger(block, voxel, most):
    volume, mask = block
    changed, shown, _ = plant(volume + 0.5, mask, 60, seed=3, voxel=voxel)

    alone = (changed - volume - 0.5).abs() > 0.02  # where lesions meet, their contrasts mix
    ratio = ((shown - volume - 0.5) / (changed - volume - 0.5))[alone]
    assert float(ratio.quantile(0.98)) == pytest.approx(most, abs=0.02)
    assert float(ratio.quantile(0.02)) >= 0.98


def test_a_lesion_of_some_measured_voxels_is_shown_as_it_is():
    assert raised(TRUE_VOXELS) == raised(5.0) == 1
    assert raised(TRUE_VOXELS - 1) == raised(0.1) == 1 + RAISED
    assert 1 < raised(TRUE_VOXELS - 0.5) < 1 + RAISED


def test_the_same_seed_plants_the_same_lesions(block):
    first, second, other = (plant(*block, 10, seed=seed, voxel=1.0)[0] for seed in (1, 1, 2))

    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_volume_that_is_given_stays_as_it_is(block):
    volume, mask = block
    plant(volume, mask, 10, seed=1, voxel=1.0)

    assert bool((volume == 0.5).all())


def test_a_lesion_at_the_edge_of_the_volume_is_cut_off():
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[0, 0, 0] = True
    changed, _, planted = plant(torch.full(SHAPE, 0.5), mask, 5, seed=1, voxel=1.0)

    assert bool(planted[0, 0, 0])
    assert changed.shape == SHAPE


def test_lesions_weigh_more_in_the_loss(block):
    """Two batches, equal but for the marks."""
    shard = Shard(
        name="block",
        volume=block[0].half(),
        mask=block[1],
        whole_head=False,
        source_sha256="ab" * 32,
    )
    pool = SlicePool([shard], context=2, crop=32, scenes=1, seed=1)
    batch = pool.batch(4)
    model = SuperResolver(ModelConfig(widths=(8, 16), condition_channels=4, condition_width=8))
    config = TrainConfig(stage="student", data="", out="", lesion_weight=3.0)

    def loss(planted: torch.Tensor) -> float:
        marked = replace(batch, planted=planted)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            return float(denoising_loss(model, marked, config, generator))

    nowhere, everywhere = torch.zeros_like(batch.planted), torch.ones_like(batch.planted)
    assert loss(everywhere) == pytest.approx(4 * loss(nowhere), rel=1e-5)
    assert batch.planted.shape == (4, 1, 16, 16)
    assert np.isfinite(loss(batch.planted))
