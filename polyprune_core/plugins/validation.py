"""What core accepts from each method of a plugin; anything else is a PluginError that says what it got."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from polyprune_core.errors import ConfigError, PluginError
from polyprune_core.plugins.contracts import PRECONDITIONERS, GradientEstimator, independent_units
from polyprune_core.pruning.types import ExportReport, UnitGroup

if TYPE_CHECKING:
    from polyprune_core.models.layout import ModelLayout
    from polyprune_core.pruning.space import MaskSpace


def check_scores(scores: Any, blame: str, _model: Any, space: MaskSpace, *_: Any) -> None:
    """Raises PluginError unless `scores` are (U,) finite floating-point numbers."""
    from torch import Tensor

    if not isinstance(scores, Tensor):
        got = f"a {type(scores).__name__}"
    elif scores.shape != (len(space),) or not scores.is_floating_point():
        got = f"{str(scores.dtype).removeprefix('torch.')} scores of shape {tuple(scores.shape)}"
    elif not scores.isfinite().all():
        got = f"{int((~scores.isfinite()).sum())} scores that are not finite"
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
    name: str, estimator: GradientEstimator, masks_per_step: int, policy: str = "probabilities"
) -> None:
    """Raises ConfigError unless the estimator can use that many masks a step and that policy.

    PluginError if it does not say what it can.
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
    if independent_units(estimator) and policy == "gaussian":
        raise ConfigError(
            f"estimator {name!r} needs units that are drawn independently, which those of policy {policy!r} are not; "
            f"use --preset released, --policy probabilities, logits or hierarchical, or another estimator."
        )


CHECKS: dict[str, Callable[..., None]] = {
    "score": check_scores,
    "groups": check_groups,
    "gradient": check_gradient,
    "export": check_report,
    "load": check_loaded,
}
