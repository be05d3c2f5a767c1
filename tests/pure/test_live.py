"""The view of a running grid: what it says at 80 and at 160 columns, how it tells the time left."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from polyprune_core.cli import live
from polyprune_core.cli.live import HEIGHT, GridView, PlainView, curve, duration
from polyprune_core.config.cell import Cell
from polyprune_core.config.grid import cells
from polyprune_core.config.settings import Comparison
from polyprune_core.results.row import Row

CONFIG = Comparison(
    estimators=("reinforce-released",), baselines=("wanda",), initializers=("wanda",), sparsity=(0.2, 0.3), seeds=(0, 1)
)
GRID = cells(CONFIG)
LABEL = "wanda → reinforce-released, sparsity 0.3, seed 1"


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    return now


def view(width: int = 80, kind: Any = GridView, **settings: Any) -> Any:
    console = Console(file=io.StringIO(), width=width, height=40, force_terminal=True, color_system=None)
    return kind(console, dict.fromkeys(GRID, 10.0), frozenset(), **settings)


def row(cell: Cell, perplexity: float = 50.0, **changes: Any) -> Row:
    return Row(**{"id": "0" * 16, "cell": cell, "perplexity": perplexity, **changes})


FAILED: dict[str, Any] = {"status": "failed", "error": "why", "perplexity": None}


def lines(shown: GridView) -> list[str]:
    console = Console(file=io.StringIO(), width=shown.console.width, color_system=None)
    console.print(shown.view())
    return console.file.getvalue().splitlines()


# The curve


def test_a_curve_falls_from_the_upper_left_to_the_lower_right() -> None:
    drawn = curve([float(v) for v in range(24, 0, -1)], 24)
    assert drawn == ["█▇▆▅▄▃▂▁                ", "█████████▇▆▅▄▃▂▁        ", "█████████████████▇▆▅▄▃▂▁"][-HEIGHT:]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=400), st.integers(1, 160))
def test_a_curve_fits_its_width_and_touches_top_and_bottom(values, width) -> None:
    drawn = curve(values, width)
    assert {len(line) for line in drawn} == {min(width, len(values))}
    assert len(drawn) == HEIGHT
    assert set("".join(drawn)) <= set(live.BLOCKS)
    assert " " not in drawn[-1]
    if len(set(values)) == 1 or width == 1:
        assert set(drawn[-1]) == {"▁"}
    elif len(values) <= width:
        assert "█" in drawn[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90061, "25 h 1 min")],
)
def test_a_duration_is_two_units(seconds, text) -> None:
    assert duration(seconds) == text


# The view


@pytest.mark.parametrize("width", [80, 160])
def test_the_view_says_how_far_the_grid_is_what_is_best_and_what_runs(clock, width) -> None:
    shown = view(width)
    for index, cell in enumerate(GRID[:8]):
        with shown.task("any", 1):
            shown.row(row(cell, 50 - index))
    with shown.task(LABEL, 75) as task:
        for step in range(1, 41):
            clock[0] += 1
            task.update(step, "", 4 - step / 50)
        seen = lines(shown)
    assert max(map(len, seen)) <= width
    text = "\n".join(seen)
    assert re.search(rf"^cells 8 of {len(GRID)} ", text)
    assert re.search(r"^best  0\.2 .*, seed \d: perplexity \d\d\.00 *$", text, re.M)
    assert f"now   {LABEL}: 40 of 75, 35 s left" in [line.rstrip() for line in seen]
    assert re.search(r"^loss +3\.980 █", text, re.M)
    assert re.search(r"^ +3\.200 .*▁ *$", text, re.M)


def test_the_best_row_is_told_for_each_sparsity_and_never_a_failed_or_the_dense_one(clock) -> None:
    shown = view()
    at = {sparsity: [cell for cell in GRID if cell.sparsity == sparsity] for sparsity in (0.2, 0.3)}
    shown.row(row(GRID[0], 10))
    shown.row(row(at[0.3][0], 90))
    shown.row(row(at[0.2][0], 60))
    shown.row(row(at[0.2][4], 50))
    shown.row(row(at[0.2][5], 55))
    shown.row(row(at[0.3][1], math.inf))
    shown.row(row(at[0.3][2], **FAILED))
    text = "\n".join(lines(shown))
    assert re.search(r"best  0\.2  wanda → reinforce-released, seed 0: perplexity 50\.00", text)
    assert re.search(r"      0\.3  wanda, seed 0: perplexity 90\.00", text)
    assert "1 failed" in text


def test_the_curve_goes_when_its_cell_is_done(clock) -> None:
    shown = view()
    with shown.task(LABEL, 5) as task:
        task.update(1, "", 3.0)
    with shown.task("perplexity", 5):
        assert any(line.startswith("loss") for line in lines(shown))
    shown.row(row(GRID[-1]))
    assert not any(line.startswith("loss") for line in lines(shown))


def test_time_left_is_what_the_work_so_far_took_and_cells_that_are_read_take_none(clock) -> None:
    shown = view()
    assert shown.seconds_left() is None
    for cell in GRID[:3]:
        shown.row(row(cell))
    assert shown.seconds_left() is None
    with shown.task("any", 1):
        clock[0] += 6
    shown.row(row(GRID[3]))
    assert shown.seconds_left() == pytest.approx(6 * (len(GRID) - 4))
    with shown.task(LABEL, 10) as task:
        clock[0] += 3
        task.update(5, "", 3.0)
        assert shown.seconds_left() == pytest.approx(6 * (len(GRID) - 4.5))
    for cell in GRID[4:]:
        shown.row(row(cell))
    assert shown.seconds_left() == 0


def test_a_search_that_goes_on_keeps_its_curve_and_tells_time_by_this_part_alone(clock) -> None:
    shown = view()
    with shown.task(LABEL, 10) as task:
        task.resume([5.0, 4.0, 3.0, 2.0])
        clock[0] += 100
        task.update(5, "", 1.0)
        clock[0] += 2
        task.update(6, "", 1.0)
        seen = [line.rstrip() for line in lines(shown)]
        assert shown.seconds_left() == pytest.approx(102 / 0.2 * (len(GRID) - 0.6))
    shown.row(row(GRID[0]))
    assert shown.seconds_left() == pytest.approx(102 / 0.6 * (len(GRID) - 1))
    assert f"now   {LABEL}: 6 of 10, 8 s left" in seen
    assert any(line.startswith("loss    5.000 █") for line in seen)


def test_reading_the_model_is_no_work_of_a_cell(clock) -> None:
    shown = view()
    with shown.task("reading the model", 0):
        clock[0] += 50
    shown.row(row(GRID[0]))
    assert shown.seconds_left() is None


def test_every_finished_cell_is_a_line_and_a_quiet_view_tells_failed_ones_only() -> None:
    loud, quiet = view(kind=PlainView), view(kind=PlainView, quiet=True)
    for shown in (loud, quiet):
        shown.row(row(GRID[0]))
        shown.row(row(GRID[1], **FAILED))
    assert [line.split()[0] for line in loud.console.file.getvalue().splitlines()] == [
        f"{n}/{len(GRID)}" for n in (1, 2)
    ]
    (line,) = quiet.console.file.getvalue().splitlines()
    assert line.endswith("failed: why")


def test_a_verbose_view_tells_every_step_of_a_search_and_the_time_of_every_task() -> None:
    shown = view(kind=PlainView, verbose=True)
    shown.console = Console(file=io.StringIO(), width=200)
    with shown.task(LABEL, 3) as task:
        task.update(1, "loss 3.100", 3.1)
    with shown.task("perplexity", 3) as task:
        task.update(1)
    told = shown.console.file.getvalue().splitlines()
    assert told[0] == f"{LABEL}: step 1 of 3, loss 3.100"
    assert re.fullmatch(rf"{LABEL}: [\d.]+ s", told[1])
    assert re.fullmatch(r"perplexity: [\d.]+ s", told[2])
    assert len(told) == 3
