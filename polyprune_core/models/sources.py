"""Models by name: one of the catalogue, a folder, a .gguf file, or a Hugging Face hub id."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polyprune_core.errors import ConfigError, ModelError, unknown_name
from polyprune_core.models.cache import model_folder
from polyprune_core.models.catalogue import CatalogueEntry, catalogue, local_path
from polyprune_core.models.checkpoint import (
    LICENCES,
    PICKLE_REFUSAL,
    PICKLES,
    check_folder,
    is_whole,
    stored_dtype,
    weights_sha256,
)
from polyprune_core.models.fetch import from_catalogue, from_gguf, from_hub, origin, require_unchanged
from polyprune_core.models.quiet import silent
from polyprune_core.models.remote_code import is_own, named_code

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["CatalogueEntry", "LoadedModel", "assemble_model", "catalogue", "load_model", "resolve"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ALLOWED = "Or give a folder, a .gguf file, or a hub id (owner/name)."


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be pruned: in eval mode, without gradients, and with `config.use_cache` off.

    Attributes:
        name: the model as the user named it.
        model: the transformers model. Its dtype is the one that it computes in.
        tokenizer: the tokenizer.
        sha256: a hash of the weights in the files, whatever dtype was asked for.
        path: the folder that the model was read from, or None for a model that was built in memory.
        stored: torch's name of the number format of the files in `path`, or "" for a model that was built in memory.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sha256: str
    path: Path | None
    stored: str = ""

    @property
    def stored_dtype(self) -> torch.dtype:
        """The number format of the weights in their files, or that of the model if it was built in memory."""
        import torch

        kept: torch.dtype = getattr(torch, self.stored) if self.stored else self.model.dtype
        return kept

    @property
    def source(self) -> str | None:
        """Where the weights come from, in words, because two files of one name may differ; None if unknown."""
        note = origin(self.path) if self.path else None
        if self.path is None or (note is None and self.path.parent.name != "snapshots"):
            return None
        if note is None:
            owner = self.path.parent.parent.name.removeprefix("models--").replace("--", "/")
            return f"{owner} of the hub, commit {self.path.name[:8]}"
        entry = catalogue().get(self.name)
        return entry.wheel.told if entry and entry.wheel and entry.cache_name == self.path.name else note["source"]

    @property
    def licence(self) -> str | None:
        """The name of the licence of the weights, from the catalogue or the model's card; None if neither says."""
        if entry := catalogue().get(self.name):
            return entry.licence
        card = self.path / "README.md" if self.path else None
        text = card.read_text("utf-8", "replace") if card and card.is_file() else ""
        found = re.search(r"^license: *(\S+)", text, re.M)
        return found.group(1) if found else None

    @property
    def licence_files(self) -> list[Path]:
        """The files in `path` that hold the licence of the weights, and the notices that belong to it."""
        found = {file for pattern in LICENCES for file in self.path.glob(pattern)} if self.path else ()
        return sorted(file for file in found if file.is_file())

    @property
    def hub_id(self) -> str | None:
        """The id of the model on the Hugging Face hub, if the user gave it or the catalogue has it; otherwise None."""
        if entry := catalogue().get(self.name):
            return entry.hub
        is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", self.name) and local_path(self.name) is None
        return self.name if is_hub_id else None

    def as_stored(self) -> LoadedModel:
        """Returns the model in the number format of its files: the same object, or a copy read again onto the CPU.

        Raises:
            ModelError: the files have changed since they were read, or cannot be read.
        """
        import torch

        if self.path is None or self.model.dtype == self.stored_dtype:
            return self
        from polyprune_core.models.quiet import quiet
        from polyprune_core.models.reading import read_model

        if weights_sha256(self.path) != self.sha256:
            raise ModelError(f"the weights in {self.path} have changed since {self.name} was read. Run it again.")
        with quiet():
            model = read_model(self.path, self.stored_dtype, torch.device("cpu"), trust_remote_code=False)
        return dataclasses.replace(self, model=model)


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    status: Callable[[str], None] = silent,
) -> LoadedModel:
    """Loads a model by its name; it is downloaded and converted first if necessary.

    Args:
        name: a name that `polyprune models` lists, a folder, a .gguf file, or a Hugging Face hub id.
        dtype: "float32", "bfloat16", "float16", or "auto". "auto" is the number format of the weights, or float32 if
            the device cannot compute in that format natively.
        device: "cpu", "cuda", "cuda:0" and so on, or "auto", which takes a GPU if there is one.
        revision: a branch, tag or commit, for a hub id only.
        trust_remote_code: whether Python code that comes with the model may run.
        status: is called with one line of progress at a time, possibly from another thread.

    Raises:
        ConfigError: the dtype, the device or the revision cannot be used.
        ModelError: the model cannot be found, downloaded or read.
    """
    from polyprune_core.models.placement import pick_device, pick_dtype
    from polyprune_core.models.quiet import quiet
    from polyprune_core.models.reading import read_model, read_tokenizer

    where = pick_device(device)
    pick_dtype(dtype, where, "")
    folder = resolve(name, revision=revision, trust_remote_code=trust_remote_code, status=status)
    config = check_folder(folder)
    stored = stored_dtype(folder)
    sha256 = weights_sha256(folder)
    require_unchanged(folder, sha256)
    if named_code(config) and not trust_remote_code and not is_own(config):
        status(f"{name}: read with transformers' own class, without the code that comes with it")
    status(f"{name}: reading {folder}")
    with quiet():
        model = read_model(folder, pick_dtype(dtype, where, stored), where, trust_remote_code)
        tokenizer = read_tokenizer(folder, model, trust_remote_code)
    return LoadedModel(name=name, model=model, tokenizer=tokenizer, sha256=sha256, path=folder, stored=stored)


