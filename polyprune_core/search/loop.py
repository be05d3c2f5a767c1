"""The policy-gradient search: forward passes under sampled masks, a projected step, again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from polyprune_core.errors import PluginError
from polyprune_core.evaluation.losses import Objective
from polyprune_core.plugins.contracts import PRECONDITIONERS, GradientEstimator, State
from polyprune_core.pruning.types import MaskBatch, Policy
from polyprune_core.search.checkpoint import Checkpoint, unsupported_type
from polyprune_core.search.optimizer import cosine, ramp, stepped
from polyprune_core.search.policies.family import Family
from polyprune_core.search.policies.initial import entropy, expected_sparsity
from polyprune_core.search.trace import StepRecord, Trace

PLAIN = ("parameters", "worst", "step", "batches", "estimator", "optimizer", "average")


@dataclass(frozen=True)
class SearchOptions:
    """How the search steps.

    `precondition`: the gradient is divided by the diagonal Fisher information of the parameters to the power 0
    (`none`), 1/2 (`half-natural`, what the paper's released code does) or 1 (`natural`). The learning rate falls to 0
    along a cosine. `warmup`: fraction of the steps in which the sparsity rises to its goal. `averaging`: fraction of
    the steps, the last ones, whose parameters are averaged for the result.
    """

    steps: int
    masks_per_step: int
    learning_rate: float
    sparsity: float
    precondition: str = "half-natural"
    optimizer: str = "sgd"
    warmup: float = 0.0
    averaging: float = 0.0


@dataclass
class SearchState:
    """A search between two steps: all that decides how it goes on, and its record so far.

    `parameters` (P,) are the policy's, `average` (P,) the mean of the last ones so far; `batches` counts the batches of
    text drawn, `worst` is the largest finite loss met, in nats.
    """

    parameters: Tensor
    rng: torch.Generator
    worst: float
    step: int = 0
    batches: int = 0
    estimator: State = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    average: Tensor | None = None
    trace: Trace = field(default_factory=Trace)

    def tree(self) -> dict[str, Any]:
        """Returns the state as nested mappings and lists of numbers and tensors."""
        return {name: getattr(self, name) for name in PLAIN} | {
            "rng": self.rng.get_state(),
            "trace": asdict(self.trace),
        }

    def resumed(self, tree: Mapping[str, Any]) -> SearchState:
        """Returns the state that `tree` holds, for the search that this one would start.

        Raises:
            ValueError, KeyError, TypeError, RuntimeError: it holds the state of another search, or none.
        """
        ours, theirs = self.parameters, tree["parameters"]
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
            raise ValueError(f"its parameters are {tuple(theirs.shape)}, not {tuple(ours.shape)}")
        rng = torch.Generator(self.rng.device)
        rng.set_state(tree["rng"])
        records = [StepRecord(**record) for record in tree["trace"]["steps"]]
        if len(records) != tree["step"]:
            raise ValueError(f"it has {len(records)} records of {tree['step']} steps")
        trace = Trace(**{**tree["trace"], "steps": records})
        return SearchState(rng=rng, trace=trace, **{name: tree[name] for name in PLAIN})


def search(
    family: Family,
    parameters: Tensor,
    objective: Objective,
    estimator: GradientEstimator,
    batches: Iterator[Tensor],
    options: SearchOptions,
    rng: torch.Generator,
    on_step: Callable[[StepRecord], None] = lambda record: None,
    checkpoint: Checkpoint | None = None,
    on_resume: Callable[[Sequence[StepRecord]], None] = lambda records: None,
) -> tuple[Tensor, Trace]:
    """Returns the learned parameters of the family's policy and the trace of the search.

    Every step draws masks, runs them all on one batch of text, and moves the parameters against the estimated gradient
    of the expected loss, within the budget (arXiv 2406.10576, section 3). A non-finite loss counts as the largest
    finite loss met so far, at least that of a uniform guess over the vocabulary, and is reported.

    With `checkpoint` it goes on from the state that is kept there, to the same result bit for bit; `batches` are then
    the same ones from the start again, and `on_resume` sees the steps that were done before.
    """
    state = SearchState(parameters, rng, worst=math.log(objective.vocabulary))
    if checkpoint:
        state = checkpoint.read(state.resumed) or state
    for _ in range(state.batches):
        next(batches)
    if state.step:
        on_resume(state.trace.steps)
    clock = time.perf_counter() - state.trace.seconds
    while state.step < options.steps:
        on_step(_advance(state, family, objective, estimator, batches, options, clock))
        if checkpoint:
            checkpoint.keep(state.tree)
    learned = state.parameters if state.average is None else family.project(state.average, options.sparsity)
    return learned, state.trace


def _advance(
    state: SearchState,
    family: Family,
    objective: Objective,
    estimator: GradientEstimator,
    batches: Iterator[Tensor],
    options: SearchOptions,
    clock: float,
) -> StepRecord:
    before = (objective.forward_passes, objective.forward_tokens, objective.backward_passes)
    sparsity = ramp(options.sparsity, state.step, options.steps, options.warmup)
    policy = family.policy(state.parameters, sparsity, state.step / options.steps)
    batch = estimator.sample(policy, options.masks_per_step, state.rng)
    _check_masks(batch, options.masks_per_step, policy, estimator)
    batch, losses = _run(batch, objective, next(batches))
    state.batches += 1
    finite = losses.isfinite()
    state.worst = max([state.worst, *losses[finite].tolist()])
    losses = torch.where(finite, losses, torch.tensor(state.worst))
    gradient, state.estimator = _checked(estimator.gradient(policy, batch, losses, state.estimator), policy, estimator)
    _move(state, family, policy, gradient, PRECONDITIONERS[estimator.precondition or options.precondition], options)
    trace = state.trace
    after = (objective.forward_passes, objective.forward_tokens, objective.backward_passes)
    passes, tokens, backwards = (b - a for a, b in zip(before, after, strict=True))
    trace.forward_passes += passes
    trace.forward_tokens += tokens
    trace.backward_passes += backwards
    trace.non_finite += int((~finite).sum())
    trace.seconds = time.perf_counter() - clock
    record = StepRecord(
        step=state.step,
        losses=tuple(losses.tolist()),
        gradient_norm=float(gradient.norm()),
        expected_sparsity=expected_sparsity(policy, objective.space),
        entropy=entropy(policy),
        non_finite=int((~finite).sum()),
        forward_tokens=trace.forward_tokens,
        seconds=trace.seconds,
    )
    trace.steps.append(record)
    return record


def _run(batch: MaskBatch, objective: Objective, ids: Tensor) -> tuple[MaskBatch, Tensor]:
    if batch.gates is None:
        losses = objective.losses(batch.masks, ids)
    else:
        losses, slopes = objective.gradients(batch.gates, ids)
        batch = replace(batch, gate_gradients=slopes)
    if batch.reference is not None:
        batch = replace(batch, reference_loss=float(objective.losses(batch.reference[None], ids)[0]))
    return batch, losses


def _move(
    state: SearchState, family: Family, policy: Policy, gradient: Tensor, exponent: float, options: SearchOptions
) -> None:
    direction = family.gradient(policy, gradient) * family.fisher(policy) ** -exponent
    rate = cosine(options.learning_rate, state.step, options.steps)
    moved, state.optimizer = stepped(options.optimizer, state.parameters, direction, rate, state.optimizer)
    state.step += 1
    state.parameters = family.project(moved, ramp(options.sparsity, state.step, options.steps, options.warmup))
    count = state.step - math.floor((1 - options.averaging) * options.steps)
    if count > 0:
        old = state.parameters if state.average is None else state.average
        state.average = old + (state.parameters - old) / count


def _check_masks(batch: MaskBatch, num_masks: int, policy: Policy, estimator: GradientEstimator) -> None:
    expected = (num_masks, len(policy.keep_prob))
    masks = getattr(batch, "masks", None)
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or tuple(masks.shape) != expected:
        got = f"{masks.dtype} {tuple(masks.shape)}" if isinstance(masks, Tensor) else f"a {type(batch).__name__}"
        raise PluginError(f"{estimator!r} drew {got}; a MaskBatch of bool masks {expected} is needed.")


def _checked(returned: Any, policy: Policy, estimator: GradientEstimator) -> tuple[Tensor, State]:
    expected = tuple(policy.parameters.shape)
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], Tensor)):
        raise PluginError(f"{estimator!r} returned a {type(returned).__name__}; (gradient, state) is needed.")
    gradient, state = returned
    if tuple(gradient.shape) != expected or not gradient.isfinite().all():
        raise PluginError(
            f"{estimator!r} returned a gradient of shape {tuple(gradient.shape)} with "
            f"{int((~gradient.isfinite()).sum())} non-finite entries; {expected} finite numbers are needed."
        )
    if strange := unsupported_type(state):
        raise PluginError(
            f"{estimator!r} keeps {strange} in its state; names with numbers, tensors, and mappings and lists of them "
            "are needed, so that a search can be continued."
        )
    return gradient, state
