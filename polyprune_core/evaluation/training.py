"""Weights of a smaller model trained on calibration windows, to go on after an interruption as if undisturbed."""

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
    """Returns the smaller model in float32, apart from the dense one, and its parameters by name in the dense model.

    Embeddings and output head are not among them.
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
) -> None:
    """Trains parameters with AdamW without weight decay, `lr` falling to 0 along a cosine, four windows a step.

    Windows of the calibration come in an order drawn from its generator, each at most once, until `tokens` are spent.
    `back_propagate(ids)` adds up the gradients of a batch (B, T) and counts what that costs.

    `saved` is what `calibration.saved()` has found, whose "weights" hold the trained parameters under their names as
    they were then; the caller has them in place. `known` (name to tensor) is kept beside them in "weights".
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
            group["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        back_propagate(windows[order[step]])
        optimizer.step()
        calibration.progress(step + 1, steps)
        averages = {name: dict(optimizer.state[value]) for name, value in trained.items()}
        calibration.save({"step": step + 1, "weights": weights, "averages": averages})
