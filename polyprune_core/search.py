"""The policy-gradient search: forward passes under sampled masks, a projected step, again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from polyprune_core.budget import project
from polyprune_core.errors import ConfigError, PluginError
from polyprune_core.objective import Objective
from polyprune_core.plugins.contracts import GradientEstimator, State
from polyprune_core.policy import entropy, expected_sparsity
from polyprune_core.resume import Checkpoint, stranger
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
    """Raises ConfigError unless the estimator can use that many masks a step."""
    if masks_per_step < estimator.min_masks or masks_per_step % estimator.mask_multiple:
        unit = f" in multiples of {estimator.mask_multiple}" if estimator.mask_multiple > 1 else ""
        raise ConfigError(
            f"estimator {name!r} needs at least {estimator.min_masks} masks a step{unit}, not {masks_per_step}; "
            f"change --masks-per-step."
        )


@dataclass
class SearchState:
    """A search between two steps: all that decides how it goes on, and its record so far.

    `batches` counts the batches of text drawn, `worst` is the largest finite loss met, in nats. `optimizer` is empty:
    the plain step keeps nothing.
    """

    policy: Policy
    rng: torch.Generator
    worst: float
    step: int = 0
    batches: int = 0
    estimator: State = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    trace: Trace = field(default_factory=Trace)

    def tree(self) -> dict[str, Any]:
        """Returns the state as nested mappings and lists of numbers and tensors."""
        numbers = {name: getattr(self, name) for name in ("worst", "step", "batches", "estimator", "optimizer")}
        return numbers | {
            "policy": {item.name: getattr(self.policy, item.name) for item in fields(self.policy)},
            "rng": self.rng.get_state(),
            "trace": asdict(self.trace),
        }

    def resumed(self, tree: Mapping[str, Any]) -> SearchState:
        """Returns the state that `tree` holds, for the search that this one would start.

        Raises:
            ValueError, KeyError, TypeError, RuntimeError: it holds the state of another search, or none.
        """
        policy = type(self.policy)(**tree["policy"])
        for item in fields(policy):
            ours, theirs = getattr(self.policy, item.name), getattr(policy, item.name)
            if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                raise ValueError(f"its {item.name} is {tuple(theirs.shape)}, not {tuple(ours.shape)}")
        rng = torch.Generator(self.rng.device)
        rng.set_state(tree["rng"])
        records = [StepRecord(**record) for record in tree["trace"]["steps"]]
        if len(records) != tree["step"]:
            raise ValueError(f"it has {len(records)} records of {tree['step']} steps")
        trace = Trace(**{**tree["trace"], "steps": records})
        rest = {name: tree[name] for name in ("worst", "step", "batches", "estimator", "optimizer")}
        return SearchState(policy=policy, rng=rng, trace=trace, **rest)


def search(
    policy: Policy,
    objective: Objective,
    estimator: GradientEstimator,
    batches: Iterator[Tensor],
    options: SearchOptions,
    rng: torch.Generator,
    on_step: Callable[[StepRecord], None] = lambda record: None,
    checkpoint: Checkpoint | None = None,
) -> tuple[Policy, Trace]:
    """Returns the learned policy and the trace of its search.

    Every step draws masks, runs them all on one batch of text, and moves keep_prob against the estimated gradient of
    the expected loss, projected onto the budget (arXiv 2406.10576, section 3). A non-finite loss counts as the largest
    finite loss met so far, at least that of a uniform guess over the vocabulary, and is reported.

    With `checkpoint` it goes on from the state that is kept there, to the same result bit for bit; `batches` are then
    the same ones from the start again.
    """
    state = SearchState(policy, rng, worst=math.log(objective.vocabulary))
    if checkpoint:
        state = checkpoint.read(state.resumed) or state
    for _ in range(state.batches):
        next(batches)
    for record in state.trace.steps:
        on_step(record)
    clock = time.perf_counter() - state.trace.seconds
    while state.step < options.steps:
        on_step(_advance(state, objective, estimator, batches, options, clock))
        if checkpoint:
            checkpoint.keep(state.tree)
    return state.policy, state.trace


def _advance(
    state: SearchState,
    objective: Objective,
    estimator: GradientEstimator,
    batches: Iterator[Tensor],
    options: SearchOptions,
    clock: float,
) -> StepRecord:
    passes, tokens = objective.forward_passes, objective.forward_tokens
    exponent = PRECONDITIONERS[estimator.precondition or options.precondition]
    batch = estimator.sample(state.policy, options.masks_per_step, state.rng)
    _check_masks(batch, options.masks_per_step, state.policy, estimator)
    losses = objective.losses(batch.masks, next(batches))
    state.batches += 1
    finite = losses.isfinite()
    state.worst = max([state.worst, *losses[finite].tolist()])
    losses = torch.where(finite, losses, torch.tensor(state.worst))
    returned = estimator.gradient(state.policy, batch, losses, state.estimator)
    gradient, state.estimator = _checked(returned, state.policy, estimator)
    state.policy = _step(state, gradient * _fisher(state.policy) ** exponent, objective, options)
    state.step += 1
    trace = state.trace
    trace.forward_passes += objective.forward_passes - passes
    trace.forward_tokens += objective.forward_tokens - tokens
    trace.non_finite += int((~finite).sum())
    trace.seconds = time.perf_counter() - clock
    record = StepRecord(
        step=state.step,
        losses=tuple(losses.tolist()),
        gradient_norm=float(gradient.norm()),
        expected_sparsity=expected_sparsity(state.policy, objective.space),
        entropy=entropy(state.policy),
        non_finite=int((~finite).sum()),
        forward_tokens=trace.forward_tokens,
        seconds=trace.seconds,
    )
    trace.steps.append(record)
    return record


def _fisher(policy: Policy) -> Tensor:
    return policy.keep_prob * (1 - policy.keep_prob)


def _step(state: SearchState, direction: Tensor, objective: Objective, options: SearchOptions) -> Policy:
    rate = options.learning_rate * (1 + math.cos(math.pi * state.step / options.steps)) / 2
    moved = state.policy.keep_prob - rate * direction
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
    if strange := stranger(state):
        raise PluginError(
            f"{estimator!r} keeps {strange} in its state; names with numbers, tensors, and mappings and lists of them "
            "are needed, so that a search can be continued."
        )
    return gradient, state
