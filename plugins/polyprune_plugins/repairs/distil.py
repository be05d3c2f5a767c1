"""Distillation: the pruned model is trained to predict what the dense model predicts. No labels are used.

It minimises KL(dense || pruned), averaged over all positions of calibration windows (Hinton et al. 2015, arXiv
1503.02531, with temperature 1). It starts from the weights that another repair made. It trains with AdamW without
weight decay, four windows a step in a random order. The learning rate rises to `lr` in the first steps, which at the
full rate undo some of what the other repair made, and then falls to 0 along a cosine. Embeddings and output head stay
as they are. The weights are trained in float32, whatever the model computes in. Training also adapts a model to the
text: the row of the dense model after the same training shows how much.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from polyprune_core import PluginError, Provider, Repair, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_core import Calibration, PrunedModel

# Tokens whose logits exist at a time.
TOKENS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Distil:
    """Trains the weights that stay to predict what the dense model predicts.

    Options:
        start: the repair to start from.
        tokens: how many tokens to train on; all windows of the repair's sample once, if there are fewer.
        train: which weights to train: those of the `readers`, or `all`.
        lr: the highest learning rate.
        warmup: the fraction of the steps in which the learning rate rises to that.
    """

    start: str = "least-squares"
    tokens: int = 65_536
    train: Literal["readers", "all"] = "all"
    lr: float = 3e-4
    warmup: float = 0.1

    def __post_init__(self) -> None:
        if self.tokens < 1 or not 0 < self.lr < math.inf or not 0 <= self.warmup < 1:
            raise PluginError(
                f"repair 'distil': tokens={self.tokens}, lr={self.lr:g}, warmup={self.warmup:g} cannot be used; give "
                "tokens from 1, lr above 0, and warmup from 0 to below 1."
            )

    @property
    def trained_tokens(self) -> int:
        return self.tokens

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        from polyprune_core import train, trainable

        saved = calibration.saved()
        known: dict[str, Tensor] = dict(saved["weights"] if saved else calibration.repair(self.start, pruned))
        student, found = trainable(dataclasses.replace(pruned, updates=known))
        readers = tuple(f"{axis.reader}." for axis in pruned.layout.axes if axis.reader is not None)
        names = [name for name in found if self.train == "all" or name.startswith(readers)]
        trained = {name: found[name] for name in names}
        train(
            trained,
            lambda ids: _back_propagate(student, ids, calibration),
            calibration,
            tokens=self.tokens,
            lr=self.lr,
            known=known,
            saved=saved,
            warmup=self.warmup,
        )
        return known | {name: value.detach() for name, value in trained.items()}


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
