"""What a cell is known by: everything that decides its result, and nothing else."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from polyprune_core.config.cell import Dense, cell_from_json
from polyprune_core.config.grid import cell_id
from polyprune_core.config.settings import Comparison, Settings
from polyprune_core.errors import ModelError
from polyprune_core.models.catalogue import catalogue
from polyprune_core.models.checkpoint import count_parameters, settings_sha256
from polyprune_core.models.sources import local_folder
from polyprune_core.runs.cell_identity import identity, used_plugins

TINY = catalogue()["tiny"].folder
SHARED: dict[str, Any] = {"weights": "w", "calibration": "c", "evaluation": "e", "plugins": {}}
WHERE: dict[str, Any] = {"granularity": "head", "initializer": "wanda", "sparsity": 0.2, "seed": 0, "scope": "kind"}
CELLS = {
    "dense": Dense(),
    "baseline": cell_from_json({"kind": "baseline", "scale": "raw", **WHERE}),
    "start": cell_from_json({"kind": "start", **WHERE}),
    "search": cell_from_json({"kind": "search", "estimator": "rloo", **WHERE}),
    "trained": Dense(repair="distil", seed=0),
    "repaired": cell_from_json({"kind": "baseline", "scale": "raw", "repair": "bias", **WHERE}),
}
CHANGED: dict[str, Any] = {
    "model": "other",
    "revision": "main",
    "trust_remote_code": True,
    "dtype": "float32",
    "device": "cuda",
    "calibration": "a.txt",
    "evaluation": "b.txt",
    "text_column": "body",
    "bos": "never",
    "calibration_samples": 65,
    "repair_samples": 65,
    "seq_len": 64,
    "eval_seq_len": 64,
    "limit": 7,
    "batch_size": 7,
    "steps": 7,
    "masks_per_step": 4,
    "forward_tokens": 20_480,
    "learning_rate": 0.5,
    "precondition": "none",
    "policy": "probabilities",
    "min_keep": 2,
}
EVERY, PRUNED, POLICY, SEARCH = set(CELLS), set(CELLS) - {"dense", "trained"}, {"start", "search"}, {"search"}
CALIBRATED = set(CELLS) - {"dense"}
DECIDES = {
    **dict.fromkeys(("trust_remote_code", "bos", "eval_seq_len", "limit"), EVERY),
    **dict.fromkeys(("calibration_samples", "min_keep"), PRUNED),
    **dict.fromkeys(("seq_len", "batch_size"), CALIBRATED),
    "repair_samples": {"repaired", "trained"},
    "policy": POLICY,
    **dict.fromkeys(("steps", "masks_per_step", "forward_tokens", "learning_rate", "precondition"), SEARCH),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_setting_changes_the_cells_whose_numbers_it_decides_and_no_others(name) -> None:
    one, other = Settings(), Settings(**{name: CHANGED[name]})
    changed = {kind for kind, cell in CELLS.items() if cell_id(cell, one, SHARED) != cell_id(cell, other, SHARED)}
    assert changed == DECIDES.get(name, set())


def test_a_setting_that_is_not_listed_decides_every_cell() -> None:
    class More(Settings):
        new: int = 0

    Settings.model_fields["new"] = More.model_fields["new"]
    try:
        for cell in CELLS.values():
            assert cell_id(cell, More(), SHARED) != cell_id(cell, More(new=1), SHARED)
    finally:
        del Settings.model_fields["new"]


def test_the_same_number_of_steps_is_the_same_search_however_it_was_asked_for() -> None:
    tokens = Settings(forward_tokens=5 * 2 * 8 * 128 + 3)
    assert cell_id(CELLS["search"], tokens, SHARED) == cell_id(CELLS["search"], Settings(steps=5), SHARED)


@pytest.mark.parametrize(("name", "kinds"), [("weights", EVERY), ("evaluation", EVERY), ("calibration", CALIBRATED)])
def test_weights_and_texts_change_the_cells_that_read_them(name, kinds) -> None:
    other = SHARED | {name: "other"}
    changed = {k for k, cell in CELLS.items() if cell_id(cell, Settings(), SHARED) != cell_id(cell, Settings(), other)}
    assert changed == kinds


def test_all_cells_have_ids_of_their_own() -> None:
    ids = {cell_id(cell, Settings(), SHARED) for cell in CELLS.values()}
    assert len(ids) == len(CELLS)


def test_a_cell_names_the_distribution_of_every_plugin_it_uses() -> None:
    sources = {
        "granularity": {"head": "a 1", "channel": "b 2"},
        "initializer": {"wanda": "c 3"},
        "policy": {"gaussian": "e 5"},
        "estimator": {"rloo": "d"},
        "repair": {"none": "f 6"},
    }
    joint = CELLS["search"].model_copy(update={"granularity": "head+channel"})
    assert used_plugins(joint, sources) == {
        "granularity head": "a 1",
        "granularity channel": "b 2",
        "initializer": "c 3",
        "policy": "e 5",
        "estimator": "d",
        "repair": "f 6",
    }
    assert used_plugins(CELLS["dense"], sources) == {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_another_configuration_tokenizer_or_code_is_another_model(folder) -> None:
    seen = {settings_sha256(folder)}
    edit(folder / "config.json", rms_norm_eps=1e-3)
    seen.add(settings_sha256(folder))
    edit(folder / "tokenizer.json", added_tokens=[])
    seen.add(settings_sha256(folder))
    (folder / "modeling.py").write_text("x = 1")
    seen.add(settings_sha256(folder))
    assert len(seen) == 4


def test_where_a_model_comes_from_and_how_it_was_stored_is_not_what_it_is(folder) -> None:
    before = settings_sha256(folder)
    edit(folder / "config.json", transformers_version="9", dtype="float32", _name_or_path="somewhere", use_cache=False)
    (folder / "README.md").write_text("other words")
    assert settings_sha256(folder) == before


def test_the_identity_of_a_model_in_memory_has_no_files() -> None:
    texts = {"calibration": "c", "evaluation": "e"}
    assert identity(Comparison(), "w", None, "torch.float32", "cpu", texts)["settings"] is None
    assert identity(Comparison(), "w", TINY, "torch.float32", "cpu", texts)["settings"] == settings_sha256(TINY)


def test_weights_are_counted_from_the_files_header() -> None:
    with safe_open(TINY / "model.safetensors", "np") as file:
        names = file.keys()
        assert count_parameters(TINY) == sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def test_a_model_that_is_here_is_found_without_fetching(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POLYPRUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "some.gguf").write_bytes(b"")
    assert local_folder("tiny") == TINY
    assert local_folder(str(folder)) == folder
    assert local_folder("smollm2-135m") is None
    assert local_folder("nobody/no-such-model") is None
    assert local_folder("smollm2-135m", "no-such-revision") is None
    assert local_folder(str(tmp_path / "some.gguf")) is None
    (folder / "model.safetensors").write_bytes(b"cut")
    assert local_folder(str(folder)) is None
    assert not (tmp_path / "cache").exists()


def test_a_name_that_no_model_can_have_gets_the_nearest() -> None:
    with pytest.raises(ModelError, match="Did you mean 'tiny'"):
        local_folder("tinny")
