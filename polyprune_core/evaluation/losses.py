"""Next-token loss of a model, and of a model under masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyprune_core.models.heads import logits_head
from polyprune_core.models.remote_code import is_stock
from polyprune_core.pruning.gating import gated
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor

LOGIT_ROWS, FLOAT_ROWS = 256, 32


def last_hidden(model: Any, ids: Tensor) -> Tensor:
    """Returns (B, T, H): what `head` reads; of a model with code of its own that is its logits, (B, T, V)."""
    if is_stock(model):
        hidden: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def head(model: Any) -> Callable[[Tensor], Tensor]:
    """Returns what makes logits (…, V) of `last_hidden`."""
    return logits_head(model) if is_stock(model) else nn.Identity()


def losses_from_hidden(model: Any, hidden: Tensor, ids: Tensor) -> Tensor:
    """Returns (B, T - 1) float32 nats per token from (B, T, H)."""
    pieces = predictions(head(model), hidden, ids)
    return torch.cat([cross_entropy(logits, target) for logits, target in pieces]).view(ids.shape[0], -1)


def predictions(head: Any, hidden: Tensor, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields logits (R, V) from (B, T, H) and the tokens (R, 1) that came next, for R = 256 positions at a time."""
    positions = hidden[:, :-1].flatten(0, 1).split(LOGIT_ROWS)
    targets = ids[:, 1:].reshape(-1, 1).split(LOGIT_ROWS)
    for rows, target in zip(positions, targets, strict=True):
        logits = head(rows)
        yield logits, target.to(logits.device)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Returns (R,) nats of the tokens (R, 1) under logits (R, V), which exist in float32 for 32 rows at a time."""
    if logits.requires_grad:
        return F.cross_entropy(logits.float(), target.squeeze(1), reduction="none")
    chosen = logits.gather(1, target).float()
    # log sum exp(logit - chosen): no maximum to find, nothing underflows. Only a loss above 88 nats can overflow.
    scratch = torch.empty((FLOAT_ROWS, logits.shape[1]), dtype=torch.float32, device=logits.device)
    loss = torch.cat(
        [
            scratch[: len(rows)].copy_(rows).sub_(shift).exp_().sum(dim=-1)
            for rows, shift in zip(logits.split(FLOAT_ROWS), chosen.split(FLOAT_ROWS), strict=True)
        ]
    ).log_()
    if bool(loss.isfinite().all()):
        return loss
    return F.cross_entropy(logits.float(), target.squeeze(1), reduction="none")


def token_losses(model: Any, ids: Tensor) -> Tensor:
    """Returns (B, T - 1) float32: the loss of each next token in nats, for `ids` (B, T)."""
    return losses_from_hidden(model, last_hidden(model, ids), ids)


@dataclass
class Spent:
    """Passes through a model, and tokens in those that went forward."""

    forward_passes: int = 0
    forward_tokens: int = 0
    backward_passes: int = 0


class Metered(Spent):
    """Counts what it spends, in all and within blocks.

    Attributes:
        readings: the passes that others may have made already, and that are counted here.
        seconds_elsewhere: what counted passes took that another has made.
    """

    readings: set[Any] | frozenset[Any] = frozenset()
    seconds_elsewhere = 0.0

    def count(self, tokens: int, *, passes: int = 1, backward: bool = False) -> None:
        """Takes in forward passes of `tokens` each, and as many backward ones."""
        self.forward_passes += passes
        self.forward_tokens += passes * tokens
        self.backward_passes += passes * backward

    @contextmanager
    def metered(self) -> Iterator[Spent]:
        """Yields what the block spends, which is known at its end."""
        before, spent = counts(self), Spent()
        yield spent
        for name, value in counts(self).items():
            setattr(spent, name, value - before[name])


def counts(spent: Spent) -> dict[str, int]:
    """Returns the three counts by name."""
    return {each.name: getattr(spent, each.name) for each in fields(Spent)}


class Spread(Protocol):
    """Runs masks on copies of the model elsewhere."""

    def losses(self, space: MaskSpace, of: str, masks: Tensor, ids: Tensor) -> Tensor:
        """Returns what `Objective(…, space, of).losses(masks, ids)` returns."""

    def gradients(self, space: MaskSpace, of: str, gates: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what `Objective(…, space, of).gradients(gates, ids)` returns."""


