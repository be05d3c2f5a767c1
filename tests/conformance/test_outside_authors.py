"""Plugins as an author writes them from the docs alone: what the kit says of them is what a run would say."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import estimators

from polyprune_core import ExportReport, LegalShapes, LoadedModel, Provider, PrunedModel, export_report, load_model
from polyprune_core.errors import PluginError
from polyprune_core.plugins.guard import Guarded
from polyprune_core.plugins.registry import Registered, Source
from polyprune_core.pruning.types import ExportReport as Report
from polyprune_core.search import loop
from polyprune_core.testing import run_checks
from polyprune_core.testing.together import together

RELOAD = "from transformers import AutoModelForCausalLM\nmodel = AutoModelForCausalLM.from_pretrained(DIR)\n"
DENSE = "zeros stand in place of what was removed"


@dataclass(frozen=True)
class Zeros:
    """A plain dense checkpoint with zeros in place of removed units: any tool reads it."""

    def legal_shapes(self, layout: Any) -> LegalShapes:
        return LegalShapes(added_biases=False)

    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        model = copy.deepcopy(pruned.base.model)
        for name, value in self.filled(pruned).items():
            parameter = model.get_parameter(name)
            parameter.data = value.to(parameter.dtype)
        model.save_pretrained(out_dir)
        pruned.base.tokenizer.save_pretrained(out_dir)
        settings = json.loads((out_dir / "tokenizer_config.json").read_text())
        settings.pop("name_or_path", None)
        (out_dir / "tokenizer_config.json").write_text(json.dumps(settings))
        return export_report(out_dir, "zeros", RELOAD, model.num_parameters())

    def filled(self, pruned: PrunedModel) -> dict[str, torch.Tensor]:
        """Returns the dense model's parameters with zeros, and with what a repair made of those that stay."""
        dense = dict(pruned.base.model.named_parameters())
        values = {name: value.detach().clone() for name, value in dense.items()}
        stays = {name: torch.ones(value.shape, dtype=torch.bool) for name, value in dense.items()}
        for axis_name, keep in pruned.axis_keep().items():
            for cut in pruned.layout.axis[axis_name].cuts:
                width = len(keep) * cut.width
                stays[cut.parameter].narrow(cut.dim, cut.start, width).transpose(0, cut.dim)[
                    ~keep.repeat_interleave(cut.width)
                ] = False
        for name, value in values.items():
            value[~stays[name]] = 0
        for name, update in pruned.updates.items():
            values[name][stays[name]] = update.flatten()
        return values

    def load(
        self, path: Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
    ) -> LoadedModel:
        return load_model(str(path), dtype=dtype, device=device, trust_remote_code=trust_remote_code)


@dataclass(frozen=True)
class Rounded(Zeros):
    """Weights of eight bits: nothing equals what it was."""

    def filled(self, pruned: PrunedModel) -> dict[str, torch.Tensor]:
        def rounded(value: torch.Tensor) -> torch.Tensor:
            step = value.abs().max() / 127
            return (value / step).round() * step

        return {name: rounded(value) for name, value in super().filled(pruned).items()}


@dataclass(frozen=True)
class Fixed(Zeros):
    """Holds layers that are alike only, in whole blocks of channels."""

    def legal_shapes(self, layout: Any) -> LegalShapes:
        return LegalShapes(multiple_of={"channel": 8}, equal_widths=True, empty_sublayers=False, added_biases=False)

    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        kept = {(axis.kind, int(pruned.axis_keep()[axis.name].sum())) for axis in pruned.layout.axes}
        assert len(kept) == 2
        assert all(number % 8 == 0 for kind, number in kept if kind == "mlp")
        return super().export(pruned, out_dir)


XFAIL = {"parameters_are_those_that_are_left": DENSE}


def statuses(kind: str, factory: Any, **more: Any) -> dict[str, str]:
    provider = Provider("of-an-author", "as an author writes it", factory, **more)
    return {
        r.check: f"{r.status}: {r.message}" for r in run_checks([Registered(kind, provider, Source("author", "1"))])
    }


def those(found: dict[str, str], status: str) -> set[str]:
    return {name for name, told in found.items() if told.startswith(status)}


def test_an_exporter_of_zeros_passes_the_kit_with_what_it_cannot_do_excused() -> None:
    found = statuses("exporter", Zeros, xfail=XFAIL)
    assert those(found, "failed") == set(), found
    assert those(found, "excused") == set(XFAIL)
    assert those(found, "not run") == set()


def test_a_lossy_exporter_is_examined_in_all_that_it_does_not_lose() -> None:
    lossy = {"reloaded_model_equals_the_compact_one": "weights have eight bits"}
    found = statuses("exporter", Rounded, xfail=lossy | {"parameters_are_those_that_are_left": DENSE})
    assert those(found, "failed") == set(), found
    assert those(found, "excused") == {*lossy, "parameters_are_those_that_are_left"}
    assert found["report_lists_every_file_with_its_hash"].startswith("passed")


def test_a_format_is_asked_only_for_shapes_that_it_says_it_can_hold() -> None:
    found = statuses("exporter", Fixed, xfail=XFAIL)
    assert those(found, "failed") == set(), found
    assert those(found, "not run") == {"emptied_sublayers_survive", "emptied_layer_survives"}


def test_a_formula_of_keep_probabilities_fails_in_the_kit_as_in_a_run_with_the_default_policy() -> None:
    check = "units_that_move_together_have_a_gradient_too"
    told = statuses("estimator", estimators.OfKeepProb)[check]
    assert told.startswith("failed: for a policy of 2 parameters that 4 units share, the gradient is of shape (4,)")
    policy, estimator = together(), Guarded(estimators.OfKeepProb(), "estimator", "estimator 'of-keep-prob'")
    batch = estimator.sample(policy, 4, torch.Generator().manual_seed(0))
    with pytest.raises(PluginError) as in_a_run:
        loop._checked(estimator.gradient(policy, batch, torch.rand(4), None), policy, estimator)
    for text in (told, str(in_a_run.value)):
        assert "policy.score_function(batch)" in text
        assert "independent_units = True" in text


def test_it_passes_once_it_says_that_its_units_are_independent() -> None:
    @dataclass(frozen=True)
    class Declared(estimators.OfKeepProb):
        independent_units = True

    globals()["Declared"] = Declared
    Declared.__qualname__ = "Declared"
    found = statuses("estimator", Declared)
    assert those(found, "failed") == set(), found


def test_reload_has_the_folder_wherever_dir_stands() -> None:
    report = Report(Path("x"), "zeros", {}, "a(1, DIR)\nb(DIR)\nDIRECTORY = DIR", 0, 0)
    assert report.reload_at(Path("it's")) == 'a(1, "it\'s")\nb("it\'s")\nDIRECTORY = "it\'s"'
