"""Writes a smaller model as a folder for transformers, and says early whether that is possible."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polyprune_core.errors import ModelError
from polyprune_core.models.describe import describe
from polyprune_core.models.quiet import quiet
from polyprune_core.models.remote_code import CODE, is_stock
from polyprune_core.models.sources import LoadedModel
from polyprune_core.pruning.build import class_for, compact_config
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.shards import is_unread, write_by_shard
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import Scores, Selection, UnitGroup

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_writable(base: LoadedModel) -> None:
    """Checks that a smaller form of a model can be written as a folder for transformers.

    To find out, a model with one entry less on each axis of its first layer is set up, without memory for weights.

    Raises:
        ModelError: the class of the model is not transformers' own, or no smaller model can be made of it.
    """
    model: Any = base.model
    if not is_stock(model):
        raise ModelError(
            f"{base.name} is a {type(model).__name__}, which is not transformers' own: what its code does would be "
            "lost in a folder of a smaller model. --exporter masks writes what stays without the model."
        )
    layout = describe(model)
    groups = [UnitGroup(axis.kind, axis.layer, axis.size, ((axis.name, 1),)) for axis in layout.axes]
    space = MaskSpace(layout, groups)
    keep = torch.ones(len(space), dtype=torch.bool)
    keep[[part.start for part, group in zip(space.slices(), space.groups, strict=True) if group.layer == 0]] = False
    selection = Selection(keep, int(space.cost[keep].sum()), space.total_cost)
    pruned = PrunedModel(base, space, selection, Scores(keep.float(), "the first entries"))
    try:
        config = compact_config(pruned)
        with torch.device("meta"), quiet():
            made = class_for(config, layout)._from_config(config)
            for module in made.modules():
                made._init_weights(module)  # as reading it from a folder does
    except Exception as error:
        # Not a list of types: what a configuration of any model leads to inside transformers is nowhere stated.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(
            f"{base.name} cannot be built with layers of several widths: {reason}. "
            "--exporter masks writes what stays without the model."
        ) from error


def write_model(
    pruned: PrunedModel, folder: Path, dtype: torch.dtype, max_shard_size: str, origin: dict[str, Any]
) -> PreTrainedModel:
    """Writes a pruned model as a folder for transformers, and returns the smaller model.

    The folder gets the weights, the configuration and the tokenizer. It also gets Python code for the model if its
    layers differ in width. If the weights of the dense model were not read, they are read from its files a shard at a
    time.

    Args:
        pruned: the pruned model.
        folder: an existing folder.
        dtype: the number format to write.
        max_shard_size: the largest size of one file of weights, such as "5GB".
        origin: JSON values that say where the model comes from; config.json gets them under `polyprune`.

    Raises:
        ModelError: as for `check_writable`, or the files of the dense model have changed since they were read.
    """
    check_writable(pruned.base)
    if is_unread(pruned.base):
        model: Any = write_by_shard(pruned, folder, dtype, max_shard_size)
    else:
        model = pruned.stored_as(dtype).build()
        if model.dtype != dtype:
            model = model.to(dtype)
        with quiet():
            model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_settings(model, pruned.base.tokenizer, folder, origin, pruned.base.licence_files)
    written: PreTrainedModel = model
    return written


def write_settings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    origin: dict[str, Any],
    licences: Iterable[Path] = (),
) -> None:
    """Writes everything of a model's folder except the weights.

    The folder gets the configuration, the tokenizer, and Python code for the model if its layers differ in width.

    Args:
        model: the smaller model.
        tokenizer: its tokenizer.
        folder: an existing folder.
        origin: JSON values that say where the model comes from; config.json gets them under `polyprune`.
        licences: files to copy into the folder.
    """
    for licence in licences:
        shutil.copyfile(licence, folder / licence.name)
    config: Any = model.config
    config.polyprune = getattr(config, "polyprune", {}) | origin
    config.architectures = [type(model).__name__]
    with quiet():
        config.save_pretrained(folder)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _forget_how_it_was_loaded(folder / "tokenizer_config.json")
    if hasattr(config, "auto_map"):
        shutil.copyfile(CODE, folder / CODE.name)


def _forget_how_it_was_loaded(path: Path) -> None:
    config = json.loads(path.read_text("utf-8"))
    for key in ("is_local", "local_files_only", "name_or_path"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
