"""Training states on disk, as safetensors: model, average, optimiser moments, counters."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


def save_state(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    progress: dict,
) -> None:
    """Write everything that resuming needs, atomically."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for name, parameter in model.named_parameters():
        for optimiser in optimisers:
            for key, value in optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{key}.{name}"] = value
    part = path.with_suffix(".part")
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    save_file(contiguous, part, {"progress": json.dumps(progress)})
    part.replace(path)


def load_state(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
) -> dict:
    """Fill the modules and the optimisers from `path`; return the progress counters."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        progress = json.loads(file.metadata()["progress"])
    for prefix, module in (("model.", model), ("average.", average)):
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        module.load_state_dict(state)
    parameters = dict(model.named_parameters())
    owner = {p: o for o in optimisers for group in o.param_groups for p in group["params"]}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, field, name = key.split(".", 2)
            parameter = parameters[name]
            moved = value if field == "step" else value.to(parameter.device)
            owner[parameter].state[parameter][field] = moved
    return progress
