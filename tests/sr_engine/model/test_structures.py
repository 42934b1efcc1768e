"""The network that finds structure: silent at first, the same in pieces, and as a scan lies."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sr_engine.model import structures
from sr_engine.model.structures import StructureConfig, StructureNet, axis_order
from sr_engine.physics.forward_model import AcquisitionModel, Profile
from sr_engine.physics.small_structures import Seen

SIGMA = 0.02


def seen_of(voxel_mm, shape=(16, 14, 12)):
    """Return random data of a scan with these voxels; the target's are of 1 mm."""
    rng = np.random.default_rng(3)
    fine = [round(n * mm) for n, mm in zip(shape, voxel_mm, strict=True)]
    model = AcquisitionModel.from_grids(
        fine,
        np.eye(4),
        shape,
        np.diag([*voxel_mm, 1.0]),
        profiles=[Profile(name="box", width_mm=mm) for mm in voxel_mm],
    )
    parts = rng.normal(0.5, 0.1, (3, *shape)).astype(np.float32)
    return Seen(
        model=model,
        box=tuple(slice(0, n) for n in shape),
        residual=parts[0] - 0.5,
        measured=parts[1],
        predicted=parts[2],
        counts=np.ones(shape, bool),
        sigma=SIGMA,
    )


def turned(seen, order):
    parts = {
        name: np.ascontiguousarray(getattr(seen, name).transpose(order))
        for name in ("residual", "measured", "predicted", "counts")
    }
    axes = tuple(seen.model.axes[axis] for axis in order)
    return replace(seen, model=AcquisitionModel(axes=axes), **parts)


@pytest.fixture
def net():
    torch.manual_seed(1)
    made = StructureNet(StructureConfig(channels=4, layers=3)).eval()
    torch.nn.init.normal_(made.last.weight)
    return made


def test_before_it_is_trained_it_finds_nothing():
    found = StructureNet(StructureConfig()).find(seen_of((2.0, 2.0, 2.0)))

    assert found.shape == (16, 14, 12) and not found.any()


def test_pieces_give_what_the_whole_gives(net, monkeypatch):
    seen = seen_of((2.0, 2.0, 2.0))
    whole = net.find(seen)
    monkeypatch.setattr(structures, "SLAB_VOXELS", 3 * 14 * 12)

    assert np.abs(whole).max() > SIGMA
    assert np.allclose(net.find(seen), whole, atol=1e-6)


def test_thick_slices_are_looked_at_in_the_same_way_however_they_lie(net):
    axial = seen_of((1.0, 1.0, 4.0))
    first = turned(axial, [2, 0, 1])

    assert axis_order(axial) == [0, 1, 2] and axis_order(first) == [1, 2, 0]
    assert np.allclose(net.find(first), net.find(axial).transpose(2, 0, 1), atol=1e-6)


def test_intensities_and_noise_in_another_unit_give_the_same(net):
    seen = seen_of((1.0, 1.0, 4.0))
    brighter = replace(
        seen,
        residual=4 * seen.residual,
        measured=4 * seen.measured,
        predicted=4 * seen.predicted,
        sigma=4 * SIGMA,
    )

    assert np.allclose(net.find(brighter), 4 * net.find(seen), rtol=1e-4, atol=1e-6)


def test_the_acquisition_matters(net):
    fine, coarse = seen_of((1.0, 1.0, 4.0)), seen_of((1.0, 1.0, 6.0))

    assert not np.allclose(net.find(fine), net.find(coarse), atol=1e-3)
