"""What a plugin has to leave of a model as it was: weights, hooks, flags."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from polyprune_core.plugins.side_effects import hooks_of
from polyprune_core.testing.checking import require


class Snapshot:
    """A model as it is now; every method raises AssertionError where the model has since become another."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.hooks, self.flags = hooks_of(model), copy.deepcopy(self._flags())

    def require_as_it_was(self) -> None:
        """Weights, hooks and flags are what they were."""
        self.require_weights()
        self.require_hooks()
        self.require_flags()

    def require_weights(self) -> None:
        """Weights and buffers are the same bits."""
        now = self.model.state_dict()
        names = now.keys() | self.weights.keys()
        changed = sorted(name for name in names if not _same(now.get(name), self.weights.get(name)))
        require(not changed, f"{len(changed)} weights or buffers of the model were changed, the first is {changed[:1]}")

    def require_hooks(self) -> None:
        """Modules and parameters have the hooks they had."""
        left = [name for name, hooks in hooks_of(self.model).items() if hooks != self.hooks[name]]
        require(not left, f"{len(left)} modules or parameters have other hooks than before, the first is {left[:1]}")

    def require_flags(self) -> None:
        """Training flags, requires_grad, gradients, attributes, configuration and gradient mode are the same."""
        changed = [name for name, value in self._flags().items() if value != self.flags[name]]
        require(not changed, f"changed and not put back: {', '.join(changed)}")

    def _flags(self) -> dict[str, Any]:
        config: Any = self.model.config
        return {
            "requires_grad": {name: p.requires_grad for name, p in self.model.named_parameters()},
            "grad": {name: p.grad is None for name, p in self.model.named_parameters()},
            "training": {name: module.training for name, module in self.model.named_modules()},
            "attributes of modules": {name: sorted(vars(module)) for name, module in self.model.named_modules()},
            "configuration": config.to_dict(),
            "gradient mode": torch.is_grad_enabled(),
        }


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b)


class Stop(BaseException):
    """Stands for the user's Ctrl-C in the middle of a pass."""


@contextmanager
def stopped_in(model: nn.Module, module: str) -> Iterator[None]:
    """Raises Stop wherever the block runs that part of the model."""

    def stop(*_: object) -> None:
        raise Stop

    with model.get_submodule(module).register_forward_pre_hook(stop):
        yield
