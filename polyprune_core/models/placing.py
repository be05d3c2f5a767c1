"""A model that was just read, put where it is to lie: on one device, on several, or in part left in its files.

Weights that are left in their files are views of them: the system reads a page when it is needed, and drops it when
memory is short. They take no memory that could not be taken back, so a model may be larger than memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.errors import ConfigError, ModelError
from polyprune_core.models.placement import Placement, placement
from polyprune_core.utils.memory import give_back_freed

IN_FILES = "disk"


def place(model: Any, device: torch.device, stored: str) -> Any:
    """Returns the model as the placement of this moment says; `stored` is the number format of its files.

    Raises:
        ModelError: weights would have to stay in files that hold another number format.
    """
    asked = placement()
    if asked.limits:
        give_back_freed()
    where = _devices(model, asked) if asked.spread else {"": str(device)}
    left = asked.limits.get("cpu")
    for name, target in where.items():
        module = model.get_submodule(name)
        if target not in ("cpu", IN_FILES):
            module.to(target)
            continue
        for parameter in module.parameters():
            if left is None and target == "cpu":
                parameter.data = parameter.data.clone()  # in memory of its own: no longer a view of the file
            elif left is not None and target == "cpu" and parameter.nbytes <= left:
                parameter.data = parameter.data.clone()
                left -= parameter.nbytes
            else:
                leave_in_file(parameter, model, stored)
    if len({target for target in where.values() if target != IN_FILES}) > 1:
        connect(model, where)
    return model


def leave_in_file(parameter: nn.Parameter, model: Any, stored: str) -> None:
    """Marks a parameter as a view of its file."""
    computed = str(parameter.dtype).removeprefix("torch.")
    if computed != stored:
        raise ModelError(
            f"the weights are {stored} in their files and computed in {computed}, so that they cannot stay there; give "
            f"--dtype {stored}, or more --max-memory."
        )
    vars(parameter)["in_file"] = True


def is_in_file(parameter: Tensor) -> bool:
    """Whether a parameter is a view of its file, of which no copy in memory should be kept."""
    return bool(getattr(parameter, "in_file", False))


def connect(model: Any, where: dict[str, str]) -> None:
    """Has each part of a model move what it is given to its own device, through accelerate's hooks."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for name, target in where.items():
        device = torch.device("cpu" if target == IN_FILES else target)
        add_hook_to_module(model.get_submodule(name), AlignDevicesHook(execution_device=device))


def _devices(model: Any, asked: Placement) -> dict[str, str]:
    """Returns the device of every part of a model, as accelerate places them."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_max_memory

    told: dict[Any, int] = {
        int(name.rpartition(":")[2]) if name != "cpu" else name: size for name, size in asked.limits.items()
    }
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wrong := [index for index in told if index != "cpu" and index >= have]:
        raise ConfigError(f"--max-memory names cuda:{wrong[0]}, but torch sees {have} CUDA GPUs on this machine.")
    limits = get_max_memory() | told
    found = infer_auto_device_map(model, max_memory=limits, no_split_module_classes=list(model._no_split_modules or ()))
    return {name: f"cuda:{target}" if isinstance(target, int) else str(target) for name, target in found.items()}
