"""Training states on disk, as safetensors: model, average, optimiser moments, counters."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


def save_state(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    progress: dict,
) -> None:
    """Write everything that resuming needs, atomically."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser.{key}.{name}"] = value
    part = path.with_suffix(".part")
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    save_file(contiguous, part, {"progress": json.dumps(progress)})
    part.replace(path)


def load_state(
    path: Path, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer
) -> dict:
    """Fill the modules and the optimiser from `path`; return the progress counters."""
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        progress = json.loads(file.metadata()["progress"])
    for prefix, module in (("model.", model), ("average.", average)):
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        module.load_state_dict(state)
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, field, name = key.split(".", 2)
            parameter = parameters[name]
            moved = value if field == "step" else value.to(parameter.device)
            optimiser.state[parameter][field] = moved
    return progress
