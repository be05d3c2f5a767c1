"""Estimators with one fault each; without it all of them would be RLOO."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Generator, Tensor

from polyprune_core import MaskBatch, Policy, State
from polyprune_core.pruning.types import EPS


@dataclass(frozen=True)
class Sound:
    """Without fault: what the others are made from."""

    min_masks = 2
    mask_multiple = 1
    unbiased = True
    precondition = None

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return policy.sample(num_masks, rng)

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        return (losses - losses.mean()) @ policy.score_function(batch) / (len(losses) - 1), None


@dataclass(frozen=True)
class DividesByK(Sound):
    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        return (losses - losses.mean()) @ policy.score_function(batch) / len(losses), None


@dataclass(frozen=True)
class SquareRootScore(Sound):
    """Divides m - s by the square root of s (1 - s)."""

    independent_units = True

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        gradient, state = super().gradient(policy, batch, losses, state)
        return gradient * (policy.keep_prob * (1 - policy.keep_prob)).sqrt(), state


@dataclass(frozen=True)
class OfKeepProb(Sound):
    """Writes (m - s) / (s (1 - s)) out, and does not say that it holds for independent units only."""

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        s = policy.keep_prob
        psi = (batch.masks.float() - s) / (s * (1 - s))
        return (losses - losses.mean()) @ psi / (len(losses) - 1), None


@dataclass(frozen=True)
class ScalesBySharing(Sound):
    """Takes the mean over units where several move one parameter."""

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        gradient, state = super().gradient(policy, batch, losses, state)
        return gradient * len(policy.parameters) / len(policy.keep_prob), state


@dataclass(frozen=True)
class DrawsBySharesAlone(Sound):
    """Draws each unit with its keep probability, whatever else the policy says of them."""

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return MaskBatch(torch.rand((num_masks, len(policy.keep_prob)), generator=rng) < policy.keep_prob)


@dataclass(frozen=True)
class WrongSign(Sound):
    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        gradient, state = super().gradient(policy, batch, losses, state)
        return -gradient, state


@dataclass(frozen=True)
class BaselineOfTheSameLosses(Sound):
    """Takes the current losses into its moving average before it subtracts it."""

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        mean = float(losses.mean())
        baseline = mean if state is None else state["baseline"] + (mean - state["baseline"]) / 2
        return (losses - baseline) @ policy.score_function(batch) / (len(losses) - 1), {"baseline": baseline}


@dataclass(frozen=True)
class OneDrawForAllUnits(Sound):
    """Keeps each unit with its probability, but the units of a mask share one draw."""

    independent_units = True

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return MaskBatch(torch.rand((num_masks, 1), generator=rng) < policy.keep_prob)


@dataclass(frozen=True)
class KeepsTheOthers(Sound):
    """Keeps each unit with the probability of removing it."""

    independent_units = True

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return MaskBatch(torch.rand((num_masks, len(policy.keep_prob)), generator=rng) >= policy.keep_prob)


@dataclass(frozen=True)
class SkewedSecond(Sound):
    """Every second mask keeps a little less; the mean over all masks hardly shows it."""

    min_masks = 2
    mask_multiple = 2
    independent_units = True

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        first = torch.rand((num_masks, len(policy.keep_prob)), generator=rng)
        first[1::2] *= 1.05
        return MaskBatch(first < policy.keep_prob)


@dataclass(frozen=True)
class FloatMasks(Sound):
    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return MaskBatch(policy.sample(num_masks, rng).masks.float())


@dataclass(frozen=True)
class OneMaskTooMany(Sound):
    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return policy.sample(num_masks + 1, rng)


@dataclass(frozen=True)
class DrawsGlobally(Sound):
    independent_units = True

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return MaskBatch(torch.rand(num_masks, len(policy.keep_prob)) < policy.keep_prob)


CALLS = count(1)


@dataclass(frozen=True)
class IgnoresItsGenerator(Sound):
    """Draws from a generator of its own, seeded anew each time."""

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return policy.sample(num_masks, torch.Generator().manual_seed(next(CALLS)))


@dataclass(frozen=True)
class SameMasksEveryStep(Sound):
    """Starts from the generator's first seed at every draw."""

    unbiased = False

    def sample(self, policy: Policy, num_masks: int, rng: Generator) -> MaskBatch:
        return policy.sample(num_masks, torch.Generator().manual_seed(7))


