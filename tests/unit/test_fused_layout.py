"""Layouts that no family here has yet: fused projections, weights stored the other way round, units of scattered entries."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polyprune_core.errors import ModelError, PluginError
from polyprune_core.models.layout import Axis, Cut, ModelLayout
from polyprune_core.pruning.gating import gated
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor, compact_state_dict
from polyprune_core.pruning.types import UnitGroup

HIDDEN, SIZE = 6, 5


class Stored(nn.Module):
    """A linear map whose weight is (in, out)."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inner, outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


class Fused(nn.Module):
    """An MLP whose gate and up projection are one matrix, read by a map that is stored the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Linear(HIDDEN, 2 * SIZE)
        self.down = Stored(SIZE, HIDDEN)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(hidden_states).chunk(2, dim=-1)
        return self.down(gate.sigmoid() * up)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.mlp = Fused()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().requires_grad_(False)


def layout(reader: str | None = "mlp.down") -> ModelLayout:
    fused = [Cut(f"mlp.gate_up.{part}", 0, start, 1) for part in ("weight", "bias") for start in (0, SIZE)]
    axis = Axis(
        name="layers.0.mlp",
        kind="mlp",
        layer=0,
        size=SIZE,
        module="mlp",
        reader=reader,
        cuts=(*fused, Cut("mlp.down.weight", 0, 0, 1)),
        module_only=("norm.weight", "norm.bias"),
        entry_parameters=3 * HIDDEN + 2,
        module_parameters=2 * HIDDEN,
        outputs=1,
        config_counts=(),
    )
    return ModelLayout("fused", "layers", 1, (axis,), 5 * (3 * HIDDEN + 2) + 2 * HIDDEN)


KEEP = {"layers.0.mlp": torch.tensor([True, False, True, True, False])}
X = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(1))


def test_a_fused_projection_is_cut_in_both_of_its_parts(model) -> None:
    state, kept = compact_state_dict(model, layout(), KEEP), [0, 2, 3]
    rows = [*kept, *(SIZE + i for i in kept)]
    assert torch.equal(state["mlp.gate_up.weight"], model.mlp.gate_up.weight[rows])
    assert torch.equal(state["mlp.gate_up.bias"], model.mlp.gate_up.bias[rows])
    assert torch.equal(state["mlp.down.weight"], model.mlp.down.weight[kept])


@pytest.mark.parametrize("keep", [KEEP, {"layers.0.mlp": torch.ones(SIZE, dtype=torch.bool)}])
def test_the_compact_and_the_gated_form_give_what_the_smaller_model_gives(model, keep) -> None:
    smaller = Model()
    smaller.mlp.gate_up = nn.Linear(HIDDEN, 2 * int(keep["layers.0.mlp"].sum()))
    smaller.mlp.down = Stored(int(keep["layers.0.mlp"].sum()), HIDDEN)
    smaller.load_state_dict(compact_state_dict(model, layout(), keep))
    with Compactor(model, layout()) as compactor, compactor.applied(keep) as run:
        torch.testing.assert_close(run(X), smaller(X))
    with gated(model, layout(), keep) as run:
        torch.testing.assert_close(run(X), smaller(X))


def test_updates_run_in_their_kept_shape_and_end_with_the_block(model) -> None:
    before = model(X)
    updates = {
        "mlp.down.weight": torch.randn(3, HIDDEN),
        "mlp.gate_up.bias": torch.randn(6),
        "norm.bias": torch.ones(HIDDEN),
    }
    smaller = Model()
    smaller.mlp.gate_up, smaller.mlp.down = nn.Linear(HIDDEN, 6), Stored(3, HIDDEN)
    smaller.load_state_dict(compact_state_dict(model, layout(), KEEP, updates))
    with Compactor(model, layout()) as compactor, compactor.applied(KEEP, updates) as run:
        torch.testing.assert_close(run(X), smaller(X))
    assert torch.equal(model(X), before)


def test_sums_over_the_reader_follow_how_it_is_stored(model) -> None:
    units = tuple((i,) for i in range(SIZE))
    space = MaskSpace(layout(), [UnitGroup("channel", 0, SIZE, (("layers.0.mlp", units),))], "channel")
    expected = model.mlp.down.weight.square().sum(dim=1)
    torch.testing.assert_close(space.sum_columns(model, lambda _, weight: weight.square().sum(dim=0)), expected)
    everything = space.sum_weights(lambda name: model.get_parameter(name).abs())
    parts = model.mlp.gate_up.weight.abs().sum(dim=1) + model.mlp.gate_up.bias.abs()
    torch.testing.assert_close(everything, parts[:SIZE] + parts[SIZE:] + model.mlp.down.weight.abs().sum(dim=1))


def test_units_may_own_scattered_entries(model) -> None:
    pairs = ((0, 3), (4,), (1, 2))
    space = MaskSpace(layout(), [UnitGroup("pair", 0, 3, (("layers.0.mlp", pairs),))], "pair")
    kept = space.axis_keep(torch.tensor([True, False, True]))["layers.0.mlp"]
    assert kept.tolist() == [True, True, True, True, False]
    assert space.cost.tolist() == [40, 20, 40]


@pytest.mark.parametrize("listed", [((0, 1), (2, 3)), ((0, 1, 2), (2, 3, 4)), ((0, 1, 2, 3, 4),)])
def test_units_that_do_not_share_out_the_entries_are_refused(listed) -> None:
    with pytest.raises(PluginError, match="each of its 5 entries belongs to one of 2 units"):
        MaskSpace(layout(), [UnitGroup("pair", 0, 2, (("layers.0.mlp", listed),))], "pair")


def test_an_axis_that_nothing_reads_can_be_cut_but_not_gated(model) -> None:
    assert compact_state_dict(model, layout(reader=None), KEEP)["mlp.gate_up.weight"].shape == (6, HIDDEN)
    with pytest.raises(ModelError, match=r"no linear module reads layers.0.mlp"), gated(model, layout(None), KEEP):
        pass
