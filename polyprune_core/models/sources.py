"""Models by name: one of the catalogue, a folder, a .gguf file, or a Hugging Face hub id."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polyprune_core.errors import ConfigError, ModelError, unknown_name
from polyprune_core.models.cache import model_folder
from polyprune_core.models.catalogue import CatalogueEntry, catalogue
from polyprune_core.models.checkpoint import PICKLE_REFUSAL, PICKLES, check_folder, is_whole, weights_sha256
from polyprune_core.models.fetch import from_catalogue, from_gguf, from_hub, require_unchanged
from polyprune_core.models.quiet import silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["CatalogueEntry", "LoadedModel", "catalogue", "load_model", "resolve"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ALLOWED = "Or give a folder, a .gguf file, or a hub id (owner/name)."


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be pruned: eval mode, no parameter requires a gradient, config.use_cache is False.

    `name` is what the user gave; `sha256` identifies the weights whatever dtype was asked for; `path` is the folder
    they were read from, where exporters find the tokenizer's files (None for a model built in memory).
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sha256: str
    path: Path | None


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    status: Callable[[str], None] = silent,
) -> LoadedModel:
    """Finds, fetches and converts as needed, and loads the model called `name`.

    dtype is auto, float32, bfloat16 or float16; device auto, cpu or cuda[:i]; revision is for hub ids. `status`
    receives one line of progress at a time, also from another thread.

    Raises:
        ConfigError: dtype, device or revision cannot be used.
        ModelError: the model cannot be found, fetched or read.
    """
    from polyprune_core.models.placement import pick_device, pick_dtype
    from polyprune_core.models.quiet import quiet
    from polyprune_core.models.reading import read_model, read_tokenizer

    where = pick_device(device)
    number_format = pick_dtype(dtype, where)
    folder = resolve(name, revision=revision, trust_remote_code=trust_remote_code, status=status)
    check_folder(folder)
    sha256 = weights_sha256(folder)
    require_unchanged(folder, sha256)
    status(f"{name}: reading {folder}")
    with quiet():
        model = read_model(folder, number_format, where, trust_remote_code)
        tokenizer = read_tokenizer(folder, model, trust_remote_code)
    return LoadedModel(name=name, model=model, tokenizer=tokenizer, sha256=sha256, path=folder)


def resolve(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    status: Callable[[str], None] = silent,
) -> Path:
    """The folder with config.json, safetensors and tokenizer of the model called `name`, fetched if need be.

    A catalogue name wins over a file or folder of that name; write ./tiny for the folder.

    Raises:
        ConfigError: a revision for something that has none.
        ModelError: no such model, or it cannot be fetched or converted.
    """
    entry = catalogue().get(name)
    path = Path(os.path.expanduser(name))
    is_hub_id = HUB_ID.fullmatch(name) is not None and not os.path.exists(path) and path.suffix != ".gguf"
    if entry and entry.hub and revision:
        return from_hub(entry.hub, revision, trust_remote_code, prefer_local=False, status=status)
    if revision and not is_hub_id:
        raise ConfigError(f"revision {revision!r} was given, but {name!r} is not a hub id, and only those have one.")
    if entry:
        return from_catalogue(entry, trust_remote_code, status)
    if name and os.path.isdir(path):
        return path
    if os.path.isfile(path):
        return _from_file(path, status)
    if is_hub_id:
        try:
            return from_hub(name, revision, trust_remote_code, prefer_local=False, status=status)
        except ModelError as error:
            raise ModelError(f"{error} (There is no folder {name!r} here either.)") from error
    if "/" in name or os.sep in name or path.suffix == ".gguf":
        raise ModelError(f"there is no file or folder {name!r}.")
    raise ModelError(f"{unknown_name('model', name, catalogue())} {ALLOWED}")


def local_folder(name: str, revision: str | None = None) -> Path | None:
    """The folder that `resolve` would give, where it is whole on this machine already; nothing is fetched or converted.

    Raises:
        ModelError: it is neither a known name, nor a folder, nor a .gguf file, nor like a hub id.
    """
    entry, path = catalogue().get(name), Path(os.path.expanduser(name))
    if entry and not revision:
        return _whole(entry.folder or model_folder(entry.cache_name))
    if name and os.path.isdir(path):
        return _whole(path)
    repo = entry.hub if entry else name
    if repo and HUB_ID.fullmatch(repo) and not os.path.exists(path):
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(repo, "config.json", revision=revision)
        return _whole(Path(config).parent) if isinstance(config, str) else None
    if path.suffix == ".gguf" and os.path.isfile(path):
        return None
    raise ModelError(f"{unknown_name('model', name, catalogue())} {ALLOWED}")


def _whole(folder: Path) -> Path | None:
    return folder if is_whole(folder) else None


def _from_file(path: Path, status: Callable[[str], None]) -> Path:
    if path.suffix == ".gguf":
        return from_gguf(path, status)
    if path.suffix in PICKLES:
        raise ModelError(f"{path}: {PICKLE_REFUSAL}.")
    raise ModelError(f"{path} is a file, but not a .gguf file. Give the folder that holds the model.")
