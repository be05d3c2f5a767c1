"""What a name given to `evaluate` stands for: a model, a pruned model's folder, or masks with their dense model."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from polyprune_core.config.requests import EvaluateConfig, Export, Recover, Sample
from polyprune_core.errors import ConfigError, ModelError
from polyprune_core.models.checkpoint import WEIGHTS, WEIGHTS_INDEX, json_object, read_config, weight_files
from polyprune_core.models.sources import LoadedModel, catalogue, load_model
from polyprune_core.plugins.contracts import Exporter
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.mask_file import HEADER, TENSORS, MaskFile
from polyprune_core.utils.outputs import RECORD
from polyprune_core.utils.progress import Reporter

# Endings of files in which other formats hold weights.
HELD_IN = (".gguf", ".onnx", ".data")


@dataclass(frozen=True)
class Subject:
    """A model ready to be measured; `files` are what it was read from.

    Its dense model: `dense` where it is loaded already, otherwise what its folder says of it (`origin`: name, sha256).
    """

    loaded: LoadedModel
    files: list[Path]
    dense: LoadedModel | None = None
    origin: dict[str, Any] | None = None


def open_subject(name: str, request: EvaluateConfig, reporter: Reporter, dense: str | None = None) -> Subject:
    """Loads what `name` stands for; `dense` is the dense model of a mask file, if not the one that it names.

    Raises:
        ConfigError: `dense` was given for something that is no mask file.
        ModelError: it cannot be found or read.
    """
    path = Path(os.path.expanduser(name))
    folder = path.parent if path.name in (HEADER, TENSORS) else path
    if name not in catalogue() and os.path.isfile(folder / HEADER):
        return _from_masks(name, folder, dense, request, reporter)
    if dense is not None:
        raise ConfigError(
            f"--model {dense} names the dense model of a mask file, but {name} is no folder of masks. To compare the "
            "two, give --reference."
        )
    loaded = load_asked(name, request, reporter, request.revision if name == request.target else None)
    made = read_config(loaded.path).get("polyprune") if loaded.path else None
    origin = made.get("base") if isinstance(made, dict) else None
    return Subject(loaded, _files(loaded), origin=origin if isinstance(origin, dict) else None)


def open_reference(request: EvaluateConfig, subject: Subject, reporter: Reporter) -> Subject | None:
    """Returns the model to compare with: the one asked for, or else the dense model where it can be had.

    It computes in the number format of the subject, so that the two differ in nothing else.

    Raises:
        ConfigError: it has another vocabulary.
    """
    if request.reference == "none":
        return None
    computed = str(subject.loaded.model.dtype).removeprefix("torch.")
    request = request.model_copy(update={"dtype": computed})
    if request.reference is not None:
        found = open_subject(request.reference, request, reporter)
    else:
        dense = subject.dense or (_origin(subject.origin, request, reporter) if subject.origin else None)
        if dense is None:
            return None
        found = Subject(dense, _files(dense))
    theirs, ours = found.loaded.model.config.vocab_size, subject.loaded.model.config.vocab_size
    if theirs != ours:
        raise ConfigError(
            f"{found.loaded.name} has a vocabulary of {theirs}, {subject.loaded.name} one of {ours}: they cannot be "
            "compared. Give the dense model as --reference, or none."
        )
    return found


def _from_masks(name: str, folder: Path, dense: str | None, request: EvaluateConfig, reporter: Reporter) -> Subject:
    masks = MaskFile.read(folder)
    revision = masks.recipe.get("revision") if dense is None else request.revision
    base = load_asked(dense or masks.base_name, request, reporter, revision)
    pruned = masks.apply(base)
    model = pruned.build()
    model.config.use_cache = False
    identity = hashlib.sha256(base.sha256.encode() + bytes(pruned.selection.keep.tolist())).hexdigest()
    loaded = LoadedModel(name, model, base.tokenizer, identity, base.path)
    return Subject(loaded, [folder / HEADER, folder / TENSORS], dense=base)


def _origin(origin: dict[str, Any], request: EvaluateConfig, reporter: Reporter) -> LoadedModel | None:
    name = str(origin.get("name"))
    try:
        found = load_asked(name, request, reporter, None)
    except ModelError as error:
        reporter.status(f"nothing to compare with: {error} Give the dense model as --reference.")
        return None
    if found.sha256 != origin.get("sha256"):
        reporter.warn(f"{name} here has other weights than those that were pruned; give the right ones as --reference")
        return None
    return found


def load_asked(
    name: str, request: EvaluateConfig | Export | Recover | Sample, reporter: Reporter, revision: str | None
) -> LoadedModel:
    """Loads a model as a request says: number format, device, trust.

    What an exporter of another format wrote, given as its folder or its file, is read by that exporter.

    Raises:
        ModelError: it cannot be found or read.
        PluginError: the exporter is not installed.
    """
    exported = _exported(name)
    if exported:
        exporter: Exporter = load_registry().build("exporter", exported.format)
        return exporter.load(
            exported.folder, dtype=request.dtype, device=request.device, trust_remote_code=request.trust_remote_code
        )
    return load_model(
        name,
        dtype=request.dtype,
        device=request.device,
        revision=revision,
        trust_remote_code=request.trust_remote_code,
        status=reporter.status,
    )


class _Exported(NamedTuple):
    folder: Path
    format: str


def _exported(name: str) -> _Exported | None:
    """Returns where a model lies that polyprune wrote in another format than safetensors, and that format."""
    path = Path(os.path.expanduser(name))
    folder = path.parent if path.is_file() else path
    if name in catalogue() or (folder / WEIGHTS).is_file() or (folder / WEIGHTS_INDEX).is_file():
        return None
    written = (json_object(folder / RECORD) or {}).get("report")
    found = written.get("format") if isinstance(written, dict) and "files" in written else None
    return _Exported(folder, found) if isinstance(found, str) else None


def _files(loaded: LoadedModel) -> list[Path]:
    folder = loaded.path
    if folder is None:
        return []
    if _exported(str(folder)) is None:
        return weight_files(folder)
    return [path for path in folder.iterdir() if path.suffix in HELD_IN]
