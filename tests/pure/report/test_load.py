"""Stores become comparisons: what may stand in one table does, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from stores import cells, edited, fill, run

from polyprune_core.errors import ConfigError
from polyprune_core.report.curves import curves
from polyprune_core.report.load import load
from polyprune_core.results.trace_file import read_trace


def ids(comparison) -> set[str]:
    return set(comparison.rows)


def test_a_store_is_one_comparison_with_everything_its_cells_hold(tmp_path) -> None:
    made = cells()
    (found,) = load([fill(tmp_path / "store", made)]).comparisons
    assert list(found.rows.values()) == [row for row, _ in made]
    assert set(found.details) == ids(found)
    assert found.results.model == run()["model"]


def test_a_store_moved_elsewhere_reads_the_same(tmp_path) -> None:
    before = load([fill(tmp_path / "store")]).comparisons[0].results
    shutil.move(tmp_path / "store", tmp_path / "copy")
    after = load([tmp_path / "copy"]).comparisons[0].results
    assert after.to_json() == before.to_json()
    assert load([tmp_path / "copy" / "results.json"]).comparisons[0].results.to_json() == before.to_json()


def test_results_alone_have_rows_and_say_what_is_not_there(tmp_path) -> None:
    fill(tmp_path / "store")
    alone = shutil.copy(tmp_path / "store" / "results.json", tmp_path / "alone.json")
    loaded = load([Path(alone)])
    assert len(loaded.comparisons[0].rows) == len(cells())
    assert loaded.comparisons[0].details == {}
    assert len(loaded.notes) == 1
    assert "evaluation noise" in loaded.notes[0]


def test_a_store_of_before_details_were_kept_is_read_and_one_line_says_what_is_absent(tmp_path) -> None:
    loaded = load([fill(tmp_path / "store", details=False)])
    (found,) = loaded.comparisons
    assert len(found.rows) == len(cells())
    assert [note for note in loaded.notes if f"{len(cells())} of {len(cells())} cells" in note] == loaded.notes
    assert all(s.versus.evaluation is None for s in found.results.summaries() if s.versus)


def test_cells_of_a_run_that_was_broken_off_are_read(tmp_path) -> None:
    (found,) = load([fill(tmp_path / "store", finished=False)]).comparisons
    assert ids(found) == {row.id for row, _ in cells()}


def test_cells_that_do_not_say_what_they_ran_on_are_left_out_with_a_line(tmp_path) -> None:
    store = fill(tmp_path / "store", cells(sparsities=(0.2,)))
    (made,) = [cell for cell in cells(sparsities=(0.5,)) if cell[0].id == "search-wanda-rloo-50-1"]
    fill(store, [made], details=False, finished=False)
    loaded = load([store])
    assert made[0].id not in ids(loaded.comparisons[0])
    assert any("1 cell in" in note and "left out" in note for note in loaded.notes)


def test_stores_of_one_model_text_and_setting_are_one_comparison(tmp_path) -> None:
    made = cells()
    one = fill(tmp_path / "one", [cell for cell in made if cell[0].cell.seed in (None, 0)], run(seeds=[0]))
    two = fill(tmp_path / "two", [cell for cell in made if cell[0].cell.seed in (None, 1, 2)], run(seeds=[1, 2]))
    (found,) = load([one, two]).comparisons
    assert ids(found) == {row.id for row, _ in made}
    assert {s.log_perplexity.n for s in found.results.summaries() if s.row.cell.kind != "dense"} == {3}
    assert len(found.runs) == 2


def test_a_budget_in_tokens_is_the_steps_that_it_pays_for(tmp_path) -> None:
    made = cells()
    half = len(made) // 2
    one = fill(tmp_path / "one", made[:half], run(steps=10, forward_tokens=None))
    two = fill(tmp_path / "two", made[half:], run(steps=50, forward_tokens=10 * 2 * 8 * 128))
    assert len(load([one, two]).comparisons) == 1


@pytest.mark.parametrize("other", [run("other"), run(eval_seq_len=64), run(min_keep=2), run() | {"polyprune": "9.9"}])
def test_what_may_not_be_compared_stays_apart(tmp_path, other) -> None:
    one = fill(tmp_path / "one")
    two = fill(tmp_path / "two", record=other)
    found = load([one, two]).comparisons
    assert [len(each.rows) for each in found] == [len(cells())] * 2
    assert found[0].run["config"] == run()["config"]


def test_searches_of_other_settings_stand_apart_and_both_have_the_metrics_they_share(tmp_path) -> None:
    made = cells()
    metrics = [cell for cell in made if cell[0].cell.kind != "search"]
    changed = [
        (dataclasses.replace(row, id=f"other-{row.id}", nll=row.nll + 1), details)
        for row, details in made
        if row.cell.kind == "search"
    ]
    store = fill(tmp_path / "store", made, run(steps=5))
    fill(store, [*metrics, *changed], run(steps=9))
    found = load([store]).comparisons
    assert {len(each.rows) for each in found} == {len(made)}
    assert all(s.versus for each in found for s in each.results.summaries() if s.row.cell.kind == "search")
    assert not any(
        ids(found[0]) & {row.id for row, _ in changed} and row_id in ids(found[0])
        for row_id in [row.id for row, _ in made if row.cell.kind == "search"]
    )


def test_metrics_alone_under_settings_of_a_search_that_never_ran_are_one_comparison(tmp_path) -> None:
    metrics = [cell for cell in cells() if cell[0].cell.kind == "baseline"]
    one, two = fill(tmp_path / "one", metrics, run(steps=5)), fill(tmp_path / "two", metrics, run(steps=9))
    assert len(load([one, two]).comparisons) == 1


def test_a_cell_measured_twice_counts_as_one_seed(tmp_path) -> None:
    made = cells()
    again = [(dataclasses.replace(row, id=f"again-{row.id}"), details) for row, details in made if row.cell.seed == 1]
    loaded = load([fill(tmp_path / "store", [*made, *again])])
    assert ids(loaded.comparisons[0]) == {row.id for row, _ in made}
    assert any(f"{len(again)} cells were measured again" in note for note in loaded.notes)


def test_what_controls_a_terminal_is_gone_from_every_text(tmp_path) -> None:
    store = fill(tmp_path / "store")
    record = json.loads((store / "results.json").read_text("utf-8"))
    record["rows"][1] |= {"initializer": "wan\x1b[31mda\u202e", "error": "a\x07b"}
    record["model"]["name"] = "ti\x9bny"
    record["environment"]["cpu\x1b"] = ["\x1b]0;title\x07"]
    edited(store / "results.json", **record)
    found = load([store]).comparisons[0]
    assert "\x1b" not in repr(found.run).encode().decode("unicode_escape")
    assert found.rows[record["rows"][1]["id"]].cell.initializer == "wan [31mda"
    assert found.run["model"]["name"] == "ti ny"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "schema 2"),
        ({"rows": [{"id": "x", "kind": "dense", "unheard": 1}]}, "unheard"),
        ({"rows": [{"id": "../x", "kind": "dense"}]}, "id of a cell"),
        ({"rows": [{"id": "x", "kind": "baseline"}]}, "does not say"),
        ({"rows": [{"id": "x", "kind": "else"}]}, "does not say"),
        ({"rows": [{"id": "x", "kind": "dense", "status": "fine"}]}, "status is 'fine'"),
        ({"rows": [{"id": "x", "kind": "dense", "perplexity": -3.5, "nll": 1.0}]}, "perplexity is -3.5"),
        ({"rows": [{"id": "x", "kind": "dense", "perplexity": 3.5, "nll": -1.0}]}, "nll is -1"),
        ({"rows": [{"id": "x", "kind": "dense", "perplexity": 3.5, "nll": 1.0, "top1_agreement": 1.5}]}, "top1_agr"),
        ({"rows": [{"id": "x", "kind": "dense", "perplexity": 3, "nll": 1, "budget": "gold=1"}]}, "'gold'"),
        ({"rows": [{"id": "x", "kind": "dense", "forward_tokens": 10**400}]}, "too large"),
        ({"rows": [[]]}, "results.json"),
        ({"rows": "ab"}, "results.json"),
        ({"config": {"sparsity": [], "budget": []}}, "nothing to remove"),
        ({"rows": 3}, "int"),
        ({"model": {"name": "tiny"}}, "model.dtype"),
        ({"texts": {}}, "calibration"),
        ({"config": {"steps": "many"}}, "steps"),
    ],
)
def test_a_file_that_does_not_hold_results_is_refused_with_its_name_and_the_reason(tmp_path, changes, reason) -> None:
    store = fill(tmp_path / "store")
    edited(store / "results.json", **changes)
    with pytest.raises(ConfigError, match=reason) as caught:
        load([store])
    assert str(store / "results.json") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", ["", "[]", '{"rows"', "[" * 100_000, '{"schema": 1, "rows": [], "polyprune": NaN}'])
def test_what_is_not_json_of_ours_is_refused(tmp_path, content) -> None:
    file = tmp_path / "results.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="does not hold results"):
        load([file])


def test_a_path_that_is_no_store_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"neither a results store nor a results\.json"):
        load([tmp_path / "nothing"])
    (tmp_path / "cells").mkdir()
    with pytest.raises(ConfigError, match="no finished cell"):
        load([tmp_path])


def test_a_broken_file_beside_a_cell_costs_its_details_only(tmp_path) -> None:
    store = fill(tmp_path / "store")
    (store / "cells" / "dense.safetensors").write_bytes(b"\x00" * 40)
    loaded = load([store])
    assert len(loaded.comparisons[0].rows) == len(cells())
    assert "dense" not in loaded.comparisons[0].details
    assert any("dense.safetensors" in note for note in loaded.notes)


def searches(store: Path) -> list[str]:
    return sorted(path.name.partition(".")[0] for path in (store / "cells").glob("*.trace.jsonl"))


def test_the_steps_of_another_cell_are_no_curve_and_are_told_of_by_name(tmp_path) -> None:
    store = fill(tmp_path / "store")
    one, other, *_ = searches(store)
    assert load([store]).notes == []
    shutil.copy(store / "cells" / f"{one}.trace.jsonl", store / "cells" / f"{other}.trace.jsonl")
    (note,) = load([store]).notes
    assert f"{other}.trace.jsonl does not hold" in note
    assert f"those of cell {one}" in note
    loaded = load([store]).comparisons[0]
    found = curves(loaded.results, loaded.results.summaries(), loaded.folders).values()
    assert sum(len(curve.seeds) for each in found for curve in each) == len(searches(store)) - 1


def test_steps_of_before_they_named_their_cell_still_read(tmp_path) -> None:
    store = fill(tmp_path / "store")
    one = searches(store)[0]
    file = store / "cells" / f"{one}.trace.jsonl"
    steps = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert {step.pop("cell") for step in steps} == {one}
    file.write_text("\n".join(map(json.dumps, steps)) + "\n", "utf-8")
    assert load([store]).notes == []
    assert read_trace(file.parent, one) == steps


def test_a_cell_that_was_copied_under_another_name_is_refused(tmp_path) -> None:
    store = fill(tmp_path / "store", finished=False)
    one, other, *_ = searches(store)
    shutil.copy(store / "cells" / f"{one}.json", store / "cells" / f"{other}.json")
    with pytest.raises(ConfigError, match=rf"{other}\.json is not a finished cell \(it holds cell {one}\)"):
        load([store])
