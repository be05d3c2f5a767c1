"""What modules take in and give while a text passes through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyprune_core.errors import ModelError
from polyprune_core.evaluation.losses import last_hidden

# Told the positional arguments of a module and what it returned.
Watch = Callable[[tuple[Any, ...], Any], None]


def observe(
    model: nn.Module,
    watched: Iterable[tuple[str, Watch]],
    batches: Iterable[Tensor],
    run: Callable[[Tensor], None] | None = None,
) -> None:
    """Passes batches of windows (B, T) through the model, and tells what is `watched` of modules at every call.

    Without gradients; the model runs as it now is. `run` has a batch pass by the modules in another way.
    """
    with torch.inference_mode(), ExitStack() as undo:
        for name, watch in watched:
            undo.enter_context(model.get_submodule(name).register_forward_hook(_telling(watch)))
        for ids in batches:
            run(ids) if run else last_hidden(model, ids)


def _telling(watch: Watch) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        watch(inputs, output)

    return hook


def features_of(module: Any, inputs: tuple[Any, ...], expert: int | None = None) -> Tensor:
    """Returns (tokens, F) float32: what a linear module takes in, or the last maps of all experts of a mixture.

    Of one `expert`: what its last map takes in, times the router's weight, of those tokens alone that it is chosen for.
    """
    if not is_mixture(module):
        taken: Tensor = inputs[0].detach().flatten(0, -2).float()
        return taken
    hidden, index, _ = inputs
    if expert is not None:
        return _sent_to(module, inputs, expert)[1]
    experts, _, width = module.down_proj.shape
    found = torch.zeros(len(hidden), experts, width, device=hidden.device)
    for each in index.unique().tolist():
        tokens, inner = _sent_to(module, inputs, each)
        found[tokens, each] = inner
    return found.flatten(1)


def _sent_to(module: Any, inputs: tuple[Any, ...], expert: int) -> tuple[Tensor, Tensor]:
    """Returns the places (n,) of the tokens that an expert is chosen for, and its weighted inner features (n, W)."""
    hidden, index, weights = inputs
    tokens, place = (index == expert).nonzero(as_tuple=True)
    inner = module._apply_gate(F.linear(hidden[tokens], module.gate_up_proj[expert]))
    return tokens, (inner * weights[tokens, place, None]).float()


def is_mixture(module: Any) -> bool:
    """Whether a module holds experts stacked in parameters.

    Raises:
        ModelError: it does, and they are stored in a way that is not known here.
    """
    stacked = getattr(module, "down_proj", None)
    if not isinstance(stacked, nn.Parameter) or stacked.dim() != 3:
        return False
    if not hasattr(module, "_apply_gate") or module.is_transposed or module.has_bias:
        raise ModelError(
            f"what the experts of {type(module).__name__} take in is not known: they have biases or weights (in, out). "
            "Score them with frequency or reap, or by their weights."
        )
    return True
