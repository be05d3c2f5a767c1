"""Policies with one fault each; without it all of them would be a logit a unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Generator, Tensor

from polyprune_core import BoundPolicy, MaskBatch, Policy, PolicyStart


@dataclass(frozen=True)
class SoundBound:
    """Without fault: what the others bind to."""

    given: PolicyStart

    def start(self) -> Tensor:
        return self.given.keep_prob().logit()

    def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
        return Policy(Policy.bounded(parameters.sigmoid()))

    def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
        return gradient * policy.keep_prob * (1 - policy.keep_prob)

    def fisher(self, policy: Policy) -> Tensor:
        return policy.keep_prob * (1 - policy.keep_prob)

    def project(self, parameters: Tensor, sparsity: float) -> Tensor:
        return parameters - self.given.rule.at(sparsity).shift_logits(parameters, self.given.space)

    def ranking(self, parameters: Tensor) -> Tensor:
        return parameters


@dataclass(frozen=True)
class Sound:
    """Without fault: what the others are made from."""

    independent_units, optimizer, learning_rate, scope = True, "sgd", 1e-3, "kind"

    def bind(self, given: PolicyStart) -> BoundPolicy:
        return SoundBound(given)


class Bad(Sound):
    """Binds to `Bound`, which each of the others has of its own."""

    Bound: type[SoundBound]

    def bind(self, given: PolicyStart) -> BoundPolicy:
        return self.Bound(given)


@dataclass(frozen=True)
class UnknownOptimizer(Sound):
    optimizer = "lbfgs"  # type: ignore[assignment]


@dataclass(frozen=True)
class RateOfZero(Sound):
    learning_rate = 0.0


@dataclass(frozen=True)
class SaysNotWhoIsIndependent(Sound):
    independent_units = None  # type: ignore[assignment]


@dataclass(frozen=True)
class StartsAboveTheBudget(Bad):
    class Bound(SoundBound):
        def start(self) -> Tensor:
            return torch.full((len(self.given.space),), 2.0)


@dataclass(frozen=True)
class NeverComesBack(Bad):
    class Bound(SoundBound):
        def project(self, parameters: Tensor, sparsity: float) -> Tensor:
            return parameters.clone()


@dataclass(frozen=True)
class ForgetsTheOtherSparsity(Bad):
    """Projects onto the budget of the end, also while a warm-up asks for another."""

    class Bound(SoundBound):
        def project(self, parameters: Tensor, sparsity: float) -> Tensor:
            return super().project(parameters, self.given.rule.sparsity)


@dataclass(frozen=True)
class CertainUnits(Bad):
    class Bound(SoundBound):
        def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
            return Policy(parameters.sigmoid().round())


@dataclass(frozen=True)
class DoublePrecision(Bad):
    class Bound(SoundBound):
        def start(self) -> Tensor:
            return super().start().double()


@dataclass(frozen=True)
class RanksGroups(Bad):
    class Bound(SoundBound):
        def ranking(self, parameters: Tensor) -> Tensor:
            return parameters[[where.start for where in self.given.space.slices()]]


@dataclass(frozen=True)
class NaNFisherOfTies(Bad):
    """Divides by the spread of its parameters, which equal scores do not have."""

    class Bound(SoundBound):
        def fisher(self, policy: Policy) -> Tensor:
            spread = self.given.scores.values.std()
            return super().fisher(policy) * spread / spread


@dataclass(frozen=True)
class LosesTheSlope(Bad):
    """Hands on the gradient by keep_prob as if it were that by the logits."""

    class Bound(SoundBound):
        def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
            return gradient


@dataclass(frozen=True)
class WrongSign(Bad):
    class Bound(SoundBound):
        def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
            return -super().gradient(policy, gradient)


@dataclass(frozen=True)
class FisherMayBeZero(Bad):
    """Zero for units that are all but certain."""

    class Bound(SoundBound):
        def fisher(self, policy: Policy) -> Tensor:
            own = super().fisher(policy)
            return own.where(own > 2e-3, 0.0)


@dataclass(frozen=True)
class FisherOfKeepProb(Bad):
    """That of the keep probabilities, not of the logits."""

    class Bound(SoundBound):
        def fisher(self, policy: Policy) -> Tensor:
            return 1 / super().fisher(policy)


@dataclass(frozen=True)
class RanksBackwards(Bad):
    class Bound(SoundBound):
        def ranking(self, parameters: Tensor) -> Tensor:
            return -parameters


class OneDraw(Policy):
    """Keeps each unit with its probability, but the units of a mask share one draw."""

    def sample(self, num_masks: int, rng: Generator, *, antithetic: bool = False) -> MaskBatch:
        return MaskBatch(torch.rand((num_masks, 1), generator=rng) < self.keep_prob)


class KeepsOthers(Policy):
    """Keeps a little less than it says."""

    def sample(self, num_masks: int, rng: Generator, *, antithetic: bool = False) -> MaskBatch:
        return MaskBatch(torch.rand((num_masks, len(self.keep_prob)), generator=rng) < 0.95 * self.keep_prob)

    def score_function(self, batch: MaskBatch) -> Tensor:
        s = 0.95 * self.keep_prob
        return (batch.masks.float() - s) / (s * (1 - s))


class FloatMasks(Policy):
    def sample(self, num_masks: int, rng: Generator, *, antithetic: bool = False) -> MaskBatch:
        return MaskBatch(super().sample(num_masks, rng, antithetic=antithetic).masks.float())


CALLS = count(1)


class OwnSeeds(Policy):
    """Draws from a generator of its own, seeded anew each time."""

    def sample(self, num_masks: int, rng: Generator, *, antithetic: bool = False) -> MaskBatch:
        return super().sample(num_masks, torch.Generator().manual_seed(next(CALLS)), antithetic=antithetic)


class Globally(Policy):
    def sample(self, num_masks: int, rng: Generator, *, antithetic: bool = False) -> MaskBatch:
        return MaskBatch(torch.rand(num_masks, len(self.keep_prob)) < self.keep_prob)


class NotCentred(Policy):
    """Scores a mask without taking away what is expected."""

    def score_function(self, batch: MaskBatch) -> Tensor:
        return batch.masks.float() / (self.keep_prob * (1 - self.keep_prob))


class OfTheMask(Policy):
    """One score a mask, added up over its units."""

    def score_function(self, batch: MaskBatch) -> Tensor:
        return super().score_function(batch).sum(dim=1, keepdim=True)


class Drawing(Sound):
    """Binds to logits whose masks are drawn by `drawn`."""

    drawn: type[Policy]

    def bind(self, given: PolicyStart) -> BoundPolicy:
        drawn = self.drawn

        class Bound(SoundBound):
            def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
                return drawn(Policy.bounded(parameters.sigmoid()))

        return Bound(given)


@dataclass(frozen=True)
class UnitsShareADraw(Drawing):
    drawn = OneDraw


@dataclass(frozen=True)
class KeepsLessThanItSays(Drawing):
    drawn = KeepsOthers


@dataclass(frozen=True)
class DrawsFloatMasks(Drawing):
    drawn = FloatMasks


@dataclass(frozen=True)
class IgnoresItsGenerator(Drawing):
    drawn = OwnSeeds


@dataclass(frozen=True)
class DrawsGlobally(Drawing):
    drawn = Globally


@dataclass(frozen=True)
class ScoreIsNotCentred(Drawing):
    drawn = NotCentred


@dataclass(frozen=True)
class OneScoreAMask(Drawing):
    drawn = OfTheMask


@dataclass(frozen=True)
class ProjectsInPlace(Bad):
    class Bound(SoundBound):
        def project(self, parameters: Tensor, sparsity: float) -> Tensor:
            return parameters.sub_(self.given.rule.at(sparsity).shift_logits(parameters, self.given.space))


@dataclass(frozen=True)
class RemembersByItself(Sound):
    """Counts its calls, so that a search continued from its checkpoint goes another way."""

    def bind(self, given: PolicyStart) -> BoundPolicy:
        return Counting(given)


@dataclass(frozen=True)
class Counting(SoundBound):
    past: list[Tensor] = field(default_factory=list)

    def ranking(self, parameters: Tensor) -> Tensor:
        self.past.append(parameters)
        return parameters + 1e-3 * len(self.past)


FAULTS = {
    UnknownOptimizer: "search_defaults_are_declared",
    RateOfZero: "search_defaults_are_declared",
    SaysNotWhoIsIndependent: "search_defaults_are_declared",
    CertainUnits: "what_is_bound_returns_what_it_promises",
    DoublePrecision: "what_is_bound_returns_what_it_promises",
    RanksGroups: "what_is_bound_returns_what_it_promises",
    NaNFisherOfTies: "what_is_bound_returns_what_it_promises",
    StartsAboveTheBudget: "start_is_within_the_budget",
    NeverComesBack: "projection_comes_back_within_the_budget",
    ForgetsTheOtherSparsity: "projection_comes_back_within_the_budget",
    LosesTheSlope: "gradient_is_carried_over_exactly",
    WrongSign: "gradient_is_carried_over_exactly",
    FisherMayBeZero: "fisher_is_above_0",
    FisherOfKeepProb: "fisher_is_that_of_the_masks",
    RanksBackwards: "ranking_follows_the_keep_probabilities",
    UnitsShareADraw: "independent_units_are_independent",
    KeepsLessThanItSays: "independent_units_are_independent",
    DrawsFloatMasks: "policies_draw_masks",
    IgnoresItsGenerator: "policies_draw_masks",
    OneScoreAMask: "policies_draw_masks",
    DrawsGlobally: "policies_use_no_global_randomness",
    ScoreIsNotCentred: "scores_of_masks_are_zero_on_average",
    ProjectsInPlace: "given_tensors_are_left_alone",
    RemembersByItself: "parameters_are_all_there_is",
}
