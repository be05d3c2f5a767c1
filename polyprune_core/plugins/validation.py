"""What core accepts from each method of a plugin; anything else is a PluginError that says what it got."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from polyprune_core.errors import ConfigError, PluginError
from polyprune_core.plugins.contracts import PRECONDITIONERS, GradientEstimator, SearchPolicy, independent_units
from polyprune_core.pruning.types import SCOPE_NAMES, ExportReport, Policy, UnitGroup

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from polyprune_core.models.layout import ModelLayout
    from polyprune_core.pruning.pruned_model import PrunedModel
    from polyprune_core.pruning.space import MaskSpace
    from polyprune_core.pruning.starting import PolicyStart

OPTIMIZERS = ("sgd", "adam")


def not_finite_as(values: Tensor, dtype: torch.dtype) -> str:
    """Returns how many of `values` are not finite once they are in the number format that is used, or nothing."""
    lost = int((~values.detach().to(dtype).isfinite()).sum())
    if not lost:
        return ""
    own = int((~values.isfinite()).sum())
    return str(own) if own else f"as {str(dtype).removeprefix('torch.')}, in which they are used, {lost}"


def check_scores(scores: Any, blame: str, _model: Any, space: MaskSpace, *_: Any) -> None:
    """Raises PluginError unless `scores` are (U,) finite floating-point numbers."""
    import torch

    if not isinstance(scores, torch.Tensor):
        got = f"a {type(scores).__name__}"
    elif scores.shape != (len(space),) or not scores.is_floating_point():
        got = f"{str(scores.dtype).removeprefix('torch.')} scores of shape {tuple(scores.shape)}"
    elif told := not_finite_as(scores, torch.float32):
        got = f"{told} scores that are not finite"
    else:
        return
    needed = f"a finite floating-point number for each of {len(space)} units is needed"
    raise PluginError(f"{blame} returned {got}; {needed}.")


def check_groups(groups: Any, blame: str, layout: ModelLayout, *_: Any) -> None:
    """Raises PluginError unless `groups` are UnitGroups that divide axes of their own layer, at some cost."""
    from polyprune_core.pruning.space import check_costs, check_division, check_layers

    if not isinstance(groups, Sequence) or isinstance(groups, str):
        raise PluginError(f"{blame} returned a {type(groups).__name__}; a list of UnitGroups is needed.")
    for group in groups:
        if not isinstance(group, UnitGroup):
            raise PluginError(f"{blame} returned a {type(group).__name__} where a UnitGroup is needed.")
    for check in (check_division, check_costs, check_layers):
        check(layout, groups, blame)


def check_gradient(returned: Any, blame: str, *_: Any) -> None:
    """Raises PluginError for a gradient of another number format, which the policy would take on."""
    import torch

    gradient = returned[0] if isinstance(returned, tuple) and returned else None
    if isinstance(gradient, torch.Tensor) and gradient.dtype != torch.float32:
        raise PluginError(f"{blame} returned a gradient of {gradient.dtype}; torch.float32 is needed.")


def check_report(report: Any, blame: str, *_: Any) -> None:
    """Raises PluginError unless `report` is an ExportReport."""
    if not isinstance(report, ExportReport):
        raise PluginError(f"{blame} returned a {type(report).__name__} from export; an ExportReport is needed.")


def check_loaded(loaded: Any, blame: str, *_: Any) -> None:
    """Raises PluginError unless `loaded` is a LoadedModel."""
    from polyprune_core.models.sources import LoadedModel

    if not isinstance(loaded, LoadedModel):
        raise PluginError(f"{blame} returned a {type(loaded).__name__} from load; a LoadedModel is needed.")


def check_estimator(
    name: str, estimator: GradientEstimator, masks_per_step: int, policy: str = "", independent: bool = True
) -> None:
    """Raises ConfigError unless the estimator can use that many masks a step and that policy.

    `independent`: whether the policy draws units independently. PluginError if the estimator does not say what it can.
    """
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
    if independent_units(estimator) and not independent:
        raise ConfigError(
            f"estimator {name!r} needs units that are drawn independently, which those of policy {policy!r} are not; "
            "use --preset released, a --policy that draws them so (probabilities is one), or another estimator."
        )


def check_defaults(blame: str, policy: SearchPolicy) -> None:
    """Raises PluginError unless the policy declares a step and a scope that a search can have."""
    rate: object = policy.learning_rate
    usable = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < math.inf
    if policy.scope not in SCOPE_NAMES or policy.optimizer not in OPTIMIZERS or not usable:
        raise PluginError(
            f"{blame} declares scope {policy.scope!r}, optimizer {policy.optimizer!r} and learning rate {rate!r}; one "
            f"of {', '.join(SCOPE_NAMES)}, {' or '.join(OPTIMIZERS)}, and a number above 0 are needed."
        )
    if type(policy.independent_units) is not bool:
        raise PluginError(f"{blame} declares independent_units {policy.independent_units!r}; True or False is needed.")


def check_updates(updates: Any, blame: str, pruned: PrunedModel, *_: Any) -> None:
    """Raises PluginError unless `updates` are finite values of parameters that are left, or of biases of readers."""
    import torch

    if not isinstance(updates, Mapping):
        raise PluginError(f"{blame} returned a {type(updates).__name__}; a mapping of parameter names is needed.")
    shapes = pruned.shapes() | pruned.possible_biases()
    for name, value in updates.items():
        if name not in shapes:
            raise PluginError(
                f"{blame} returned a value for {name!r}, which is neither a parameter that is left of the model nor "
                "the bias of a reader."
            )
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or tuple(value.shape) != shapes[name]:
            got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
            raise PluginError(f"{blame} returned {got} for {name}; floating-point {shapes[name]} is needed.")
        if lost := not_finite_as(value, pruned.base.model.dtype):
            raise PluginError(f"{blame} returned {lost} values of {name} that are not finite.")


def check_bound(kind: str) -> Callable[..., None]:
    """Returns a check of float32 finite numbers as a bound policy returns them: one a unit, or one a parameter."""

    def check(found: Any, blame: str, given: PolicyStart, *args: Any) -> None:
        import torch

        if not isinstance(found, torch.Tensor) or found.dim() != 1 or found.dtype != torch.float32:
            got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
            raise PluginError(f"{blame} returned {got} from {kind}; a float32 vector is needed.")
        if not found.isfinite().all():
            raise PluginError(
                f"{blame} returned {int((~found.isfinite()).sum())} numbers from {kind} that are not finite."
            )
        needed = len(given.space) if kind == "ranking" else len(args[0]) if kind == "project" else len(found)
        if len(found) != needed:
            raise PluginError(f"{blame} returned {len(found)} numbers from {kind}; {needed} are needed.")

    return check


def check_policy(policy: Any, blame: str, given: PolicyStart, *_: Any) -> None:
    """Raises PluginError unless `policy` is a Policy with a float32 number between 0 and 1 for every unit."""
    import torch

    if not isinstance(policy, Policy):
        raise PluginError(f"{blame} returned a {type(policy).__name__} from policy; a Policy is needed.")
    kept, units = policy.keep_prob, len(given.space)
    if not isinstance(kept, torch.Tensor) or kept.dtype != torch.float32:
        got = str(kept.dtype) if isinstance(kept, torch.Tensor) else f"a {type(kept).__name__}"
        raise PluginError(f"{blame} returned keep probabilities of {got}; torch.float32 is needed.")
    if tuple(kept.shape) != (units,):
        raise PluginError(f"{blame} returned keep probabilities of shape {tuple(kept.shape)}; ({units},) is needed.")
    if not ((kept > 0) & (kept < 1)).all():
        raise PluginError(f"{blame} returned keep probabilities that do not lie between 0 and 1.")


CHECKS: dict[tuple[str, str], Callable[..., None]] = {
    ("initializer", "score"): check_scores,
    ("granularity", "groups"): check_groups,
    ("estimator", "gradient"): check_gradient,
    ("repair", "repair"): check_updates,
    ("exporter", "export"): check_report,
    ("exporter", "load"): check_loaded,
    ("bound policy", "policy"): check_policy,
    **{("bound policy", name): check_bound(name) for name in ("start", "gradient", "fisher", "project", "ranking")},
}
