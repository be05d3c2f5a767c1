"""The one evaluation: perplexity, and agreement with the dense model, on stated windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from polyprune_core.errors import ModelError
from polyprune_core.evaluation.losses import FLOAT_ROWS, cross_entropy, head, last_hidden, predictions
from polyprune_core.models.remote_code import is_stock
from polyprune_core.pruning.provenance import last_name
from polyprune_core.utils.numbers import exp
from polyprune_core.utils.progress import Reporter, Task

Progress = Callable[[int, int], None]


def not_finite(what: str, model: Any) -> ModelError:
    """Returns the error for a model whose predictions are no numbers, with the likeliest cause."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    advice = "the weights hold such numbers themselves, or the model is broken"
    if dtype != "float32":
        advice = f"{dtype} is likely too narrow for it: give --dtype float32, or else {advice}"
    return ModelError(f"{what} computed in {dtype} predicts numbers that are not finite; {advice}.")


@dataclass(frozen=True)
class Evaluation:
    """Means over `tokens` predicted tokens: `nll` in nats; `kl_to_dense` in nats; `top1_agreement` as a fraction.

    `window_nll` is each window's own mean, in nats per token and in the order of the windows. `text` and `seq_len` say
    what was read: the text's name, and the tokens of a window.
    """

    nll: float
    tokens: int
    kl_to_dense: float | None = None
    top1_agreement: float | None = None
    window_nll: tuple[float, ...] = field(default=(), repr=False)
    text: str = ""
    seq_len: int | None = None

    @property
    def perplexity(self) -> float:
        """exp(nll), infinite where that overflows."""
        return exp(self.nll)


class Evaluator:
    """Evaluates models of one vocabulary on the same windows (N, T), next to the dense model's own predictions.

    The dense model's last hidden states are kept (N, T, H) in its dtype, so that a comparison costs one more language
    model head and no forward pass. One with code of its own runs again: what it makes of them only its code knows.
    `whole` is entered for that, where the dense model is the pruned one without its masks.
    """

    def __init__(
        self,
        windows: Tensor,
        batch_tokens: int = 2048,
        whole: Callable[[], AbstractContextManager[Any]] = nullcontext,
        text: str = "",
    ) -> None:
        self.text, self.windows, self.seq_len = text, *windows.shape
        self.batches = windows.split(max(1, batch_tokens // self.seq_len))
        self.dense_hidden: list[Tensor] = []
        self.dense_model: Any = None
        self._whole = whole

    def dense(self, model: Any, progress: Progress = lambda done, total: None) -> Evaluation:
        """Evaluates the dense model and remembers what it predicts; raises ModelError where that is not finite."""
        self.dense_hidden, self.dense_model = [], model
        return self._run(model, self.dense_hidden.append if is_stock(model) else _forget, progress)

    def compare(self, model: Any, progress: Progress = lambda done, total: None) -> Evaluation:
        """Evaluates a pruned model of the same vocabulary; raises ModelError where what it predicts is not finite."""
        return self._run(model, None, progress)

    @torch.inference_mode()
    def _run(self, model: Any, remember: Callable[[Tensor], None] | None, progress: Progress) -> Evaluation:
        nll = kl = agree = 0.0
        tokens = 0
        windows: list[float] = []
        compared = not remember and self.dense_model is not None
        for done, ids in enumerate(self.batches):
            ids = ids.to(model.device)
            hidden = last_hidden(model, ids)
            ours = predictions(head(model), hidden, ids)
            theirs = predictions(head(self.dense_model), self._dense(done, ids), ids) if compared else repeat(None)
            pieces = []
            for (logits, target), dense in zip(ours, theirs, strict=False):
                pieces.append(cross_entropy(logits, target))
                if not bool(pieces[-1].isfinite().all()):
                    raise not_finite("the model", model)
                if dense:
                    further, equal = _agreement(dense[0], logits, target, pieces[-1])
                    if not math.isfinite(further):
                        raise not_finite("the model", model)
                    kl, agree = kl + further, agree + equal
            losses = torch.cat(pieces).view(len(ids), -1)
            nll += float(losses.sum(dtype=torch.float64))
            windows += losses.mean(dim=1, dtype=torch.float64).tolist()
            tokens += losses.numel()
            if remember:
                remember(hidden)
            progress(done + 1, len(self.batches))
        divergence, same = (kl / tokens, agree / tokens) if compared else (None, None)
        return Evaluation(nll / tokens, tokens, divergence, same, tuple(windows), self.text, self.seq_len)

    def _dense(self, batch: int, ids: Tensor) -> Tensor:
        if self.dense_hidden:
            return self.dense_hidden[batch]
        with self._whole():
            return last_hidden(self.dense_model, ids)


def measured(found: Sequence[Evaluation], dense: Sequence[Evaluation]) -> tuple[dict[str, Any], ...]:
    """Returns what is told of a model beside the dense one, of each text and window length; no path of this machine."""
    return tuple(
        {
            "text": last_name(ours.text),
            "window": ours.seq_len,
            "tokens": ours.tokens,
            "perplexity": ours.perplexity,
            "dense": theirs.perplexity,
        }
        for ours, theirs in zip(found, dense, strict=True)
    )


def in_turn(
    evaluators: Sequence[Evaluator],
    run: Callable[[Evaluator, Any, Progress], Evaluation],
    model: Any,
    label: str,
    reporter: Reporter,
) -> tuple[Evaluation, ...]:
    """Returns what a model scores with each evaluator by `run`: `Evaluator.dense` or `Evaluator.compare`."""
    found: list[Evaluation] = []
    with reporter.task(f"perplexity of {label}", sum(len(each.batches) for each in evaluators)) as task:
        before = 0
        for each in evaluators:
            found.append(run(each, model, partial(_shown, task, before)))
            before += len(each.batches)
    return tuple(found)


def _shown(task: Task, before: int, done: int, total: int) -> None:
    task.update(before + done)


def _forget(hidden: Tensor) -> None:
    pass


def _agreement(dense: Tensor, pruned: Tensor, target: Tensor, losses: Tensor) -> tuple[float, float]:
    """Returns the summed KL(dense || pruned) in nats and the number of equal top-1 predictions.

    Of logits (R, V) each; `losses` (R,) are those of the next tokens `target` (R, 1) under `pruned`. A loss and the
    logit it belongs to tell the logarithm of the summed exponentials.
    """
    normalisers = [
        (loss + logits.gather(1, target).squeeze(1))[:, None]
        for loss, logits in ((cross_entropy(dense, target), dense), (losses, pruned))
    ]
    divergences = []
    for p, q, p_sum, q_sum in zip(*(each.split(FLOAT_ROWS) for each in (dense, pruned, *normalisers)), strict=True):
        log_p, log_q = p - p_sum, q - q_sum
        divergences.append(torch.linalg.vecdot(log_p.exp(), log_p - log_q))
    same = dense.max(dim=-1).indices == pruned.max(dim=-1).indices
    return float(torch.cat(divergences).sum(dtype=torch.float64)), float(same.sum())
