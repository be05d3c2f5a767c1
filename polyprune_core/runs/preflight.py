"""Checks the plugins that a comparison names before anything heavy loads, and asks them for their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from polyprune_core.config.budget_spec import check_sparsity
from polyprune_core.config.cell import AUTO, Scope
from polyprune_core.config.settings import Comparison
from polyprune_core.config.shapes_spec import ShapesSpec
from polyprune_core.plugins.contracts import extra_passes
from polyprune_core.plugins.registry import Registry
from polyprune_core.plugins.validation import check_defaults, check_estimator

# What stands for every installed metric among the baselines.
ALL = "all"
# What is calibrated on unless told: weights are fitted to no text alone.
ONE_TEXT, SEVERAL_TEXTS = "builtin:pydocs", "builtin:mix"


def settled(config: Comparison, registry: Registry) -> Comparison:
    """Returns the comparison with the step and the scope of its policy, where nothing else was asked for.

    It then knows too which of its repairs train, and has a text to calibrate on. The baseline `all` becomes every
    installed metric that can score all the units that are asked for.

    Raises:
        PluginError: there is no such policy, or what it declares is no default.
    """
    if ALL in config.baselines:
        named = [spec for spec in config.baselines if spec != ALL]
        every = dict.fromkeys([*named, *applicable(config, registry)[0]])
        config = config.model_copy(update={"baselines": tuple(every)})
    policy = registry.build("policy", config.policy)
    check_defaults(repr(policy), policy)
    needs = {spec: registry.get("repair", spec).provider.needs for spec in config.repair}
    if config.calibration == AUTO:
        fitted = any("mix" in of for of in needs.values())
        config = config.model_copy(update={"calibration": SEVERAL_TEXTS if fitted else ONE_TEXT})
    training = tuple(spec for spec, of in needs.items() if "gradients" in of)
    settled = config.for_policy(policy.optimizer, policy.learning_rate, cast(Scope, policy.scope))
    return settled.with_trained(training)


def applicable(config: Comparison, registry: Registry) -> tuple[list[str], list[str]]:
    """Returns the installed metrics that can score every granularity asked for, and those that cannot."""
    parts = {part for name in config.granularity for part in name.split("+")}
    found: tuple[list[str], list[str]] = ([], [])
    for item in registry.all("initializer"):
        metric = registry.build("initializer", item.provider.name)
        refused = metric.granularities is not None and not parts <= set(metric.granularities)
        idle = metric.made_for is not None and metric.made_for not in parts
        found[refused or idle].append(item.provider.name)
    return found


def check_plugins(config: Comparison, registry: Registry) -> dict[str, dict[str, str]]:
    """Builds every plugin that a comparison names, before anything heavy; returns {role: {spec: distribution}}.

    Raises:
        PluginError, ConfigError: a name, an option or a number of masks cannot be used.
    """
    parts: Sequence[str] = [part for name in config.granularity for part in name.split("+")]
    starts = config.initializers if config.estimators or "initializers" in config.model_fields_set else ()
    wanted = {
        "granularity": dict.fromkeys(parts),
        "initializer": dict.fromkeys([*config.baselines, *starts]),
        "policy": dict.fromkeys((config.policy,)),
        "estimator": dict.fromkeys(config.estimators),
        "repair": dict.fromkeys(config.repair),
        "exporter": dict.fromkeys(filter(None, (ShapesSpec.parse(asked).target for asked in config.shapes))),
    }
    for sparsity in config.sparsity:
        check_sparsity(sparsity)
    built = {kind: {spec: registry.build(kind, spec) for spec in specs} for kind, specs in wanted.items()}
    independent = built["policy"][config.policy].independent_units
    for spec, estimator in built["estimator"].items():
        check_estimator(spec, estimator, config.masks_per_step, config.policy, independent)
        config.steps_for(extra_passes(estimator))
    return {kind: {spec: str(registry.get(kind, spec).source) for spec in specs} for kind, specs in wanted.items()}