def load_unread(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    status: Callable[[str], None] = silent,
) -> LoadedModel:
    """Finds the model called `name` and sets it up on the meta device, in the number format of its files.

    Its weights stay on disk, for what reads them a shard at a time.

    Raises:
        ConfigError, ModelError: as `load_model`.
    """
    import torch

    from polyprune_core.models.quiet import quiet
    from polyprune_core.models.reading import model_without_weights, read_tokenizer

    folder = resolve(name, revision=revision, trust_remote_code=trust_remote_code, status=status)
    check_folder(folder)
    stored, sha256 = stored_dtype(folder), weights_sha256(folder)
    require_unchanged(folder, sha256)
    with quiet():
        model = model_without_weights(folder, False, getattr(torch, stored))
        tokenizer = read_tokenizer(folder, model, trust_remote_code)
    return LoadedModel(name=name, model=model, tokenizer=tokenizer, sha256=sha256, path=folder, stored=stored)


def assemble_model(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    sha256: str,
    stored: str = "float32",
    dtype: str = "auto",
    device: str = "auto",
) -> LoadedModel:
    """Makes a model from the configuration and tokenizer in `folder`, and from weights that were read elsewhere.

    Args:
        folder: a folder with a config.json and the files of a tokenizer.
        tensors: all parameters by the names that transformers uses.
        sha256: a hash that identifies the weights.
        stored: torch's name of the number format that the weights were read from.
        dtype: as for `load_model`.
        device: as for `load_model`.

    Raises:
        ConfigError: the dtype or the device cannot be used.
        ModelError: the configuration, the weights and the tokenizer do not fit together.
    """
    from polyprune_core.models.placement import pick_device, pick_dtype
    from polyprune_core.models.quiet import quiet
    from polyprune_core.models.reading import model_of, read_tokenizer

    where = pick_device(device)
    with quiet():
        model = model_of(folder, tensors, pick_dtype(dtype, where, stored), where)
        tokenizer = read_tokenizer(folder, model, trust_remote_code=False)
    return LoadedModel(name=str(folder), model=model, tokenizer=tokenizer, sha256=sha256, path=folder, stored=stored)


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
        raise ModelError(
            f"there is no file or folder {name!r}; give one that exists, a hub id, or one of {', '.join(catalogue())}."
        )
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
