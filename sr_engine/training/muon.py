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


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return nearly U V^T of each matrix U S V^T, (..., m, n); its singular values lie near 1.

    On a GPU in bfloat16, which the iteration forgives.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if x.is_cuda:
        x = x.bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose matrices (outputs, everything else) are orthogonalised.

    Those of one shape together: a step is a few dozen operations, not hundreds.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for parameters in alike.values():
                self._move(parameters, group["lr"], group["momentum"])

    def _move(self, parameters: list[Tensor], rate: float, momentum: float) -> None:
        """Update parameters of one shape."""
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        kept = [self.state[parameter]["momentum"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_lerp_(kept, gradients, 1 - momentum)
        ahead = torch.stack(torch._foreach_lerp(gradients, kept, momentum)).flatten(2)
        tall = max(1.0, ahead.shape[1] / ahead.shape[2]) ** 0.5
        moves = orthogonalise(ahead).reshape(len(parameters), *parameters[0].shape)
        torch._foreach_add_(parameters, list(moves.unbind()), alpha=-rate * tall)
