"""What a plugin may not touch while it runs: the generators that others share, and the model that others score too.

Whatever it did is undone where that is possible, so that the cells after it are as if it had not run, and then told.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from polyprune_core.errors import PluginError, PolypruneError, counted

if TYPE_CHECKING:
    from torch import Tensor, nn

MODULE_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PARAMETER_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


class WeightsChanged(PluginError):
    """A plugin has changed weights of the model it was to score."""


@contextmanager
def shared_randomness_unused(blame: str) -> Iterator[None]:
    """Raises PluginError if the block draws from or seeds a generator that others share; its state is put back."""
    import numpy as np
    import torch

    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    used = []
    try:
        yield
    finally:
        if not torch.equal(torch.get_rng_state(), torch_state):
            torch.set_rng_state(torch_state)
            used.append("torch")
        if random.getstate() != python_state:
            random.setstate(python_state)
            used.append("random")
        if pickle.dumps(np.random.get_state()) != pickle.dumps(numpy_state):
            np.random.set_state(numpy_state)
            used.append("numpy.random")
    if used:
        raise PluginError(
            f"{blame} draws from or seeds the global generator of {' and of '.join(used)}, so that its results depend "
            "on what ran before; it has to use the generator it is given."
        )


@contextmanager
def model_untouched(model: nn.Module, blame: str) -> Iterator[None]:
    """Raises PluginError if the block leaves hooks or flags behind, which are put back, or changed weights.

    Raises:
        WeightsChanged: weights are others than before; putting them back is the caller's.
    """
    hooks, flags, sums = hooks_of(model), _flags(model), _checksums(model)
    failed = None
    try:
        yield
    except PolypruneError as error:
        failed = error
    finally:
        left = _remove_new_hooks(model, hooks)
        flipped = _restore_flags(model, flags)
    now = _checksums(model)
    changed = [name for name, known in sums.items() if name not in now or not same_sums(now[name], known)]
    if changed:
        raise WeightsChanged(
            f"{blame} changed {counted(len(changed), 'weight')} of the model, the first is {changed[0]}."
        ) from failed
    if failed:
        raise failed
    if left:
        raise PluginError(f"{blame} left hooks on {len(left)} modules or parameters, the first is {left[0]}.")
    if flipped:
        raise PluginError(f"{blame} changed {' and '.join(flipped)} and did not put it back.")


def hooks_of(model: nn.Module) -> dict[str, list[set[int]]]:
    """Returns the ids of the hooks of each module and parameter, kind by kind."""
    return {name: [set(kind or ()) for kind in kinds] for name, kinds in _hook_dictionaries(model).items()}


def _hook_dictionaries(model: nn.Module) -> dict[str, list[Any]]:
    modules = {f"module {n}".strip(): [getattr(m, k) for k in MODULE_HOOKS] for n, m in model.named_modules()}
    return modules | {n: [getattr(p, k, None) for k in PARAMETER_HOOKS] for n, p in model.named_parameters()}


def _remove_new_hooks(model: nn.Module, before: dict[str, list[set[int]]]) -> list[str]:
    left = []
    for name, kinds in _hook_dictionaries(model).items():
        known = before.get(name, [set() for _ in kinds])  # none are known of what the plugin itself has added
        new = [(kind, id_) for kind, ids in zip(kinds, known, strict=True) for id_ in set(kind or ()) - ids]
        for kind, id_ in new:
            del kind[id_]
        left += [name] if new else []
    return left


def _flags(model: nn.Module) -> dict[str, list[bool]]:
    import torch

    return {
        "the training mode": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "the gradient mode": [torch.is_grad_enabled()],
    }


def _restore_flags(model: nn.Module, before: dict[str, list[bool]]) -> list[str]:
    import torch

    changed = [name for name, flags in _flags(model).items() if flags != before[name]]
    for module, training in zip(model.modules(), before["the training mode"], strict=False):
        module.training = training
    for parameter, wanted in zip(model.parameters(), before["requires_grad"], strict=False):
        parameter.requires_grad_(wanted)
    torch.set_grad_enabled(before["the gradient mode"][0])
    return changed


def _checksums(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: bit_sums(parameter) for name, parameter in model.named_parameters()}


def bit_sums(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Returns sums over rows and over columns of the bits of a tensor, which its layout in memory decides too."""
    import torch

    weight = tensor.detach()
    matrix = weight.flatten(1) if weight.dim() > 1 else weight[:, None]
    matrix = matrix if matrix.is_contiguous() else matrix.t().contiguous()
    size = matrix.element_size() * matrix.shape[1]
    # Read as the widest integers that a row divides into: as few additions as there can be.
    kinds = (torch.int64, torch.int32, torch.int16, torch.uint8)
    if not matrix.numel():
        return matrix.sum(), matrix.sum()
    bits = matrix.view(next(kind for kind in kinds if size % kind.itemsize == 0))
    return bits.sum(dim=0, dtype=torch.int64), bits.sum(dim=1, dtype=torch.int64)


def same_sums(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    """Whether two tensors had the same bits."""
    import torch

    return all(a.is_meta or torch.equal(a, b) for a, b in zip(found, expected, strict=True))  # meta: nothing to change
