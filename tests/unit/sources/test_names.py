"""Models by name: a word of the catalogue, a folder or a path, and what is said of a name that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyprune_core.errors import ConfigError, ModelError
from polyprune_core.models import sources
from polyprune_core.models.sources import catalogue, resolve


def test_an_unknown_word_gets_the_nearest_name_and_the_other_ways():
    with pytest.raises(ModelError, match=r"Did you mean 'smollm2-135m'\?.*folder.*\.gguf.*owner/name"):
        resolve("smollm2-135")


def test_a_catalogue_name_wins_over_a_folder_unless_written_as_a_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(sources, "from_catalogue", lambda entry, code, status: Path("of the catalogue"))
    folder.rename("smollm2-135m")
    assert resolve("./smollm2-135m") == Path("smollm2-135m")
    assert resolve("smollm2-135m") == Path("of the catalogue")


def test_a_folder_may_be_a_plain_word(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert resolve("model") == Path("model")


@pytest.mark.parametrize("name", ["./nothing", "/nowhere/at/all", "missing.gguf", "a/b/c", "~nobody-here/x/y"])
def test_a_path_that_is_not_there_is_said_to_be_missing(name):
    with pytest.raises(ModelError, match="there is no file or folder"):
        resolve(name)


def test_a_revision_is_refused_where_there_is_none(folder):
    with pytest.raises(ConfigError, match="not a hub id"):
        resolve(str(folder), revision="main")


def test_every_catalogue_entry_says_where_it_comes_from():
    for entry in catalogue().values():
        assert entry.summary
        assert entry.licence
        assert entry.folder or entry.hub or entry.wheel
