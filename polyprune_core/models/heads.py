"""From last hidden states to logits, as a family says: what its model does after the output layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from polyprune_core.models.describe import model_type_of
from polyprune_core.models.families import family_of


def logits_head(model: Any) -> Callable[[Tensor], Tensor]:
    """Returns what makes logits (…, V) of last hidden states (…, H): the output layer, scaled and capped.

    `times` and `over` name the configuration fields of a factor and a divisor, `cap` that of a bound c in
    c tanh(logit / c). A field that is missing or empty does nothing.
    """
    family = family_of(model_type_of(model))
    config = family.decoder(model.config)
    output: Callable[[Tensor], Tensor] = model.get_output_embeddings()
    times, over, cap = (getattr(config, family.logits.get(key, ""), None) for key in ("times", "over", "cap"))
    if not (times or over or cap):
        return output

    def head(hidden: Tensor) -> Tensor:
        logits = output(hidden)
        if times:
            logits = logits * times
        if over:
            logits = logits / over
        return (logits / cap).tanh() * cap if cap else logits

    return head
