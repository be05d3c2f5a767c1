"""What an estimator owes: masks drawn from the policy, and the gradient of the expected loss on average.

U = 4 units, so that the expected loss is a sum over 16 masks and its gradient is known exactly.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from polyprune_core.errors import ConfigError, PluginError
from polyprune_core.plugins.contracts import State, independent_units
from polyprune_core.plugins.guard import described
from polyprune_core.plugins.registry import Registered
from polyprune_core.plugins.validation import check_estimator
from polyprune_core.pruning.types import EPS, MaskBatch, Policy
from polyprune_core.testing import together
from polyprune_core.testing.checking import NotRun, check, global_randomness_unused, made, require
from polyprune_core.utils.rng import generator

KEEP_PROB = torch.tensor([0.2, 0.5, 0.35, 0.8])
UNITS = len(KEEP_PROB)
DRAWS, STEPS = 20_000, 2000
LIMIT = 5.0  # standard errors; an estimator without fault exceeds it once in 100,000 changes of its random numbers
DECLARES, DRAWS_MASKS, GRADIENT = "properties_are_declared", "sample_draws_masks", "gradient_is_one_number_a_unit"
WAY_OUT = (
    "Multiply losses with policy.score_function(batch) instead of (m - s) / (s (1 - s)), and draw with policy.sample; "
    "or declare independent_units = True, and users add a --policy that draws units so, such as probabilities."
)
UNBIASED, TOGETHER = "gradient_is_unbiased", "units_that_move_together_have_a_gradient_too"
USES_NO_RANDOMNESS, MARGINALS = "estimating_uses_no_global_randomness", "units_are_kept_with_their_probability"


def _loss(masks: Tensor) -> Tensor:
    """Returns (K,) float32: an arbitrary loss of masks (K, 4), of every order, no two units alike."""
    m = masks.double()
    linear = m @ torch.tensor([-1.3, 0.7, 0.4, -2.1], dtype=torch.float64)
    return (4 + linear + 1.5 * m[:, 0] * m[:, 1] - m[:, 2] * m[:, 3] + 0.8 * m[:, 0] * m[:, 2] * m[:, 3]).float()


@cache
def _exact_gradient() -> Tensor:
    """Returns (4,) float64: d/ds of the sum over all masks of p(mask) loss(mask)."""
    masks = torch.tensor(list(product([False, True], repeat=UNITS)))
    s = KEEP_PROB.double().requires_grad_(True)
    probability = torch.where(masks, s, 1 - s).prod(dim=1)
    return torch.autograd.grad(probability @ _loss(masks).double(), s)[0]


def _num_masks(estimator: Any, at_least: int) -> int:
    multiple = int(estimator.mask_multiple)
    return -(-max(int(estimator.min_masks), at_least) // multiple) * multiple


def _answered(batch: MaskBatch) -> tuple[MaskBatch, Tensor]:
    """Returns the batch with what it asks for beside its losses, and (K,) losses: of the gates, where it has any."""
    if batch.reference is not None:
        batch = replace(batch, reference_loss=float(_loss(batch.reference[None])))
    if batch.gates is None:
        return batch, _loss(batch.masks)
    gates = batch.gates.clone().requires_grad_(True)
    losses = _loss(gates)
    return replace(batch, gate_gradients=torch.autograd.grad(losses.sum(), gates)[0]), losses.detach()


def _step(estimator: Any, num_masks: int, seed: str, state: State = None) -> tuple[Tensor, State]:
    policy = Policy(KEEP_PROB.clone())
    batch, losses = _answered(estimator.sample(policy, num_masks, generator(0, seed)))
    result: tuple[Tensor, State] = estimator.gradient(policy, batch, losses, state)
    return result


def _run(estimator: Any, steps: range, state: State) -> tuple[list[Tensor], State]:
    num_masks, gradients = _num_masks(estimator, 2), []
    for step in steps:
        gradient, state = _step(estimator, num_masks, f"step {step}", state)
        gradients.append(gradient)
    return gradients, state


@check("estimator", "builds_with_its_defaults")
def properties_are_declared(plugin: Registered) -> None:
    """min_masks, mask_multiple, unbiased and precondition are there, and core refuses a step with too few masks."""
    estimator = made(plugin)
    try:
        check_estimator(plugin.provider.name, estimator, _num_masks(estimator, 1))
    except (PluginError, AttributeError, TypeError) as error:
        raise AssertionError(f"what it declares cannot be used: {error}") from error
    try:
        check_estimator(plugin.provider.name, estimator, estimator.min_masks - 1)
    except ConfigError:
        return
    raise AssertionError("a step with fewer masks than min_masks is not refused")


@check("estimator", DECLARES)
def sample_draws_masks(plugin: Registered) -> None:
    """A draw is a MaskBatch with masks (K, U) of truth values, for the smallest and for larger K."""
    estimator = made(plugin)
    for num_masks in (_num_masks(estimator, 1), _num_masks(estimator, 6)):
        batch = estimator.sample(Policy(KEEP_PROB.clone()), num_masks, generator(0, "draw"))
        require(isinstance(batch, MaskBatch), f"sample returns a {type(batch).__name__}, not a MaskBatch")
        found = (tuple(batch.masks.shape), batch.masks.dtype)
        expected = ((num_masks, UNITS), torch.bool)
        require(found == expected, f"masks are {found[1]} of shape {found[0]}, not {expected[1]} of {expected[0]}")


@check("estimator", DRAWS_MASKS, "building_uses_no_global_randomness")
def estimating_uses_no_global_randomness(plugin: Registered) -> None:
    """Neither drawing nor estimating touches a generator that others share."""
    estimator = made(plugin)
    with global_randomness_unused():
        _step(estimator, _num_masks(estimator, 2), "draw")


@check("estimator", DRAWS_MASKS, USES_NO_RANDOMNESS)
def same_seed_draws_the_same_masks(plugin: Registered) -> None:
    """Masks come from the generator that is given: the same state of it, the same masks."""
    estimator, policy = made(plugin), Policy(torch.full((50,), 0.5))
    first, again = (
        estimator.sample(policy, _num_masks(estimator, 4), generator(1, "draw")).masks for estimator in (estimator,) * 2
    )
    require(torch.equal(first, again), "one seed drew two different sets of masks")


@check("estimator", DRAWS_MASKS, USES_NO_RANDOMNESS, excusable=True)
def every_draw_is_a_new_one(plugin: Registered) -> None:
    """Drawing advances the generator, and another seed draws other masks."""
    estimator, policy, rng = made(plugin), Policy(torch.full((50,), 0.5)), generator(1, "draw")
    num_masks = _num_masks(estimator, 4)
    first, second, other = (estimator.sample(policy, num_masks, r).masks for r in (rng, rng, generator(2, "draw")))
    require(not torch.equal(first, second), "two draws from one generator are the same masks")
    require(not torch.equal(first, other), "two seeds drew the same masks")


@check("estimator", DRAWS_MASKS, excusable=True)
def units_are_kept_with_their_probability(plugin: Registered) -> None:
    """Every mask of a step keeps unit i with probability keep_prob[i], whatever its place in the step."""
    estimator = made(plugin)
    num_masks = _num_masks(estimator, DRAWS)
    masks = estimator.sample(Policy(KEEP_PROB.clone()), num_masks, generator(0, "marginals")).masks
    for place in range(estimator.mask_multiple):
        part = masks[place :: estimator.mask_multiple].double()
        z = (part.mean(0) - KEEP_PROB) / (KEEP_PROB * (1 - KEEP_PROB) / len(part)).sqrt()
        shares = [round(share, 3) for share in part.mean(0).tolist()]
        probabilities = [round(p, 3) for p in KEEP_PROB.tolist()]
        require(z.abs().max() < LIMIT, f"units of keep_prob {probabilities} are kept in shares {shares}")


@check("estimator", DRAWS_MASKS)
def gradient_is_one_number_a_unit(plugin: Registered) -> None:
    """The gradient is (U,) finite float32, already with the fewest masks that the estimator says it needs."""
    estimator = made(plugin)
    for num_masks in (_num_masks(estimator, 1), _num_masks(estimator, 6)):
        gradient, _ = _step(estimator, num_masks, "draw")
        found = (tuple(gradient.shape), gradient.dtype)
        expected = ((UNITS,), torch.float32)
        where = f"with {num_masks} masks the gradient"
        require(found == expected, f"{where} is {found[1]} of shape {found[0]}, not {expected[1]} of {expected[0]}")
        require(gradient.isfinite().all(), f"{where} is {gradient.tolist()}")


@check("estimator", GRADIENT, MARGINALS)
def gradient_is_unbiased(plugin: Registered) -> None:
    """On average, at the first step and given any past, the gradient is the exact one; not for `unbiased = False`."""
    estimator = made(plugin)
    if not estimator.unbiased:
        raise NotRun("it says that it is biased (unbiased = False)")
    _, past = _run(estimator, range(3), None)
    for num_masks in {_num_masks(estimator, 2), _num_masks(estimator, 4)}:
        _require_unbiased(estimator, num_masks, None, f"at the first step, with {num_masks} masks,")
        if past is not None:
            _require_unbiased(estimator, num_masks, past, f"after three steps, with {num_masks} masks,")


def _require_unbiased(estimator: Any, num_masks: int, state: State, where: str, policy: Policy | None = None) -> None:
    exact = _exact_gradient() if policy is None else together.exact_gradient(_loss)
    policy, rng = policy or Policy(KEEP_PROB.clone()), generator(0, where)
    found = []
    for _ in range(STEPS):
        batch, losses = _answered(estimator.sample(policy, num_masks, rng))
        found.append(estimator.gradient(policy, batch, losses, copy.copy(state))[0].double())
    drawn = torch.stack(found)
    # The share along the exact gradient, 1 without bias, finds a wrong factor that no unit alone would show.
    statistics = torch.cat([drawn, (drawn @ exact / (exact @ exact))[:, None]], dim=1)
    expected = torch.cat([exact, torch.ones(1, dtype=torch.float64)])
    error = statistics.std(0) / STEPS**0.5 + 1e-6
    z = (statistics.mean(0) - expected) / error
    mean = [round(value, 3) for value in drawn.mean(0).tolist()]
    message = (
        f"{where} the mean of {STEPS} estimates is {mean}, the exact gradient {[round(v, 3) for v in exact.tolist()]}"
    )
    require(z.abs().max() < LIMIT, f"{message}: {float(z.abs().max()):.1f} standard errors apart")


@check("estimator", GRADIENT, USES_NO_RANDOMNESS)
def units_that_move_together_have_a_gradient_too(plugin: Registered) -> None:
    """The parameters of a policy need not be keep probabilities, as those of the default policy are not: P is not U.

    Not for `independent_units = True`, which core refuses to run on such a policy.
    """
    estimator = made(plugin)
    if independent_units(estimator):
        raise NotRun("it says that it is for units drawn independently (independent_units = True)")
    policy = together.together()
    num_masks = _num_masks(estimator, 2)
    try:
        batch, losses = _answered(estimator.sample(policy, num_masks, generator(0, "together")))
        gradient, _ = estimator.gradient(policy, batch, losses, None)
    except Exception as error:
        raise AssertionError(f"it raises {described(error)}. {WAY_OUT}") from error
    found, expected = tuple(gradient.shape), tuple(policy.parameters.shape)
    require(
        found == expected,
        f"for a policy of {len(policy.parameters)} parameters that {UNITS} units share, the gradient is of shape "
        f"{found}, not {expected}. {WAY_OUT}",
    )


@check("estimator", UNBIASED, TOGETHER)
def gradient_is_unbiased_where_units_move_together(plugin: Registered) -> None:
    """On average it is the exact gradient there too; not for `unbiased = False`."""
    estimator = made(plugin)
    _require_unbiased(estimator, _num_masks(estimator, 2), None, "for units that move together", together.together())


@check("estimator", GRADIENT)
def gradient_is_finite_at_the_ends(plugin: Registered) -> None:
    """Keep probabilities at the ends of their range give finite numbers, also for masks of probability 1 in 1000."""
    estimator, policy = made(plugin), Policy(torch.tensor([EPS, 1 - EPS] * 2))
    num_masks = _num_masks(estimator, 3000)
    batch, losses = _answered(estimator.sample(policy, num_masks, generator(0, "ends")))
    _, past = _run(estimator, range(2), None)
    for state in (None, past):
        gradient, _ = estimator.gradient(policy, batch, losses, copy.copy(state))
        require(gradient.isfinite().all(), f"at keep_prob {policy.keep_prob.tolist()} it is {gradient.tolist()}")


@check("estimator", GRADIENT)
def inputs_are_left_alone(plugin: Registered) -> None:
    """Policy, masks, noise, losses and state are not written to."""
    estimator = made(plugin)
    policy = Policy(KEEP_PROB.clone())
    _, state = _run(estimator, range(2), None)
    batch, losses = _answered(estimator.sample(policy, _num_masks(estimator, 4), generator(0, "draw")))
    given = {
        "keep_prob": policy.keep_prob,
        "masks": batch.masks,
        "noise": batch.noise,
        "losses": losses,
        "state": state,
    }
    before = copy.deepcopy(given)
    estimator.gradient(policy, batch, losses, state)
    changed = [name for name, value in given.items() if not _equal(value, before[name])]
    require(not changed, f"changed in place: {', '.join(changed)}")


@check("estimator", GRADIENT)
def state_holds_numbers_and_tensors(plugin: Registered) -> None:
    """The state is None, or a mapping of names to numbers and tensors, so that it can be stored between steps."""
    _, state = _run(made(plugin), range(2), None)
    require(state is None or isinstance(state, Mapping), f"the state is a {type(state).__name__}")
    for name, value in (state or {}).items():
        fits = isinstance(name, str) and isinstance(value, int | float | Tensor)
        require(fits, f"the state holds {name!r}: a {type(value).__name__}")


@check("estimator", GRADIENT, "same_seed_draws_the_same_masks", "state_holds_numbers_and_tensors")
def resumed_run_equals_unbroken_run(plugin: Registered) -> None:
    """With its state stored and read back, an estimator made anew continues bit for bit."""
    unbroken, end = _run(made(plugin), range(6), None)
    _, middle = _run(made(plugin), range(3), None)
    resumed, last = _run(made(plugin), range(3, 6), pickle.loads(pickle.dumps(middle)))
    require(all(torch.equal(a, b) for a, b in zip(unbroken[3:], resumed, strict=True)), "the gradients differ")
    require(_equal(end, last), "the states differ")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)