@dataclass(frozen=True)
class RowVector(Sound):
    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        gradient, state = super().gradient(policy, batch, losses, state)
        return gradient[None], state


@dataclass(frozen=True)
class DoublePrecision(Sound):
    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        gradient, state = super().gradient(policy, batch, losses, state)
        return gradient.double(), state


@dataclass(frozen=True)
class NoState(Sound):
    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> Tensor:  # type: ignore[override]
        return super().gradient(policy, batch, losses, state)[0]


@dataclass(frozen=True)
class SaysOneMaskIsEnough(Sound):
    min_masks = 1


@dataclass(frozen=True)
class DeclaresNothing(Sound):
    unbiased = None  # type: ignore[assignment]


@dataclass(frozen=True)
class UnknownPreconditioner(Sound):
    precondition = "full-natural"  # type: ignore[assignment]


@dataclass(frozen=True)
class NaNAtTheEnds(Sound):
    """Divides by the distance to the ends of the policy's range, to multiply by it again."""

    independent_units = True

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        gradient, state = super().gradient(policy, batch, losses, state)
        distance = (policy.keep_prob - EPS) * (1 - EPS - policy.keep_prob)
        return gradient / distance * distance, state


@dataclass(frozen=True)
class CentresInPlace(Sound):
    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        losses -= losses.mean()
        return losses @ policy.score_function(batch) / (len(losses) - 1), None


@dataclass(frozen=True)
class MovingAverage(Sound):
    """REINFORCE with a baseline of past losses, kept in what `update` returns."""

    def update(self, state: State, mean: Tensor) -> State:
        raise NotImplementedError

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        if state is None:
            return super().gradient(policy, batch, losses, None)[0], {"baseline": losses.mean()}
        gradient = (losses - state["baseline"]) @ policy.score_function(batch) / len(losses)
        return gradient, self.update(state, losses.mean())


@dataclass(frozen=True)
class UpdatesItsStateInPlace(MovingAverage):
    def update(self, state: State, mean: Tensor) -> State:
        state["baseline"].mul_(0.5).add_(mean / 2)  # type: ignore[index]
        return state


@dataclass(frozen=True)
class StateHoldsAList(MovingAverage):
    def update(self, state: State, mean: Tensor) -> State:
        return {"baseline": mean, "past": [*state.get("past", []), mean]}  # type: ignore[union-attr]


@dataclass(frozen=True)
class HiddenState(Sound):
    """Keeps its baseline to itself, so that a resumed run starts without."""

    past: list[float] = field(default_factory=list, init=False, compare=False)

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        baseline = self.past[-1] if self.past else 0.0
        self.past.append(float(losses.mean()))
        return (losses - baseline) @ policy.score_function(batch) / len(losses), None


FAULTS = {
    DividesByK: "gradient_is_unbiased",
    SquareRootScore: "gradient_is_unbiased",
    OfKeepProb: "units_that_move_together_have_a_gradient_too",
    ScalesBySharing: "gradient_is_unbiased_where_units_move_together",
    DrawsBySharesAlone: "units_that_move_together_have_a_gradient_too",
    WrongSign: "gradient_is_unbiased",
    BaselineOfTheSameLosses: "gradient_is_unbiased",
    OneDrawForAllUnits: "gradient_is_unbiased",
    KeepsTheOthers: "units_are_kept_with_their_probability",
    SkewedSecond: "units_are_kept_with_their_probability",
    FloatMasks: "sample_draws_masks",
    OneMaskTooMany: "sample_draws_masks",
    DrawsGlobally: "estimating_uses_no_global_randomness",
    IgnoresItsGenerator: "same_seed_draws_the_same_masks",
    SameMasksEveryStep: "every_draw_is_a_new_one",
    RowVector: "gradient_is_one_number_a_unit",
    DoublePrecision: "gradient_is_one_number_a_unit",
    NoState: "gradient_is_one_number_a_unit",
    SaysOneMaskIsEnough: "gradient_is_one_number_a_unit",
    DeclaresNothing: "properties_are_declared",
    UnknownPreconditioner: "properties_are_declared",
    NaNAtTheEnds: "gradient_is_finite_at_the_ends",
    CentresInPlace: "inputs_are_left_alone",
    UpdatesItsStateInPlace: "inputs_are_left_alone",
    StateHoldsAList: "state_holds_numbers_and_tensors",
    HiddenState: "resumed_run_equals_unbroken_run",
}
