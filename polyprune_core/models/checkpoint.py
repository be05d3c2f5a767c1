"""What can be said of a checkpoint folder from its files alone, before torch or transformers is imported."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyprune_core.errors import ModelError, brief, counted

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
TOKENIZER_PARTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
NO_SETTING = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
ADAPTER = "adapter_config.json"
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")
NUMBER_FORMATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# What is read of a config.json before transformers is.
TYPES: dict[str, type] = {
    "model_type": str,
    "architectures": list,
    "auto_map": dict,
    "is_encoder_decoder": bool,
    "quantization_config": dict,
    "polyprune": dict,
}
PICKLE_REFUSAL = "pickle checkpoints are not read (loading one runs code); convert to safetensors"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as the header of a safetensors file describes it; `kind` is the header's own word, such as "BF16"."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of its entries."""
        return math.prod(self.shape)


def check_folder(folder: Path) -> dict[str, Any]:
    """Returns the folder's config.json after checking that config, weights and tokenizer are there and readable.

    Raises:
        ModelError: the first thing that is missing or broken, with its file's name.
    """
    config = read_config(folder)
    for shard in weight_files(folder):
        _check_shard(shard)
    _check_read_as_it_lies(folder, config)
    if not any((folder / name).is_file() for name in TOKENIZERS) and not list(folder.glob("*.tiktoken")):
        raise ModelError(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model); copy the model's own there.")
    return config


def is_whole(folder: Path) -> bool:
    """Whether check_folder would pass."""
    try:
        check_folder(folder)
    except ModelError:
        return False
    return True


def read_config(folder: Path) -> dict[str, Any]:
    """The object in config.json.

    Raises:
        ModelError: no such file, or it is not a JSON object.
    """
    config = json_object(folder / "config.json")
    if config is None:
        raise ModelError(f"{folder} has no config.json: a model folder is what transformers' save_pretrained writes.")
    wrong = [name for name, kind in TYPES.items() if not isinstance(config.get(name), kind | None)]
    if not wrong and not all(isinstance(name, str) for name in config.get("architectures") or ()):
        wrong = ["architectures"]
    if wrong:
        value = brief(ValueError(config[wrong[0]]), 80)
        raise ModelError(
            f"{folder / 'config.json'}: {wrong[0]} is {value}, which is nothing that transformers writes. "
            "Copy or download the model again."
        )
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights, sorted by name.

    Raises:
        ModelError: there are none, a shard of the index is missing, or there are only pickle files.
    """
    index = json_object(folder / WEIGHTS_INDEX)
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if index is None:
        raise ModelError(_why_no_weights(folder))
    weight_map = index.get("weight_map")
    named = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not all(isinstance(name, str) and name == Path(name).name for name in named):
        raise ModelError(
            f"{folder / WEIGHTS_INDEX}: its weight_map gives more than names of files in this folder. "
            "Copy or download the model again."
        )
    names = sorted(set(named))
    missing = [name for name in names if not os.path.isfile(folder / name)]
    if missing or not names:
        verb = "is" if len(missing) == 1 else "are"
        what = "it lists no files"
        if names:
            what = f"{len(missing)} of {counted(len(names), 'file')} {verb} missing ({missing[0]})"
        raise ModelError(f"{folder / WEIGHTS_INDEX}: {what}. Copy or download the model again.")
    return [folder / name for name in names]


def weights_sha256(folder: Path) -> str:
    """SHA-256 (64 hexadecimal digits) over the contents of the weight files, one after the other in order of name.

    For a model in one file this is what `sha256sum model.safetensors` prints.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        _update(digest, path)
    return digest.hexdigest()


def settings_sha256(folder: Path) -> str:
    """SHA-256 (64 hexadecimal digits) of what decides a model's answers besides its weights.

    That is config.json without what says where it comes from, the tokenizer's files and code that comes along.
    """
    config = {name: value for name, value in read_config(folder).items() if name not in NO_SETTING}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    names = [name for name in (*TOKENIZERS, *TOKENIZER_PARTS) if (folder / name).is_file()]
    for path in sorted([*(folder / name for name in names), *folder.glob("*.tiktoken"), *folder.glob("*.py")]):
        digest.update(f"\n{path.name}\n".encode())
        _update(digest, path)
    return digest.hexdigest()


def count_parameters(folder: Path) -> int:
    """Returns the number of weights in the safetensors files, from their headers."""
    return sum(tensor.size for tensor in stored_tensors(folder))


def stored_tensors(folder: Path) -> Iterator[StoredTensor]:
    """Yields what the safetensors files hold, from their headers."""
    for path in weight_files(folder):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                yield StoredTensor(name, str(entry["dtype"]), tuple(entry["shape"]))


def stored_dtype(folder: Path) -> str:
    """Returns the number format that most weights in the folder are stored in, by torch's name of it.

    Raises:
        ModelError: they are no floating-point numbers that a model can be computed from.
    """
    count: Counter[str] = Counter()
    for tensor in stored_tensors(folder):
        count[tensor.kind] += tensor.size
    kind = count.most_common(1)[0][0]
    if kind not in NUMBER_FORMATS:
        allowed = ", ".join(NUMBER_FORMATS.values())
        raise ModelError(f"{folder} holds weights of type {kind}; pruning needs floating-point ones ({allowed}).")
    return NUMBER_FORMATS[kind]


def file_sha256(path: Path) -> str:
    """SHA-256 (64 hexadecimal digits) of one file."""
    digest = hashlib.sha256()
    _update(digest, path)
    return digest.hexdigest()


def _update(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)


def json_object(path: Path) -> dict[str, Any] | None:
    """Returns what a JSON file of a checkpoint holds, or None where there is none.

    Raises:
        ModelError: it cannot be read or holds no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {brief(error)}. Copy or download the model again.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object, but {type(value).__name__}. Copy or download the model again.")
    return value


def _check_read_as_it_lies(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses what makes transformers read other weights than those that weights_sha256 identifies the model by."""
    other = config.get("transformers_weights")
    if other is not None and other not in (WEIGHTS, WEIGHTS_INDEX):
        raise ModelError(
            f"{folder / 'config.json'} names weights of another file, transformers_weights={other!r}. Rename that file "
            f"to {WEIGHTS} and remove the field."
        )
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"{folder} holds an adapter besides a model ({ADAPTER}). Merge the two (merge_and_unload in peft), or "
            "remove the adapter."
        )


def _check_shard(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as shard:
            if not shard.keys():
                raise ModelError(f"{path} holds no tensors. Copy or download the model again.")
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is broken or cut short ({error}). Copy or download it again.") from error


def _why_no_weights(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    pickles = [name for name in names if name.endswith(PICKLES)]
    others = [name for name in names if name.endswith(".safetensors")]
    ggufs = [name for name in names if name.endswith(".gguf")]
    if others:
        return f"{folder} has {others[0]} but no {WEIGHTS} or {WEIGHTS_INDEX}: not the weights of a whole model."
    if pickles:
        return f"{folder} has only {pickles[0]}: {PICKLE_REFUSAL}."
    if ggufs:
        return f"{folder} has no {WEIGHTS}. To load {ggufs[0]}, give the path of that file."
    return f"{folder} has no weights ({WEIGHTS} or {WEIGHTS_INDEX})."
