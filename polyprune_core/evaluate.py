"""The one evaluation: perplexity, and agreement with the dense model, on stated windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polyprune_core.objective import last_hidden, losses_from_hidden
from polyprune_core.statistics import exp

AGREEMENT_ROWS = 128

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """Means over `tokens` predicted tokens: `nll` in nats; `kl_to_dense` in nats; `top1_agreement` as a fraction.

    `window_nll` is each window's own mean, in nats per token and in the order of the windows.
    """

    nll: float
    tokens: int
    kl_to_dense: float | None = None
    top1_agreement: float | None = None
    window_nll: tuple[float, ...] = field(default=(), repr=False)

    @property
    def perplexity(self) -> float:
        """exp(nll), infinite where that overflows."""
        return exp(self.nll)


class Evaluator:
    """Evaluates models of one vocabulary on the same windows (N, T), next to the dense model's own predictions.

    The dense model's last hidden states are kept (N, T, H) in its dtype, so that a comparison costs one more language
    model head and no forward pass.
    """

    def __init__(self, windows: Tensor, batch_tokens: int = 2048) -> None:
        self.batches = windows.split(max(1, batch_tokens // windows.shape[1]))
        self.dense_hidden: list[Tensor] = []
        self.dense_head: Any = None

    def dense(self, model: Any, progress: Progress = lambda done, total: None) -> Evaluation:
        """Evaluates the dense model and remembers what it predicts."""
        self.dense_hidden, self.dense_head = [], model.get_output_embeddings()
        return self._run(model, self.dense_hidden.append, progress)

    def compare(self, model: Any, progress: Progress = lambda done, total: None) -> Evaluation:
        """Evaluates a pruned model of the same vocabulary."""
        return self._run(model, None, progress)

    @torch.inference_mode()
    def _run(self, model: Any, remember: Callable[[Tensor], None] | None, progress: Progress) -> Evaluation:
        nll = kl = agree = 0.0
        tokens = 0
        windows: list[float] = []
        for done, ids in enumerate(self.batches):
            ids = ids.to(model.device)
            hidden = last_hidden(model, ids)
            losses = losses_from_hidden(model, hidden, ids)
            nll += float(losses.sum(dtype=torch.float64))
            windows += losses.mean(dim=1, dtype=torch.float64).tolist()
            tokens += ids.shape[0] * (ids.shape[1] - 1)
            if remember:
                remember(hidden)
            elif self.dense_hidden:
                heads = (self.dense_head, model.get_output_embeddings())
                divergence, same = _agreement(heads, self.dense_hidden[done], hidden)
                kl, agree = kl + divergence, agree + same
            progress(done + 1, len(self.batches))
        if remember or not self.dense_hidden:
            return Evaluation(nll / tokens, tokens, window_nll=tuple(windows))
        return Evaluation(nll / tokens, tokens, kl / tokens, agree / tokens, tuple(windows))


def _agreement(heads: tuple[Any, Any], dense: Tensor, pruned: Tensor) -> tuple[float, float]:
    """Returns the summed KL(dense || pruned) in nats and the number of equal top-1 predictions."""
    pairs = zip(
        dense[:, :-1].flatten(0, 1).split(AGREEMENT_ROWS),
        pruned[:, :-1].flatten(0, 1).split(AGREEMENT_ROWS),
        strict=True,
    )
    kl = same = 0.0
    for rows in pairs:
        p, q = (torch.log_softmax(head(r), dim=-1, dtype=torch.float32) for head, r in zip(heads, rows, strict=True))
        kl += float((p.exp() * (p - q)).sum(dtype=torch.float64))
        same += float((p.argmax(-1) == q.argmax(-1)).sum())
    return kl, same
