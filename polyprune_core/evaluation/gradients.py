"""Gradients of the loss over a text, and the squares of those of its windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from polyprune_core.evaluation.losses import token_losses


def collect_gradients(
    model: nn.Module, names: Sequence[str], batches: Iterable[Tensor], windows: int, squares: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Returns the gradient of the mean loss by parameter, with `squares` its mean square, float32, and the passes.

    `batches` (B, T) hold so many `windows` in all. The square is that of each batch's own gradient, so a batch is one
    window where squares are wanted; otherwise the second dictionary is empty.
    """
    parameters = [model.get_parameter(name) for name in names]
    mean = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in zip(names, parameters, strict=True)}
    square = {name: torch.zeros_like(total) for name, total in mean.items()} if squares else {}
    wanted, passes = [parameter.requires_grad for parameter in parameters], 0
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for ids in batches:
            share = len(ids) / windows
            gradients = torch.autograd.grad(token_losses(model, ids).mean(), parameters)
            passes += 1
            for name, gradient in zip(names, gradients, strict=True):
                mean[name].add_(gradient, alpha=share)
                if squares:
                    square[name].addcmul_(gradient.float(), gradient.float(), value=share)
    finally:
        for parameter, before in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(before)
    return mean, square, passes