class Objective(Metered):
    """Masks and a batch of text in, losses out; counts what it spends.

    `of` says which loss: `cross-entropy` of the next tokens, or `kl`, KL(dense || pruned) over them, which takes one
    pass through the dense model for every batch. With `spread` the masks are run there, and count as if run here.
    """

    def __init__(
        self, compactor: Compactor, space: MaskSpace, of: str = "cross-entropy", spread: Spread | None = None
    ) -> None:
        super().__init__()
        self.of, self.spread = of, spread
        self.compactor, self.space = compactor, space
        config: Any = compactor.model.config
        self.vocabulary = int(config.get_text_config().vocab_size)
        self.device = next(compactor.model.parameters()).device

    @torch.inference_mode()
    def losses(self, masks: Tensor, ids: Tensor) -> Tensor:
        """Returns (K,) float32: the mean loss in nats per token under each of `masks` (K, U) on `ids` (B, T)."""
        if self.spread:
            self._count_spread(len(masks), ids)
            return self.spread.losses(self.space, self.of, masks, ids)
        ids, values = ids.to(self.device), []
        dense = self._dense(ids)
        for mask in masks:
            with self.compactor.applied(self.space.axis_keep(mask)) as model:
                values.append(self._loss(model, ids, dense))
            self.count(ids.numel())
        return torch.stack(values).cpu()

    def gradients(self, gates: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (K,) losses as `losses` does and (K, U) float32 their derivatives with respect to `gates` (K, U).

        The whole model runs, each unit multiplied by its gate, and back-propagation follows.
        """
        if self.spread:
            self._count_spread(len(gates), ids, backward=True)
            return self.spread.gradients(self.space, self.of, gates, ids)
        ids = ids.to(self.device)
        values, gradients, dense = [], [], self._dense(ids)
        for gate in gates:
            leaf = gate.float().requires_grad_(True)
            with (
                torch.enable_grad(),
                gated(self.compactor.model, self.space.layout, self.space.axis_keep(leaf)) as model,
            ):
                loss = self._loss(model, ids, dense)
                gradients.append(torch.autograd.grad(loss, leaf)[0])
            values.append(loss.detach())
            self.count(ids.numel(), backward=True)
        return torch.stack(values).cpu(), torch.stack(gradients).cpu()

    def _count_spread(self, masks: int, ids: Tensor, backward: bool = False) -> None:
        self.count(ids.numel(), passes=int(self.of == "kl"))
        self.count(ids.numel(), passes=masks, backward=backward)

    @torch.no_grad()
    def _dense(self, ids: Tensor) -> Tensor | None:
        """Returns the last hidden states of the dense model, where the loss is about them."""
        if self.of != "kl":
            return None
        self.count(ids.numel())
        with self.compactor.applied({}) as model:
            return last_hidden(model, ids)

    def _loss(self, model: Any, ids: Tensor, dense: Tensor | None) -> Tensor:
        if dense is None:
            return token_losses(model, ids).mean()
        ours, theirs = (predictions(head(model), hidden, ids) for hidden in (last_hidden(model, ids), dense))
        total = torch.zeros((), device=dense.device)
        for (logits, _), (wanted, _) in zip(ours, theirs, strict=True):
            log_p, log_q = wanted.float().log_softmax(dim=-1), logits.float().log_softmax(dim=-1)
            total = total + (log_p.exp() * (log_p - log_q)).sum()
        return total / ids[:, 1:].numel()
