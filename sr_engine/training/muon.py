"""Muon: the momentum of every convolution, orthogonalised before it is applied.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". torch's own
class takes matrices only and works in bfloat16, which a CPU without such instructions emulates.
"""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, steepest at zero
ITERATIONS = 5
SMALLEST_SIDE = 16  # thinner matrices are left to AdamW


def is_matrix(parameter: Tensor) -> bool:
    """Return whether a parameter is a convolution that Muon takes."""
    return parameter.ndim == 4 and min(len(parameter), parameter[0].numel()) >= SMALLEST_SIDE


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return nearly U V^T of `matrix` = U S V^T, (m, n); its singular values lie near 1."""
    a, b, c = COEFFICIENTS
    wide = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide is matrix else x.T).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose matrices (outputs, everything else) are orthogonalised."""

    def __init__(self, params, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["momentum"])

    def _move(self, parameter: Tensor, rate: float, momentum: float) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        ahead = parameter.grad.lerp(state["momentum"], momentum).reshape(len(parameter), -1)
        tall = max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
        parameter.add_(orthogonalise(ahead).reshape(parameter.shape), alpha=-rate * tall)
