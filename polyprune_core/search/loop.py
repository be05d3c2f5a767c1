"""The policy-gradient search: forward passes under sampled masks, a projected step, again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from polyprune_core.config.held_back import is_due
from polyprune_core.errors import PluginError
from polyprune_core.evaluation.losses import Objective
from polyprune_core.plugins.contracts import PRECONDITIONERS, BoundPolicy, GradientEstimator, State
from polyprune_core.pruning.types import MaskBatch, Policy
from polyprune_core.search.checkpoint import Checkpoint, unsupported_type
from polyprune_core.search.early_stopping import Best, EarlyStopping
from polyprune_core.search.optimizer import cosine, ramp, stepped
from polyprune_core.search.trace import StepRecord, Trace, entropy, expected_sparsity

PLAIN = ("parameters", "worst", "step", "batches", "estimator", "optimizer", "average")


@dataclass(frozen=True)
class SearchOptions:
    """How the search steps.

    `precondition`: the gradient is divided by the diagonal Fisher information of the parameters to the power 0
    (`none`), 1/2 (`half-natural`, what the paper's released code does) or 1 (`natural`). The learning rate falls to 0
    along a cosine. `warmup`: fraction of the steps in which the sparsity rises to its goal. `averaging`: fraction of
    the steps, the last ones, whose parameters are averaged for the result. `whole` (U,) bool: units that stay in every
    mask. `legal` takes masks (K, U) and what units are preferred by (U,) and returns what may be run instead of them:
    the search then learns from the losses of those.
    """

    steps: int
    masks_per_step: int
    learning_rate: float
    sparsity: float
    precondition: str = "half-natural"
    optimizer: str = "sgd"
    warmup: float = 0.0
    averaging: float = 0.0
    whole: Tensor | None = None
    legal: Callable[[Tensor, Tensor], Tensor] = lambda masks, ranking: masks


@dataclass(frozen=True)
class SearchState:
    """A search between two steps: all that decides how it goes on, and its record so far.

    `parameters` (P,) are the policy's, `average` (P,) the mean of the last ones so far, `best` those that lost least on
    text held back; `batches` counts the batches of text drawn, `worst` is the largest finite loss met, in nats.
    """

    parameters: Tensor
    rng: torch.Generator
    worst: float
    step: int = 0
    batches: int = 0
    estimator: State = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    average: Tensor | None = None
    best: Best = field(default_factory=Best)
    trace: Trace = field(default_factory=Trace)

    def tree(self) -> dict[str, Any]:
        """Returns the state as nested mappings and lists of numbers and tensors."""
        return {name: getattr(self, name) for name in PLAIN} | {
            "rng": self.rng.get_state(),
            "best": vars(self.best),
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
        return SearchState(rng=rng, trace=trace, best=Best(**tree["best"]), **{name: tree[name] for name in PLAIN})


def search(
    policy: BoundPolicy,
    parameters: Tensor,
    objective: Objective,
    estimator: GradientEstimator,
    batches: Iterator[Tensor],
    options: SearchOptions,
    rng: torch.Generator,
    on_step: Callable[[StepRecord], None] = lambda record: None,
    checkpoint: Checkpoint | None = None,
    on_resume: Callable[[Sequence[StepRecord]], None] = lambda records: None,
    stopping: EarlyStopping | None = None,
) -> tuple[Tensor, Trace]:
    """Returns the learned parameters of the policy and the trace of the search.

    Every step draws masks, runs them all on one batch of text, and moves the parameters against the estimated gradient
    of the expected loss, within the budget (arXiv 2406.10576, section 3). A non-finite loss counts as the largest
    finite loss met so far, at least that of a uniform guess over the vocabulary, and is reported.

    With `checkpoint` it goes on from the state that is kept there, to the same result bit for bit; `batches` are then
    the same ones from the start again, and `on_resume` sees the steps that were done before. With `stopping` the
    parameters are those that lost least where it looked, the start's among them, and fewer steps may be taken.
    """
    state = SearchState(parameters, rng, worst=math.log(objective.vocabulary))
    if checkpoint:
        state = checkpoint.read(state.resumed) or state
    for _ in range(state.batches):
        next(batches)
    if state.step:
        on_resume(state.trace.steps)
    stepper = Stepper(policy, objective, estimator, options)
    clock = time.perf_counter() - state.trace.seconds
    if stopping and not state.step:
        with objective.metered() as spent:
            best, state.trace.held_back = stopping.looked(state.best, state.parameters)
        state.trace.pay(spent)
        state = replace(state, best=best)
    while state.step < options.steps and not (stopping and stopping.is_over(state.best)):
        with objective.metered() as spent:
            state, seen = stepper.advance(state, next(batches))
            if stopping and is_due(state.step, options.steps):
                best, seen["held_back"] = stopping.looked(state.best, _learned(state, policy, options))
                state = replace(state, best=best)
        record = state.trace.add(spent, time.perf_counter() - clock, step=state.step, **seen)
        on_step(record)
        if checkpoint:
            checkpoint.keep(state.tree)
    learned = _learned(state, policy, options) if state.best.parameters is None else state.best.parameters
    return learned, state.trace


def _learned(state: SearchState, policy: BoundPolicy, options: SearchOptions) -> Tensor:
    return state.parameters if state.average is None else policy.project(state.average, options.sparsity)


@dataclass(frozen=True)
class Stepper:
    """One step of a search: what draws masks, what runs them, what estimates from them, and how far it goes."""

    policy: BoundPolicy
    objective: Objective
    estimator: GradientEstimator
    options: SearchOptions

    def advance(self, state: SearchState, ids: Tensor) -> tuple[SearchState, dict[str, Any]]:
        """Returns the state after a step on the text `ids` (B, T), and what the step saw."""
        options, estimator = self.options, self.estimator
        drawn_from = self.policy.policy(state.parameters, self._sparsity(state.step), state.step / options.steps)
        batch = estimator.sample(drawn_from, options.masks_per_step, state.rng)
        _check_masks(batch, options.masks_per_step, drawn_from, estimator)
        batch = _with(options.whole, batch)
        ran, losses = _run(_legal(batch, options.legal, drawn_from.keep_prob), self.objective, ids)
        batch = replace(batch, gate_gradients=ran.gate_gradients, reference_loss=ran.reference_loss)
        finite = losses.isfinite()
        worst = max([state.worst, *losses[finite].tolist()])
        losses = torch.where(finite, losses, torch.tensor(worst))
        returned = estimator.gradient(drawn_from, batch, losses, state.estimator)
        gradient, kept = _checked(returned, drawn_from, estimator)
        after = {"worst": worst, "batches": state.batches + 1, "estimator": kept}
        moved = replace(state, **after, **self._move(state, drawn_from, gradient))
        seen = {
            "losses": tuple(losses.tolist()),
            "gradient_norm": float(gradient.norm()),
            "expected_sparsity": expected_sparsity(drawn_from, self.objective.space),
            "entropy": entropy(drawn_from),
            "non_finite": int((~finite).sum()),
        }
        return moved, seen

    def _one_a_parameter(self, what: str, found: Tensor, parameters: Tensor) -> Tensor:
        if found.shape != parameters.shape:
            raise PluginError(
                f"{self.policy!r} returned {tuple(found.shape)} numbers from {what}; one for each of its "
                f"{len(parameters)} parameters is needed."
            )
        return found

    def _sparsity(self, step: int) -> float:
        return ramp(self.options.sparsity, step, self.options.steps, self.options.warmup)

    def _move(self, state: SearchState, drawn_from: Policy, gradient: Tensor) -> dict[str, Any]:
        """Returns what of the state a step against the gradient changes."""
        options = self.options
        exponent = PRECONDITIONERS[self.estimator.precondition or options.precondition]
        direction = self._one_a_parameter("gradient", self.policy.gradient(drawn_from, gradient), state.parameters)
        fisher = self._one_a_parameter("fisher", self.policy.fisher(drawn_from), state.parameters)
        direction = direction * fisher**-exponent
        rate = cosine(options.learning_rate, state.step, options.steps)
        moved, memory = stepped(options.optimizer, state.parameters, direction, rate, state.optimizer)
        if not moved.isfinite().all():
            raise PluginError(
                f"{self.estimator!r} returned a gradient of up to {float(gradient.abs().max()):.3g}, with "
                "which a step of the policy is not finite."
            )
        parameters = self.policy.project(moved, self._sparsity(state.step + 1))
        count, average = state.step + 1 - math.floor((1 - options.averaging) * options.steps), state.average
        if count > 0:
            before = parameters if average is None else average
            average = before + (parameters - before) / count
        return {"parameters": parameters, "optimizer": memory, "average": average, "step": state.step + 1}


def _with(whole: Tensor | None, batch: MaskBatch) -> MaskBatch:
    """Returns the batch with the units that stay in every mask."""
    if whole is None or not whole.any():
        return batch
    gates = None if batch.gates is None else batch.gates.masked_fill(whole, 1.0)
    reference = None if batch.reference is None else batch.reference | whole
    return replace(batch, masks=batch.masks | whole, gates=gates, reference=reference)


def _legal(batch: MaskBatch, legal: Callable[[Tensor, Tensor], Tensor], ranking: Tensor) -> MaskBatch:
    """Returns the batch with what may be run instead of its masks."""
    masks = legal(batch.masks, ranking)
    gates, reference = batch.gates, batch.reference
    gates = None if gates is None else torch.where(masks == batch.masks, gates, masks.to(gates.dtype))
    reference = None if reference is None else legal(reference[None], ranking)[0]
    return replace(batch, masks=masks, gates=gates, reference=reference)


def _run(batch: MaskBatch, objective: Objective, ids: Tensor) -> tuple[MaskBatch, Tensor]:
    if batch.gates is None:
        losses = objective.losses(batch.masks, ids)
    else:
        losses, slopes = objective.gradients(batch.gates, ids)
        batch = replace(batch, gate_gradients=slopes)
    if batch.reference is not None:
        batch = replace(batch, reference_loss=float(objective.losses(batch.reference[None], ids)[0]))
    return batch, losses


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
            + _way_out(policy)
        )
    if strange := unsupported_type(state):
        raise PluginError(
            f"{estimator!r} keeps {strange} in its state; names with numbers, tensors, and mappings and lists of them "
            "are needed, so that a search can be continued."
        )
    return gradient, state


def _way_out(policy: Policy) -> str:
    """Returns what an author should do whose formula is for one number a unit, where the policy has others."""
    if policy.parameters.shape == policy.keep_prob.shape:
        return ""
    return (
        f" This policy moves {len(policy.parameters)} numbers, not one for each of {len(policy.keep_prob)} units: "
        "multiply losses with policy.score_function(batch), or declare independent_units = True."
    )
