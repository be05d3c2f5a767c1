"""The policy-gradient search: forward passes under sampled masks, a projected step, again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyprune_core.budget import project
from polyprune_core.errors import ConfigError, PluginError
from polyprune_core.objective import Objective
from polyprune_core.plugins.contracts import GradientEstimator, State
from polyprune_core.policy import entropy, expected_sparsity
from polyprune_core.types import MaskBatch, Policy, StepRecord, Trace

PRECONDITIONERS = {"none": 0.0, "half-natural": 0.5, "natural": 1.0}


@dataclass(frozen=True)
class SearchOptions:
    """How the search steps.

    `precondition`: the gradient is multiplied by (s (1 - s)) to the power 0 (`none`, the paper's formula), 1/2
    (`half-natural`, what the released code does) or 1 (`natural`). The learning rate falls to 0 along a cosine.
    """

    steps: int
    masks_per_step: int
    learning_rate: float
    sparsity: float
    scope: str
    precondition: str = "half-natural"


def check_estimator(name: str, estimator: GradientEstimator, masks_per_step: int) -> None:
    """Raises ConfigError unless the estimator can use that many masks a step, PluginError if it does not say."""
    for declared in ("min_masks", "mask_multiple"):
        value = getattr(estimator, declared)
        if type(value) is not int or value < 1:
            raise PluginError(f"estimator {name!r}: {declared} is {value!r}; a whole number above 0 is needed.")
    if type(estimator.unbiased) is not bool:
        raise PluginError(f"estimator {name!r}: unbiased is {estimator.unbiased!r}; True or False is needed.")
    if estimator.precondition not in (None, *PRECONDITIONERS):
        known = ", ".join(PRECONDITIONERS)
        raise PluginError(f"estimator {name!r}: precondition is {estimator.precondition!r}; None or one of {known}.")
    if masks_per_step < estimator.min_masks or masks_per_step % estimator.mask_multiple:
        unit = f" in multiples of {estimator.mask_multiple}" if estimator.mask_multiple > 1 else ""
        raise ConfigError(
            f"estimator {name!r} needs at least {estimator.min_masks} masks a step{unit}, not {masks_per_step}; "
            f"change --masks-per-step."
        )


def search(
    policy: Policy,
    objective: Objective,
    estimator: GradientEstimator,
    batches: Iterator[Tensor],
    options: SearchOptions,
    rng: torch.Generator,
    on_step: Callable[[StepRecord], None] = lambda record: None,
) -> tuple[Policy, Trace]:
    """Returns the learned policy and the trace of its search.

    Every step draws masks, runs them all on one batch of text, and moves keep_prob against the estimated gradient of
    the expected loss, projected onto the budget (arXiv 2406.10576, section 3). A non-finite loss counts as the largest
    finite loss met so far, at least that of a uniform guess over the vocabulary, and is reported.
    """
    space, trace = objective.space, Trace()
    state: State = None
    exponent = PRECONDITIONERS[estimator.precondition or options.precondition]
    worst = math.log(objective.vocabulary)
    passes, tokens = objective.forward_passes, objective.forward_tokens
    start = time.perf_counter()
    for step in range(options.steps):
        batch = estimator.sample(policy, options.masks_per_step, rng)
        _check_masks(batch, options.masks_per_step, policy, estimator)
        losses = objective.losses(batch.masks, next(batches))
        finite = losses.isfinite()
        worst = max([worst, *losses[finite].tolist()])
        losses = torch.where(finite, losses, torch.tensor(worst))
        gradient, state = _checked(estimator.gradient(policy, batch, losses, state), policy, estimator)
        policy = _step(policy, gradient * _fisher(policy) ** exponent, step, objective, options)
        record = StepRecord(
            step=step + 1,
            losses=tuple(losses.tolist()),
            gradient_norm=float(gradient.norm()),
            expected_sparsity=expected_sparsity(policy, space),
            entropy=entropy(policy),
            non_finite=int((~finite).sum()),
            forward_tokens=objective.forward_tokens - tokens,
            seconds=time.perf_counter() - start,
        )
        trace.steps.append(record)
        on_step(record)
    trace.forward_passes = objective.forward_passes - passes
    trace.forward_tokens = objective.forward_tokens - tokens
    trace.non_finite = sum(record.non_finite for record in trace.steps)
    trace.seconds = time.perf_counter() - start
    return policy, trace


def _fisher(policy: Policy) -> Tensor:
    return policy.keep_prob * (1 - policy.keep_prob)


def _step(policy: Policy, direction: Tensor, step: int, objective: Objective, options: SearchOptions) -> Policy:
    rate = options.learning_rate * (1 + math.cos(math.pi * step / options.steps)) / 2
    moved = policy.keep_prob - rate * direction
    return Policy(project(moved, objective.space, options.sparsity, options.scope))


def _check_masks(batch: MaskBatch, num_masks: int, policy: Policy, estimator: GradientEstimator) -> None:
    expected = (num_masks, len(policy.keep_prob))
    masks = getattr(batch, "masks", None)
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or tuple(masks.shape) != expected:
        got = f"{masks.dtype} {tuple(masks.shape)}" if isinstance(masks, Tensor) else f"a {type(batch).__name__}"
        raise PluginError(f"{estimator!r} drew {got}; a MaskBatch of bool masks {expected} is needed.")


def _checked(returned: Any, policy: Policy, estimator: GradientEstimator) -> tuple[Tensor, State]:
    expected = tuple(policy.keep_prob.shape)
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], Tensor)):
        raise PluginError(f"{estimator!r} returned a {type(returned).__name__}; (gradient, state) is needed.")
    gradient, state = returned
    if tuple(gradient.shape) != expected or not gradient.isfinite().all():
        raise PluginError(
            f"{estimator!r} returned a gradient of shape {tuple(gradient.shape)} with "
            f"{int((~gradient.isfinite()).sum())} non-finite entries; {expected} finite numbers are needed."
        )
    return gradient, state
