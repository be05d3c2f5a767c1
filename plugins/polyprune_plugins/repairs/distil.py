"""Distillation: what is left of the model is trained to say what the dense model says, without labels.

Minimises KL(dense || pruned), the mean over all positions of calibration windows, from what another repair made of the
weights (Hinton et al. 2015, arXiv 1503.02531, at temperature 1). AdamW without weight decay, `lr` falling to 0 along a
cosine, four windows a step in a random order, embeddings and output head frozen. Weights are trained in float32
whatever the model computes in. Training on a text is adaptation to that text too: the dense model that was trained
alike shows how much.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from polyprune_core import PluginError, Provider, Repair, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, PrunedModel

BATCH = 4
# Tokens whose logits exist at a time.
TOKENS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Distil:
    """`start`: the repair to start from. `train`: weights of readers, or all. `lr`: at first.

    `tokens`: to train on, at most all windows of the repair's sample once.
    """

    start: str = "least-squares"
    tokens: int = 65_536
    train: Literal["readers", "all"] = "all"
    lr: float = 3e-4

    def __post_init__(self) -> None:
        if self.tokens < 1 or not 0 < self.lr < math.inf:
            raise PluginError(f"repair 'distil': tokens={self.tokens} and lr={self.lr} have to be numbers above 0.")

    @property
    def trained_tokens(self) -> int:
        return self.tokens

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        import torch

        windows = calibration.windows
        steps = max(1, min(self.tokens, windows.numel()) // (BATCH * windows.shape[1]))
        order = torch.randperm(len(windows), generator=calibration.rng).split(BATCH)
        saved = calibration.saved() or {"step": 0, "weights": calibration.repair(self.start, pruned), "averages": {}}
        weights: dict[str, Tensor] = dict(saved["weights"])
        student, trained = self._student(dataclasses.replace(pruned, updates=weights))
        weights |= {name: value.detach() for name, value in trained.items()}  # which the optimizer writes into
        optimizer = torch.optim.AdamW(trained.values(), lr=self.lr, weight_decay=0.0)
        for name, averages in saved["averages"].items():
            optimizer.state[trained[name]] = {key: value.to(student.device) for key, value in averages.items()}
        for step in range(saved["step"], steps):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            _back_propagate(student, windows[order[step]], calibration)
            optimizer.step()
            calibration.progress(step + 1, steps)
            averages = {name: dict(optimizer.state[value]) for name, value in trained.items()}
            calibration.save({"step": step + 1, "weights": weights, "averages": averages})
        return weights

    def _student(self, pruned: PrunedModel) -> tuple[Any, dict[str, nn.Parameter]]:
        """Returns the smaller model in float32, and what is trained of it by name in the dense model."""
        student: Any = copy.deepcopy(pruned.build()).float()  # what nothing was cut from may be the dense model's own
        fixed = {id(module.weight) for module in (student.get_input_embeddings(), student.get_output_embeddings())}
        readers = tuple(f"{axis.reader}." for axis in pruned.layout.axes if axis.reader is not None)
        names, trained = pruned.names(), {}
        for own, parameter in student.named_parameters():
            name = names[own]
            if id(parameter) in fixed or (self.train == "readers" and not name.startswith(readers)):
                continue
            parameter.data = pruned.updates.get(name, parameter.data).to(parameter.device).float().clone()
            trained[name] = parameter.requires_grad_(True)
        return student, trained


def _back_propagate(student: Any, ids: Tensor, calibration: Calibration) -> None:
    """Adds up the gradients of the mean KL(dense || student) over the tokens of `ids` (B, T)."""
    import torch
    from torch.nn.functional import kl_div, log_softmax

    for some in ids.to(student.device).split(max(1, TOKENS_AT_A_TIME // ids.shape[1])):
        with torch.no_grad():
            wanted = log_softmax(calibration.model(input_ids=some, use_cache=False).logits.float(), dim=-1)
        calibration.count(some.numel())
        with torch.enable_grad():
            given = log_softmax(student(input_ids=some, use_cache=False).logits.float(), dim=-1)
            (kl_div(given, wanted, reduction="sum", log_target=True) / ids.numel()).backward()
        calibration.count(some.numel(), backward=True)


@hookimpl
def polyprune_repairs() -> Iterator[Provider[Repair]]:
    yield Provider(
        "distil",
        "trained to say what the dense model says",
        Distil,
        needs=frozenset({"calibration", "mix", "gradients"}),
        reference="Hinton et al. 2015, arXiv 1503.02531, at temperature 1, without labels",
    )
