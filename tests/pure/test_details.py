"""What lies beside a cell reads back as what it was, or not at all."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from polyprune_core.errors import ConfigError
from polyprune_core.results.cell_file import FORMAT, Details, Group, read_details, write_details

GROUPS = (Group("head", 0, 3), Group("channel", 0, 10), Group("head", 1, 3))
KEEP = np.array([1, 0, 1] + [1] * 7 + [0] * 3 + [0, 0, 1], bool)


def details() -> Details:
    scores = np.arange(16, dtype=np.float32)
    return Details(np.array([1.5, 2.25], np.float32), {"model": {"name": "tiny"}}, GROUPS, KEEP, scores)


def test_details_read_back_as_what_they_were(tmp_path) -> None:
    write_details(tmp_path / "x.safetensors", details())
    back = read_details(tmp_path / "x.safetensors")
    assert back is not None
    assert (back.run, back.groups) == (details().run, GROUPS)
    for name in ("window_nll", "keep", "scores"):
        np.testing.assert_array_equal(getattr(back, name), getattr(details(), name))
        assert getattr(back, name).dtype == getattr(details(), name).dtype


def test_a_dense_cell_has_windows_and_no_choice(tmp_path) -> None:
    write_details(tmp_path / "x.safetensors", Details(np.array([1.0], np.float32)))
    back = read_details(tmp_path / "x.safetensors")
    assert back is not None
    assert (back.keep, back.scores, back.kept()) == (None, None, {})


def test_a_cell_without_the_file_has_none(tmp_path) -> None:
    assert read_details(tmp_path / "x.safetensors") is None


def test_a_file_that_was_copied_from_another_cell_is_refused_by_name(tmp_path) -> None:
    write_details(tmp_path / "one.safetensors", details())
    (tmp_path / "one.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"other\.safetensors does not hold .* those of cell one"):
        read_details(tmp_path / "other.safetensors")


def test_units_kept_are_counted_by_kind_and_layer() -> None:
    assert details().kept() == {"head": [(0, 2, 3), (1, 1, 3)], "channel": [(0, 7, 10)]}
    assert np.flatnonzero(details().of_kind("head")).tolist() == [0, 1, 2, 13, 14, 15]


def test_a_kept_unit_is_one_bit(tmp_path) -> None:
    large = 80_000
    choice = Details(np.zeros(1, np.float32), {}, (Group("channel", 0, large),), np.ones(large, bool))
    write_details(tmp_path / "x.safetensors", Details(**{**vars(choice), "scores": np.zeros(large, np.float32)}))
    assert (tmp_path / "x.safetensors").stat().st_size < large * (4 + 1 / 8) + 1000


HEADER = {"format": FORMAT, "run": "{}", "groups": '[["head", 0, 3]]'}
ARRAYS = {"window_nll": np.zeros(2, np.float32), "keep": np.packbits([1, 0, 1]), "scores": np.zeros(3, np.float32)}


@pytest.mark.parametrize(
    ("header", "arrays"),
    [
        (HEADER | {"format": "another"}, ARRAYS),
        (HEADER | {"groups": '[["head", 0, -3]]'}, ARRAYS),
        (HEADER | {"groups": '[["head", 0, 30]]'}, ARRAYS),
        (HEADER | {"groups": "{"}, ARRAYS),
        (HEADER | {"run": "[]"}, ARRAYS),
        ({}, ARRAYS),
        (HEADER, ARRAYS | {"scores": np.zeros(4, np.float32)}),
        (HEADER, {"scores": np.zeros(3, np.float32)}),
    ],
)
def test_a_file_that_is_not_one_of_ours_is_refused_by_name(tmp_path, header, arrays) -> None:
    save_file(arrays, tmp_path / "x.safetensors", header)
    with pytest.raises(ConfigError, match=r"x\.safetensors does not hold"):
        read_details(tmp_path / "x.safetensors")


def test_a_truncated_file_is_refused(tmp_path) -> None:
    write_details(tmp_path / "x.safetensors", details())
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[:-5])
    with pytest.raises(ConfigError, match="does not hold"):
        read_details(tmp_path / "x.safetensors")


def test_details_are_read_without_torch(tmp_path) -> None:
    write_details(tmp_path / "x.safetensors", details())
    program = f"""
import json, sys
from pathlib import Path
from polyprune_core.results.cell_file import read_details
read = read_details(Path({str(tmp_path / "x.safetensors")!r}))
print(json.dumps([read.kept(), sorted({{"torch", "transformers"}} & sys.modules.keys())]))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    kept, loaded = json.loads(run.stdout)
    assert kept["channel"] == [[0, 7, 10]]
    assert loaded == []
