"""What a search may move, by name: how parameters become masks, and how they stay within the budget."""

from __future__ import annotations

from collections.abc import Callable

from polyprune_core.search.policies.family import Family, Start
from polyprune_core.search.policies.gaussian import Gaussian
from polyprune_core.search.policies.hierarchical import Hierarchical
from polyprune_core.search.policies.logits import Logits
from polyprune_core.search.policies.probabilities import Probabilities

FAMILIES: dict[str, Callable[[Start], Family]] = {
    "probabilities": Probabilities,
    "logits": Logits,
    "hierarchical": Hierarchical,
    "gaussian": Gaussian,
}

__all__ = ["FAMILIES", "Family", "Start"]
