"""A checked folder read with transformers: the right kind of model, every weight present, nothing invented."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyprune_core.errors import ModelError, PolypruneError, brief
from polyprune_core.models.checkpoint import check_folder, json_object, read_config, stored_dtype
from polyprune_core.models.families import family_of
from polyprune_core.models.fitting import check_sizes, require_fit
from polyprune_core.models.placing import place
from polyprune_core.models.quiet import quiet
from polyprune_core.models.remote_code import (
    OWN_PREFIX,
    is_own,
    named_code,
    named_kernels,
    own_class,
    register_models,
    stock_classes,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


SENTENCEPIECE = ("tokenizer.model", "spiece.model")
READS_SENTENCEPIECE = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"}
# Such a message is a value or a key alone, and says nothing without its type.
FROM_A_WRONG_VALUE = (ArithmeticError, AttributeError, LookupError, TypeError)
PROTOBUF = b"\n"  # how such a file begins; tiktoken's, of the same name, is text


def read_model(folder: Path, dtype: torch.dtype, device: torch.device, trust_remote_code: bool) -> PreTrainedModel:
    """The causal language model in `folder`: eval mode, gradients off, use_cache off, on the device, in the dtype.

    What polyprune wrote is read with polyprune's own classes, never with code that lies in the folder.

    Raises:
        ModelError: broken folder, not a decoder-only language model, code that is not trusted, weights that are
            missing, of another shape, or without a place.
    """
    from transformers import AutoModelForCausalLM

    reader: Any = AutoModelForCausalLM
    config = check_folder(folder)
    json_object(folder / "generation_config.json")
    own = is_own(config)
    if own:
        register_models()
    with _reading(folder, "model", not own and bool(config.get("auto_map"))):
        if not _runs_code(folder, config, trust_remote_code):
            _require_decoder(folder, config)
            check_sizes(folder, config)
        model, report = reader.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=trust_remote_code and not own,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        require_fit(folder, model, report)
        model = place(model, device, stored_dtype(folder))
    loaded: PreTrainedModel = model.eval().requires_grad_(False)
    loaded.config.use_cache = False
    return loaded


def model_without_weights(folder: Path, trust_remote_code: bool, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model that config.json describes on the meta device, in eval mode; its weights are not read.

    `dtype` is the configuration's own unless told.

    Raises:
        ModelError: it cannot be set up, or no family describes it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    read = read_config(folder)
    if is_own(read):
        register_models()
    else:
        family_of(str(read.get("model_type", "")))
    told: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    try:
        with quiet(), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code, **told)
            if json_object(folder / "generation_config.json") is not None:
                model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # Not a list of types: what a configuration leads to inside transformers is nowhere stated.
        raise ModelError(f"the model in {folder} cannot be set up from its configuration: {brief(error)}") from error
    model.tie_weights()
    model.config.use_cache = False
    found: PreTrainedModel = model.eval().requires_grad_(False)
    return found


def model_of(folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model that the config.json in `folder` describes, with weights that were read from elsewhere.

    `tensors` are its parameters by name. The model is as `read_model` returns it.

    Raises:
        ModelError: a configuration that is not of a known family, or weights that do not fit it.
    """
    from transformers import AutoConfig

    config = read_config(folder)
    own = is_own(config)
    if own:
        register_models()
    with _reading(folder, "model", False):
        settings = AutoConfig.from_pretrained(folder, local_files_only=True)
        causal = stock_classes(str(config["model_type"]).removeprefix(OWN_PREFIX if own else ""))[2]
        made: Any = own_class(causal) if own else causal
        model, report = made.from_pretrained(
            None, config=settings, state_dict=dict(tensors), dtype=dtype, output_loading_info=True
        )
        require_fit(folder, model, report)
    model.config.use_cache = False
    loaded: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return loaded


