"""Checks the plugins that a comparison names before anything heavy loads."""

from __future__ import annotations

from collections.abc import Sequence

from polyprune_core.config.budget_spec import check_sparsity
from polyprune_core.config.settings import Comparison
from polyprune_core.plugins.contracts import extra_passes
from polyprune_core.plugins.registry import Registry
from polyprune_core.plugins.validation import check_estimator


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
        "estimator": dict.fromkeys(config.estimators),
    }
    for sparsity in config.sparsity:
        check_sparsity(sparsity)
    for kind, specs in wanted.items():
        for spec in specs:
            built = registry.build(kind, spec)
            if kind == "estimator":
                check_estimator(spec, built, config.masks_per_step, config.policy)
                config.steps_for(extra_passes(built))
    return {kind: {spec: str(registry.get(kind, spec).source) for spec in specs} for kind, specs in wanted.items()}
