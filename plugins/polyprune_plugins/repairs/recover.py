"""Recovery: the pruned model is trained further on text, to predict the next token.

It minimises the cross-entropy of calibration windows, averaged over all positions. It starts from the weights that
another repair made. With `full`, all weights except embeddings and output head are trained. With `lora`, every linear
module gets low-rank adapters W + (alpha / r) B A (LoRA, Hu et al. 2021, arXiv 2106.09685, section 4.1; here alpha is 2
r), which are added to the weights at the end. It trains with AdamW without weight decay in float32, four windows a step
in a random order, each at most once; the learning rate falls from `lr` to 0 along a cosine. Training also adapts a
model to the text: the row of the dense model after the same training shows how much.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from polyprune_core import ConfigError, Provider, Repair, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, PrunedModel

ADAPTED = ".lora_"
FIRST_STEP = {"full": 3e-4, "lora": 1e-3}


@dataclass(frozen=True)
class Recover:
    """Trains the weights that stay on text.

    Options:
        method: `full` trains all weights, `lora` trains adapters.
        tokens: how many tokens to train on; all windows of the repair's sample once, if there are fewer.
        rank: r, the rank of adapters; `full` does not use it.
        lr: the learning rate of the first step. 0 stands for 3e-4 with `full` and for 1e-3 with `lora`.
        start: the repair to start from.
    """

    method: Literal["full", "lora"] = "full"
    tokens: int = 65_536
    rank: int = 8
    lr: float = 0.0
    start: str = "none"

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.rank < 1 or not 0 <= self.lr < math.inf:
            raise ConfigError(
                f"repair 'recover': tokens={self.tokens}, rank={self.rank}, lr={self.lr:g} cannot be used; give "
                "tokens and rank from 1, and lr above 0 (0 stands for the default of the method)."
            )
        if self.method == "lora" and find_spec("peft") is None:
            raise ConfigError(
                "repair 'recover:lora' adapts with peft, which is missing: pip install 'polyprune[recover]'."
            )

    @property
    def trained_tokens(self) -> int:
        return self.tokens

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        from polyprune_core import train, trainable

        saved = calibration.saved()
        weights: dict[str, Tensor] = dict(saved["weights"] if saved else calibration.repair(self.start, pruned))
        known = {name: value for name, value in weights.items() if ADAPTED not in name}
        student, found = trainable(dataclasses.replace(pruned, updates=known))
        adapters = _adapters(student, self.rank, calibration) if self.method == "lora" else None
        trained = found if adapters is None else _adapted(adapters, weights)
        train(
            trained,
            lambda ids: _back_propagate(student, ids, calibration),
            calibration,
            tokens=self.tokens,
            lr=self.lr or FIRST_STEP[self.method],
            known=known,
            saved=saved,
        )
        if adapters is None:
            return known | {name: value.detach() for name, value in trained.items()}
        adapters.merge_and_unload()
        names, changed = pruned.names(), {_module(name) for name in trained}
        merged = {own: value for own, value in student.named_parameters() if own.rpartition(".")[0] in changed}
        return known | {names[own]: value.detach() for own, value in merged.items() if own.endswith(".weight")}


def _adapters(student: Any, rank: int, calibration: Calibration) -> Any:
    """Puts adapters on every linear module of the student, drawn from the calibration's generator."""
    import torch
    from peft import LoraConfig, get_peft_model

    seed = int(torch.randint(2**31, (), generator=calibration.rng))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an older name
        torch.manual_seed(seed)
        return get_peft_model(student, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def _adapted(adapters: Any, saved: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Returns the adapters' weights by name, as they were saved where they were."""
    import torch

    found = {name: parameter for name, parameter in adapters.named_parameters() if ADAPTED in name}
    with torch.no_grad():
        for name, parameter in found.items():
            if name in saved:
                parameter.copy_(saved[name])
    return found


def _module(name: str) -> str:
    """Returns the module of the student that an adapter's weight belongs to."""
    return name.removeprefix("base_model.model.").partition(ADAPTED)[0]


def _back_propagate(student: Any, ids: Tensor, calibration: Calibration) -> None:
    """Adds up the gradients of the mean cross-entropy of the next tokens of `ids` (B, T)."""
    import torch
    from torch.nn.functional import cross_entropy

    ids = ids.to(student.device)
    with torch.enable_grad():
        logits = student(input_ids=ids, use_cache=False).logits[:, :-1]
        cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
    calibration.count(ids.numel(), backward=True)


@hookimpl
def polyprune_repairs() -> Iterator[Provider[Repair]]:
    yield Provider(
        "recover",
        "trained further on text: all weights, or LoRA",
        Recover,
        needs=frozenset({"calibration", "mix", "gradients"}),
        reference="Hu et al. 2021, arXiv 2106.09685, for adapters",
        xfail={"nothing_removed_needs_no_repair": "training adapts to its text, whether or not anything was removed"},
    )
