"""Orthogonalised momentum: what it makes of a matrix, and that it trains."""

import pytest
import torch
from torch import nn

from sr_engine.training.muon import Muon, is_matrix, orthogonalise


@pytest.mark.parametrize("shape", [(16, 90), (90, 16), (32, 32)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    made = orthogonalise(matrix)
    values = torch.linalg.svdvals(made)
    assert made.shape == matrix.shape
    assert values.max() < 1.3 and values.min() > 0.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ made @ v.T  # diagonal in the matrix's own directions
    assert (turned - torch.diag(turned.diag())).abs().max() < 1e-3


def test_matrices_of_one_shape_move_together_as_each_would_alone():
    generator = torch.Generator().manual_seed(3)
    matrices = torch.randn(3, 24, 18, generator=generator)
    alone = torch.stack([orthogonalise(matrix) for matrix in matrices])
    assert torch.allclose(orthogonalise(matrices), alone, atol=1e-5)


def test_it_takes_convolutions_and_leaves_thin_ones_and_vectors():
    assert is_matrix(nn.Conv2d(16, 32, 3).weight)
    assert not is_matrix(nn.Conv2d(16, 4, 3).weight)
    assert not is_matrix(nn.Linear(64, 64).weight)
    assert not is_matrix(nn.Conv2d(16, 32, 3).bias)


def test_a_convolution_learns_another_one():
    torch.manual_seed(2)
    wanted, learner = (nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(2))
    learner.to(memory_format=torch.channels_last)
    x = torch.randn(8, 16, 8, 8)
    optimiser = Muon(learner.parameters(), lr=0.02)
    errors = []
    for _ in range(60):
        loss = (learner(x) - wanted(x).detach()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(float(loss.detach()))
    assert errors[-1] < 0.05 * errors[0]