def read_tokenizer(folder: Path, model: PreTrainedModel, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer in `folder`, checked to fit the model.

    Tokens added after training, such as a padding token, may lie beyond the embedding: no ordinary text holds them.

    Raises:
        ModelError: it cannot be read, or its own vocabulary is larger than the model's embedding.
    """
    from transformers import AutoTokenizer

    _require_sentencepiece(folder)
    json_object(folder / "special_tokens_map.json")
    settings = json_object(folder / "tokenizer_config.json") or {}
    with _reading(folder, "tokenizer", bool(settings.get("auto_map")) and not trust_remote_code):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
        words = int(tokenizer.vocab_size)
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if words > rows:
        raise ModelError(f"{folder}: the tokenizer has {words} tokens, the model only {rows} embeddings.")
    return tokenizer


def _require_sentencepiece(folder: Path) -> None:
    """Refuses a SentencePiece model alone where what reads it is missing: transformers would ask for tiktoken."""
    files = [folder / name for name in SENTENCEPIECE if (folder / name).is_file()]
    if (folder / "tokenizer.json").is_file() or not files or files[0].read_bytes()[:1] != PROTOBUF:
        return
    missing = [package for module, package in READS_SENTENCEPIECE.items() if not _installed(module)]
    if missing:
        raise ModelError(
            f"the tokenizer in {folder} is a SentencePiece model ({files[0].name}), which {' and '.join(missing)} "
            f"{'reads' if len(missing) == 1 else 'read'}: pip install 'polyprune[sentencepiece]'. Or save it once as "
            "tokenizer.json: AutoTokenizer.from_pretrained(…).save_pretrained(…) where they are installed."
        )


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


def _runs_code(folder: Path, config: dict[str, Any], trust_remote_code: bool) -> bool:
    """Whether the model needs code from outside of polyprune and transformers, which is trusted.

    Raises:
        ModelError: it does, and it is not.
    """
    code, kernels = named_code(config), named_kernels(config)
    kind, name = _class_of(config)
    if not kernels and (not code or is_own(config) or _is_known(kind, name)):
        return False
    if not trust_remote_code:
        raise ModelError(
            f"{folder} is a {name or kind} whose code comes with it ({', '.join(code + kernels)}). "
            "Read that code, then pass --trust-remote-code."
        )
    return True


def _is_known(kind: str, name: str) -> bool:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return kind in CONFIG_MAPPING and hasattr(transformers, name)


def _class_of(config: dict[str, Any]) -> tuple[str, str]:
    """Returns the model type, and the name of the class that the folder says it is of."""
    kind = str(config.get("model_type", ""))
    return kind, str((config.get("architectures") or [_causal_classes().get(kind, "")])[0])


def _causal_classes() -> dict[str, str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    return {key: value if isinstance(value, str) else value[0] for key, value in CAUSAL.items()}


def _require_decoder(folder: Path, config: dict[str, Any]) -> None:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "quantised") if isinstance(quantised, dict) else "quantised"
        raise ModelError(f"{folder} holds {method} weights; pruning needs the floating-point model.")
    if is_own(config):
        return
    kind, name = _class_of(config)
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{folder / 'config.json'} gives model_type {kind!r}, which transformers {transformers.__version__} "
            "does not know. A decoder-only language model is needed, such as llama, qwen2 or mistral."
        )
    if name not in _causal_classes().values() or config.get("is_encoder_decoder"):
        raise ModelError(
            f"{folder} is a {name or kind}, not a decoder-only language model (such as LlamaForCausalLM): it "
            f"{_what_it_does(name, _causal_classes().get(kind), config)}."
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
def _reading(folder: Path, what: str, has_code: bool) -> Iterator[None]:
    """Turns whatever a reader raises on a bad file into one ModelError."""
    try:
        yield
    except PolypruneError:
        raise
    except Exception as error:
        # Not a list of types: tokenizers raises a bare Exception, and a model's own code anything.
        hint = " Its own code may be needed: pass --trust-remote-code." if has_code else ""
        kind = f"{type(error).__name__}: " if isinstance(error, FROM_A_WRONG_VALUE) else ""
        raise ModelError(f"the {what} in {folder} cannot be read: {kind}{brief(error)}{hint}") from error
