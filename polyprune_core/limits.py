"""What can be refused before anything is loaded: a sparsity, a number of masks."""

from __future__ import annotations

import math

from polyprune_core.errors import BudgetError, ConfigError, PluginError
from polyprune_core.plugins.contracts import GradientEstimator, independent_units

# Powers of the Fisher information that a step may be divided by.
PRECONDITIONERS = {"none": 0.0, "half-natural": 0.5, "natural": 1.0}


def check_sparsity(sparsity: float) -> float:
    """Returns `sparsity`, or raises BudgetError unless it lies strictly between 0 and 1."""
    if not (math.isfinite(sparsity) and 0.0 < sparsity < 1.0):
        raise BudgetError(
            f"sparsity {sparsity:g} is not a fraction to remove; give a number above 0 and below 1, for example 0.2."
        )
    return sparsity


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
