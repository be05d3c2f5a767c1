"""Every family that comes with polyprune, on tiny random models of transformers' own configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyprune_core.models import families
from polyprune_core.testing.checking import world_restored
from polyprune_core.testing.family import (
    FAMILY_CHECKS,
    built_is_gated_and_as_large_as_said,
    gated_is_compact,
    last_hidden_states_give_the_logits,
    layers_and_sublayers_are_found,
)

OWN = families.parse(Path(families.__file__).with_name("families.toml"), families.OWN)
# What each type of a family has to show; the first of them shows the rest for all, which share its layout.
OF_EACH = (
    layers_and_sublayers_are_found,
    last_hidden_states_give_the_logits,
    gated_is_compact,
    built_is_gated_and_as_large_as_said,
)
CASES = [
    pytest.param(
        model_type,
        check,
        id=f"{model_type}-{check.__name__}",
        marks=() if check in OF_EACH or model_type == family.model_types[0] else pytest.mark.slow,
    )
    for family in OWN
    for model_type in family.model_types
    for check in FAMILY_CHECKS
]


@pytest.mark.parametrize(("model_type", "check"), CASES)
def test_family(model_type, check) -> None:
    with world_restored():
        check(model_type)
