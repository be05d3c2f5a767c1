"""What is said of a model that cannot be cut."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from polyprune_core.errors import ModelError
from polyprune_core.models.describe import describe


@pytest.mark.parametrize("family", ["mixtral", "gpt2"])
def test_a_family_that_is_known_to_be_another_is_not_taken_for_a_slip_of_the_pen(family: str) -> None:
    with pytest.raises(ModelError, match=f"'{family}' cannot be cut yet; those of .*mistral.* can") as error:
        describe(SimpleNamespace(config=SimpleNamespace(model_type=family)))
    assert "Did you mean" not in str(error.value)
