"""Trains the weights of a smaller model on calibration windows. Interrupted training continues as if unbroken."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core.evaluation.calibration import Calibration
    from polyprune_core.pruning.pruned_model import PrunedModel

BATCH = 4


def trainable(pruned: PrunedModel) -> tuple[Any, dict[str, nn.Parameter]]:
    """Returns a copy of the smaller model in float32, and its trainable parameters by their names in the dense model.

    The copy shares no memory with the dense model. The embeddings and the output head are not among the parameters.
    """
    student: Any = copy.deepcopy(pruned.build()).float()  # what nothing was cut from may be the dense model's own
    fixed = {id(module.weight) for module in (student.get_input_embeddings(), student.get_output_embeddings())}
    names, found = pruned.names(), {}
    for own, parameter in student.named_parameters():
        if id(parameter) not in fixed:
            name = names[own]
            parameter.data = pruned.updates.get(name, parameter.data).to(parameter.device).float().clone()
            found[name] = parameter
    return student, found


def train(
    trained: Mapping[str, nn.Parameter],
    back_propagate: Callable[[Tensor], None],
    calibration: Calibration,
    *,
    tokens: int,
    lr: float,
    known: Mapping[str, Tensor],
    saved: Mapping[str, Any] | None,
    warmup: float = 0.0,
) -> None:
    """Trains parameters in place with AdamW without weight decay, on four windows a step.

    The learning rate rises to `lr` in the first steps if there is a `warmup`, and then falls to 0 along a cosine. The
    windows of the calibration come in an order that is drawn from `calibration.rng`, and each is used at most once.

    Args:
        trained: the parameters to train, by name.
        back_propagate: computes the loss on tokens (B, T), adds its gradients to the parameters, and counts the cost.
        calibration: the text, and where the state is kept.
        tokens: how many tokens to train on; all windows if there are fewer.
        lr: the highest learning rate.
        known: further tensors by name, which are kept with the trained ones under "weights".
        saved: what `calibration.saved()` returned. The caller has already put the parameters under its "weights" in
            place.
        warmup: the fraction of the steps in which the learning rate rises.
    """
    for parameter in trained.values():
        parameter.requires_grad_(True)
    windows = calibration.windows
    steps = max(1, min(tokens, windows.numel()) // (BATCH * windows.shape[1]))
    order = torch.randperm(len(windows), generator=calibration.rng).split(BATCH)
    weights = {**known, **{name: value.detach() for name, value in trained.items()}}
    optimizer = torch.optim.AdamW(trained.values(), lr=lr, weight_decay=0.0)
    for name, averages in saved["averages"].items() if saved else ():
        optimizer.state[trained[name]] = {key: value.to(trained[name].device) for key, value in averages.items()}
    for step in range(saved["step"] if saved else 0, steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * _rate(step, steps, round(warmup * steps))
        optimizer.zero_grad()
        back_propagate(windows[order[step]])
        optimizer.step()
        calibration.progress(step + 1, steps)
        averages = {name: dict(optimizer.state[value]) for name, value in trained.items()}
        calibration.save({"step": step + 1, "weights": weights, "averages": averages})


def _rate(step: int, steps: int, rising: int) -> float:
    """Returns the learning rate of a step, relative to the highest, of which none is 0."""
    if step < rising:
        return (step + 1) / (rising + 1)
    return (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2
