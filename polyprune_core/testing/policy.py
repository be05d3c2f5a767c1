"""What a search policy owes: parameters within the budget, the geometry of a step, masks from its generator alone.

Units are heads and channels, or whole layers, of a tiny model, with scores drawn at random. U units, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from polyprune_core.errors import PluginError
from polyprune_core.plugins.guard import Guarded
from polyprune_core.plugins.registry import Registered
from polyprune_core.plugins.validation import check_defaults
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pools import SCOPES
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.starting import PolicyStart
from polyprune_core.pruning.types import EPS, SCOPE_NAMES, MaskBatch, Policy, Scores
from polyprune_core.testing.checking import NotRun, check, global_randomness_unused, made, require, require_close
from polyprune_core.testing.tiny import tiny_model, tiny_space
from polyprune_core.utils.rng import generator

UNITS = ("head+channel", "layer")
SPARSITY, OTHERS = 0.4, (0.1, 0.6)
DRAWS = 20_000
LIMIT = 5.0  # standard errors
STEP = 2e-3  # of a finite difference; float32 leaves four digits of it
EXACT = 0.01
DECLARES, PROMISES = "search_defaults_are_declared", "what_is_bound_returns_what_it_promises"
USES_NO_RANDOMNESS, DRAWS_MASKS = "policies_use_no_global_randomness", "policies_draw_masks"
POINTWISE = (PROMISES, USES_NO_RANDOMNESS)


def _given(units: str = UNITS[0], scope: str = "kind", *, tied: bool = False) -> PolicyStart:
    space = tiny_space(tiny_model(), units)
    values = torch.rand(len(space), generator=generator(0, "scores"))
    scores = Scores(torch.zeros_like(values) if tied else values, "tiny")
    return PolicyStart(space, scores, SelectionRule(SPARSITY, scope))


def _bound(plugin: Registered, given: PolicyStart | None = None) -> Any:
    return made(plugin).bind(given or _given(scope=made(plugin).scope))


def _starts(plugin: Registered) -> Iterator[tuple[PolicyStart, Any]]:
    """Yields what a policy may be bound to, and the policy bound to it: every scope and choice of units."""
    for units in UNITS:
        for scope in SCOPE_NAMES:
            given = _given(units, scope)
            yield given, _bound(plugin, given)


def _moved(parameters: Tensor, by: float = 1.0) -> Tensor:
    return parameters + by * torch.randn(len(parameters), generator=generator(0, "moved"))


@check("policy", "builds_with_its_defaults")
def search_defaults_are_declared(plugin: Registered) -> None:
    """optimizer, learning_rate, scope and independent_units are there, and are such as core can use."""
    try:
        check_defaults("it", made(plugin))
    except (PluginError, AttributeError) as error:
        raise AssertionError(f"what it declares cannot be used: {error}") from error


@check("policy", DECLARES)
def what_is_bound_returns_what_it_promises(plugin: Registered) -> None:
    """Vectors are float32 and finite, (P,) or (U,), and keep probabilities lie between 0 and 1, for every scope."""
    policy = Guarded(made(plugin), "policy", "it")
    for units in UNITS:
        for scope in SCOPE_NAMES:
            for tied in (False, True):
                given = _given(units, scope, tied=tied)
                try:
                    bound = policy.bind(given)
                    _require_sizes(bound, len(given.space), f"for {units} in scope {scope}")
                except PluginError as error:
                    raise AssertionError(f"for {units} in scope {scope}: {error}") from error


def _require_sizes(bound: Any, units: int, where: str) -> None:
    start = bound.start()
    policy = bound.policy(start, SPARSITY, 0.5)
    found = (tuple(policy.keep_prob.shape), policy.keep_prob.dtype)
    require(found == ((units,), torch.float32), f"{where} keep_prob is {found[1]} of shape {found[0]}, not ({units},)")
    vectors = {
        "gradient": (bound.gradient(policy, torch.ones_like(policy.parameters)), start.shape),
        "fisher": (bound.fisher(policy), start.shape),
        "project": (bound.project(_moved(start), SPARSITY), start.shape),
        "ranking": (bound.ranking(start), (units,)),
    }
    for name, (vector, shape) in vectors.items():
        require(
            tuple(vector.shape) == tuple(shape),
            f"{where} {name} returns {tuple(vector.shape)} numbers, not {tuple(shape)}",
        )


@check("policy", PROMISES, "building_uses_no_global_randomness")
def policies_use_no_global_randomness(plugin: Registered) -> None:
    """Neither binding, moving nor drawing touches a generator that others share."""
    with global_randomness_unused():
        bound = _bound(plugin)
        start = bound.project(bound.start(), SPARSITY)
        policy = bound.policy(start, SPARSITY)
        batch = policy.sample(4, generator(0, "draw"), antithetic=True)
        bound.gradient(policy, policy.score_function(batch)[0])
        bound.fisher(policy)
        bound.ranking(start)


@check("policy", *POINTWISE)
def policies_draw_masks(plugin: Registered) -> None:
    """Masks are (K, U) truth values from the generator given; their scores are (K, P), those of pairs (K / 2, P)."""
    bound = _bound(plugin)
    policy = bound.policy(bound.start(), SPARSITY, 0.5)
    units, parameters = len(policy.keep_prob), len(policy.parameters)
    for antithetic in (False, True):
        batch = policy.sample(6, generator(0, "draw"), antithetic=antithetic)
        require(isinstance(batch, MaskBatch), f"sample returns a {type(batch).__name__}, not a MaskBatch")
        found = (tuple(batch.masks.shape), batch.masks.dtype)
        require(found == ((6, units), torch.bool), f"masks are {found[1]} of shape {found[0]}, not bool (6, {units})")
        again = policy.sample(6, generator(0, "draw"), antithetic=antithetic)
        require(torch.equal(batch.masks, again.masks), "one seed drew two different sets of masks")
    for name, rows in (("score_function", 6), ("pair_score", 3)):
        shape = tuple(getattr(policy, name)(batch).shape)
        require(shape == (rows, parameters), f"{name} is of shape {shape}, not {(rows, parameters)}")


@check("policy", DRAWS_MASKS)
def scores_of_masks_are_zero_on_average(plugin: Registered) -> None:
    """The score function is the gradient of a log probability: over the policy's own masks its mean is zero."""
    bound = _bound(plugin)
    policy = bound.policy(bound.start(), SPARSITY, 0.5)
    scores = policy.score_function(policy.sample(DRAWS // 10, generator(0, "scores"))).double()
    error = scores.std(0) / len(scores) ** 0.5 + 1e-6
    away = float((scores.mean(0) / error).abs().max())
    require(away < LIMIT, f"over {len(scores)} masks the mean score is {away:.1f} standard errors away from 0")


@check("policy", DRAWS_MASKS)
def independent_units_are_independent(plugin: Registered) -> None:
    """With `independent_units`, parameters are keep_prob and each unit is drawn on its own with its probability."""
    if not made(plugin).independent_units:
        raise NotRun("its units are drawn together (independent_units = False)")
    bound = _bound(plugin)
    policy = bound.policy(bound.start(), SPARSITY, 0.5)
    s = policy.keep_prob.double()
    require(torch.equal(policy.parameters, policy.keep_prob), "the Policy's parameters are not its keep_prob")
    masks = policy.sample(DRAWS, generator(0, "marginals")).masks.double()
    z = (masks.mean(0) - s) / (s * (1 - s) / DRAWS).sqrt()
    require(z.abs().max() < LIMIT, f"a unit is kept {float(z.abs().max()):.1f} standard errors off its keep_prob")
    spread, expected = float(masks.sum(1).var()), float((s * (1 - s)).sum())
    require(
        abs(spread / expected - 1) < 0.1,
        f"the number of units kept varies by {spread:.3g}, that of independent ones by {expected:.3g}",
    )


def _require_within(bound: Any, plugin: Registered, given: PolicyStart, parameters: Tensor, sparsity: float) -> None:
    space, policy = given.space, bound.policy(parameters, sparsity, 0.5)
    independent = made(plugin).independent_units
    kept = policy.keep_prob if independent else policy.sample(64, generator(0, "budget")).masks.double().mean(0)
    for share in _shares(space, kept.double(), given.rule.scope):
        require(
            share <= 1 - sparsity + 1e-3,
            f"at sparsity {sparsity} in scope {given.rule.scope} it keeps {share:.4f} of a pool; {1 - sparsity:.2f} is "
            "the budget",
        )


def _shares(space: MaskSpace, kept: Tensor, scope: str) -> list[float]:
    """Returns the expected share of the price that each pool keeps; layers give way to each other within a kind."""
    labels = SCOPES["kind" if scope == "layer" else scope](space)
    wholes = torch.bincount(labels, space.price)
    return (torch.bincount(labels, space.price * kept) / wholes).tolist()


@check("policy", *POINTWISE, excusable=True)
def start_is_within_the_budget(plugin: Registered) -> None:
    """What the metric starts removes on average as much as is asked for, in every scope."""
    for given, bound in _starts(plugin):
        _require_within(bound, plugin, given, bound.start(), SPARSITY)


@check("policy", *POINTWISE, excusable=True)
def projection_comes_back_within_the_budget(plugin: Registered) -> None:
    """From anywhere, also at another sparsity, `project` brings the parameters back within the budget."""
    for given, bound in _starts(plugin):
        for sparsity in OTHERS:
            moved = bound.project(_moved(bound.start()), sparsity)
            _require_within(bound, plugin, given, moved, sparsity)


def _slopes(bound: Any, parameters: Tensor) -> Tensor:
    """Returns (P', P): the derivatives of the parameters of the Policy, by finite differences."""

    def at(place: int, step: float) -> Tensor:
        there = parameters.clone()
        there[place] += step
        policy: Policy = bound.policy(there, SPARSITY, 0.5)
        return policy.parameters.double() / (2 * STEP)

    return torch.stack([at(place, STEP) - at(place, -STEP) for place in range(len(parameters))], dim=1)


def _inside(policy: Policy) -> Tensor:
    """Returns (U,): which keep probabilities are not held at an end of their range, where they have no slope."""
    return (policy.keep_prob > EPS + STEP) & (policy.keep_prob < 1 - EPS - STEP)


@check("policy", *POINTWISE, excusable=True)
def gradient_is_carried_over_exactly(plugin: Registered) -> None:
    """`gradient` follows the chain rule: it agrees with finite differences of what the parameters make of masks."""
    bound = _bound(plugin)
    for parameters in (bound.start(), bound.project(_moved(bound.start(), 0.3), SPARSITY)):
        policy = bound.policy(parameters, SPARSITY, 0.5)
        worth = torch.randn(len(policy.parameters), generator=generator(0, "worth"))
        if len(policy.parameters) == len(policy.keep_prob):
            worth = worth.where(_inside(policy), 0.0)
        expected = worth.double() @ _slopes(bound, parameters)
        require_close(bound.gradient(policy, worth), expected, EXACT, "gradient, and finite differences of the policy")


@check("policy", *POINTWISE)
def fisher_is_above_0(plugin: Registered) -> None:
    """`fisher` can be divided by: above 0 at the start, after a move, and with probabilities at their ends."""
    bound = _bound(plugin)
    for by in (0.0, 1.0, 20.0):
        policy = bound.policy(bound.project(_moved(bound.start(), by), SPARSITY), SPARSITY, 0.5)
        least = float(bound.fisher(policy).min())
        require(least > 0, f"the smallest entry is {least:g}")


@check("policy", "gradient_is_carried_over_exactly", "fisher_is_above_0", excusable=True)
def fisher_is_that_of_the_masks(plugin: Registered) -> None:
    """For independent units it is the diagonal Fisher information of the parameters: slopes squared over s (1 - s)."""
    bound = _bound(plugin)
    policy = bound.policy(bound.start(), SPARSITY, 0.5)
    if not made(plugin).independent_units:
        raise NotRun("its units are drawn together (independent_units = False)")
    if not _inside(policy).all():
        raise NotRun("it starts with probabilities at the ends of their range")
    s = policy.keep_prob.double()
    expected = (_slopes(bound, bound.start()).square() / (s * (1 - s))[:, None]).sum(0)
    require_close(bound.fisher(policy), expected, 2 * EXACT, "fisher, and that of masks of its keep probabilities")


@check("policy", *POINTWISE, excusable=True)
def ranking_follows_the_keep_probabilities(plugin: Registered) -> None:
    """Within a layer and kind, a unit that masks keep more often is kept by the final selection first."""
    for given, bound in _starts(plugin):
        parameters = bound.project(_moved(bound.start(), 0.3), SPARSITY)
        keep_prob, order = bound.policy(parameters, SPARSITY).keep_prob, bound.ranking(parameters)
        for where, group in zip(given.space.slices(), given.space.groups, strict=True):
            ranked = keep_prob[where][order[where].argsort()]
            falls = int((ranked.diff() < -1e-4).sum())
            require(not falls, f"{falls} of {group.count} units of {group.kind} rank above one that is likelier kept")


@check("policy", *POINTWISE)
def given_tensors_are_left_alone(plugin: Registered) -> None:
    """Scores, parameters and gradients are not written to."""
    given = _given(scope=made(plugin).scope)
    bound = _bound(plugin, given)
    parameters = _moved(bound.start())
    policy = bound.policy(parameters, SPARSITY)
    gradient = torch.ones(len(policy.parameters))
    tensors = {"scores": given.scores.values, "parameters": parameters, "gradient": gradient}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    bound.gradient(policy, gradient)
    bound.fisher(policy)
    bound.project(parameters, SPARSITY)
    bound.ranking(parameters)
    changed = [name for name, tensor in tensors.items() if not torch.equal(tensor, before[name])]
    require(not changed, f"changed in place: {', '.join(changed)}")


@check("policy", *POINTWISE, "given_tensors_are_left_alone")
def parameters_are_all_there_is(plugin: Registered) -> None:
    """Bound anew and given the same parameters it goes on the same: a search continues from them alone."""
    used, anew = _bound(plugin), _bound(plugin)
    parameters = used.start()
    for step in range(3):
        policy = used.policy(parameters, SPARSITY, step / 3)
        moved = used.gradient(policy, torch.ones(len(policy.parameters)))
        parameters = used.project(parameters - 1e-3 * moved, SPARSITY)
        used.fisher(policy)
        used.ranking(parameters)
    for name, one, other in (
        ("policy", used.policy(parameters, SPARSITY).keep_prob, anew.policy(parameters, SPARSITY).keep_prob),
        ("project", used.project(_moved(parameters), SPARSITY), anew.project(_moved(parameters), SPARSITY)),
        ("ranking", used.ranking(parameters), anew.ranking(parameters)),
        ("start", used.start(), anew.start()),
    ):
        require(torch.equal(one, other), f"{name} gives something else once the policy has been used")
