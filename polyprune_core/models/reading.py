"""A checked folder read with transformers: the right kind of model, every weight present, nothing invented."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyprune_core.errors import ModelError, PolypruneError, brief, counted
from polyprune_core.models.checkpoint import check_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read_model(folder: Path, dtype: torch.dtype, device: torch.device, trust_remote_code: bool) -> PreTrainedModel:
    """The causal language model in `folder`: eval mode, gradients off, use_cache off, on the device, in the dtype.

    Raises:
        ModelError: broken folder, not a decoder-only language model, code that is not trusted, weights that are
            missing or of another shape.
    """
    from transformers import AutoModelForCausalLM

    reader: Any = AutoModelForCausalLM
    config = check_folder(folder)
    _require_decoder(folder, config, trust_remote_code)
    with _reading(folder, "model", config):
        model, report = reader.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ModelError(
                f"{folder} lacks {counted(len(missing), 'weight')} of {type(model).__name__} "
                f"({missing[0]}), which would be random."
            )
        model = model.to(device)
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    for parameter in loaded.parameters():  # in memory of its own: no longer a view of the file
        parameter.data = parameter.data.clone()
    loaded.config.use_cache = False
    return loaded


def read_tokenizer(folder: Path, model: PreTrainedModel, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, checked to fit the model.

    Tokens added after training, such as a padding token, may lie beyond the embedding: no ordinary text holds them.

    Raises:
        ModelError: it cannot be read, or its own vocabulary is larger than the model's embedding.
    """
    from transformers import AutoTokenizer

    with _reading(folder, "tokenizer", {}):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
        words = int(tokenizer.vocab_size)
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if words > rows:
        raise ModelError(f"{folder}: the tokenizer has {words} tokens, the model only {rows} embeddings.")
    return tokenizer


def _require_decoder(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> None:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind = str(config.get("model_type", ""))
    causal = {key: value if isinstance(value, str) else value[0] for key, value in CAUSAL.items()}
    name = str((config.get("architectures") or [causal.get(kind, "")])[0])
    if config.get("auto_map") and not (kind in CONFIG_MAPPING and hasattr(transformers, name)):
        if not trust_remote_code:
            raise ModelError(
                f"{folder} is a {name or kind} whose code comes with it ({', '.join(sorted(config['auto_map']))}). "
                "Read that code, then pass --trust-remote-code."
            )
        return
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{folder / 'config.json'} gives model_type {kind!r}, which transformers {transformers.__version__} "
            "does not know. A decoder-only language model is needed, such as llama, qwen2 or mistral."
        )
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "quantised") if isinstance(quantised, dict) else "quantised"
        raise ModelError(f"{folder} holds {method} weights; pruning needs the floating-point model.")
    if name not in causal.values() or config.get("is_encoder_decoder"):
        raise ModelError(
            f"{folder} is a {name or kind}, not a decoder-only language model (such as LlamaForCausalLM): it "
            f"{_what_it_does(name, causal.get(kind), config)}."
        )


def _what_it_does(name: str, causal: str | None, config: dict[str, Any]) -> str:
    """Returns what a model does that is no decoder-only language model, as far as its configuration tells."""
    if config.get("is_encoder_decoder"):
        return "is an encoder-decoder"
    if any(part in config for part in ("vision_config", "audio_config", "text_config")):
        return "reads more than text"
    if causal and name == causal.replace("ForCausalLM", "Model"):
        return f"has no output layer; {causal} is the whole model"
    return "does not predict the next token"


@contextmanager
def _reading(folder: Path, what: str, config: dict[str, Any]) -> Iterator[None]:
    """Turns whatever a reader raises on a bad file into one ModelError."""
    try:
        yield
    except PolypruneError:
        raise
    except Exception as error:
        # Not a list of types: tokenizers raises a bare Exception, and a model's own code anything.
        hint = " Its own code may be needed: pass --trust-remote-code." if config.get("auto_map") else ""
        raise ModelError(f"the {what} in {folder} cannot be read: {brief(error)}{hint}") from error
