"""What is said of a model that cannot be cut."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from polyprune_core.errors import ModelError
from polyprune_core.models.describe import describe
from polyprune_core.models.families import also
from polyprune_core.pruning.build import kept_layers
from polyprune_core.testing.tiny import tiny_model


@pytest.mark.parametrize("family", ["mamba2", "t5"])
def test_a_family_that_is_known_to_be_another_is_not_taken_for_a_slip_of_the_pen(family: str) -> None:
    with pytest.raises(ModelError, match=f"'{family}' cannot be cut yet; those of .*mistral.* can") as error:
        describe(SimpleNamespace(config=SimpleNamespace(model_type=family)))
    assert "Did you mean" not in str(error.value)


def test_a_family_whose_modules_have_other_names_is_told_which(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[mine]\nlike = "llama"\nmodel_types = ["qwen2"]\naxes.mlp = { norm = ["ln_after"] }\n')
    model = tiny_model("qwen2")
    with also(file), pytest.raises(ModelError, match=r"layers.0.mlp of this qwen2 model .*there is no ln_after"):
        describe(model)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('model_types = ["x"]', "layers and axes are needed"),
        ('model_types = ["x"]\nlike = "lama"', "Did you mean 'llama'"),
        ('model_types = ["x"]\nlike = "llama"\naxes.mlp = { reeder = "x" }', "Did you mean 'reader'"),
        ('model_types = ["x"]\nlike = "llama"\naxes.mlp = { rows = "x" }', "list is needed"),
        ("model_types = [", "cannot be read"),
    ],
)
def test_a_file_of_families_that_says_something_else_is_refused_with_the_place(tmp_path, text, told) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f"[mine]\n{text}\n")
    with pytest.raises(ModelError, match=told), also(file):
        pass


def test_a_variant_that_cannot_be_cut_is_refused_by_the_field_that_says_so() -> None:
    with pytest.raises(ModelError, match="do_layer_norm_before=False"):
        describe(tiny_model("opt", do_layer_norm_before=False))


def test_a_layer_with_a_convolution_stays_whatever_else_goes() -> None:
    layout = describe(tiny_model("lfm2"))
    nothing = {axis.name: torch.zeros(axis.size, dtype=torch.bool) for axis in layout.axes}
    assert kept_layers(layout, nothing) == [0, 2]
