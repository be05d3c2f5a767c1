"""A tokenizer as fields of a GGUF file, where llama.cpp splits text as it does.

llama.cpp knows byte-level BPE by the name of the rule that cuts text before merges (`tokenizer.ggml.pre`), and BPE on
characters that falls back to bytes as `llama`, whose scores are here the order of the merges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

NORMAL, UNKNOWN, CONTROL, DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
# llama.cpp's name of a rule, by the expression that transformers' tokenizer splits with.
RULES = {
    rf"{WORDS}\p{{N}}{{1,3}}{REST}": "llama-bpe",
    rf"{WORDS}\p{{N}}{REST}": "qwen2",
    TEKKEN + REST.replace("[\\r\\n]*", "[\\r\\n/]*"): "tekken",
}
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unknown": "unk_token_id", "padding": "pad_token_id"}


def has_form(tokenizer: Any) -> bool:
    """Whether llama.cpp can split text as a tokenizer does."""
    return _rule(_state(tokenizer)) is not None


def vocabulary(tokenizer: Any, rows: int) -> dict[str, Any]:
    """Returns the fields of a tokenizer with as many tokens as the embedding has rows.

    Where llama.cpp has no form for it they say that there is none, and text has to come as token ids.
    """
    state = _state(tokenizer)
    model = state.get("model") or {}
    rule = _rule(state)
    if rule is None:
        return {"tokenizer.ggml.model": "none"}
    tokens, types = _tokens(state, rows)
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": "llama" if rule == "llama" else "gpt2",
        "tokenizer.ggml.pre": rule,
    }
    if rule == "llama":
        fields["tokenizer.ggml.pre"] = "default"
        fields["tokenizer.ggml.scores"] = _scores(tokens, model["merges"])
        fields["tokenizer.ggml.add_space_prefix"] = _puts_a_space_before(state)
        types = [BYTE if _is_byte(token) else kind for token, kind in zip(tokens, types, strict=True)]
    else:
        fields["tokenizer.ggml.merges"] = [" ".join(_pair(merge)) for merge in model["merges"]]
    fields |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    for name, attribute in SPECIAL.items():
        number = getattr(tokenizer, attribute, None)
        if number is not None and number < rows:
            fields[f"tokenizer.ggml.{name}_token_id"] = number
    ids = tokenizer("a")["input_ids"]
    fields["tokenizer.ggml.add_bos_token"] = bool(ids) and ids[0] == tokenizer.bos_token_id
    fields["tokenizer.ggml.add_eos_token"] = bool(ids) and ids[-1] == tokenizer.eos_token_id
    if isinstance(tokenizer.chat_template, str):
        fields["tokenizer.chat_template"] = tokenizer.chat_template
    return fields


def _state(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    return state


def _rule(state: Mapping[str, Any]) -> str | None:
    """Returns llama.cpp's name of how text is split, `llama` for BPE on characters, None where it has no such rule."""
    model = state.get("model") or {}
    if model.get("type") != "BPE" or model.get("dropout") or model.get("continuing_subword_prefix"):
        return None
    if model.get("byte_fallback"):
        return "llama"
    if (state.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        return None
    steps = _steps(state.get("pre_tokenizer"))
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    *before, last = steps
    if last["use_regex"]:
        digits = [step["type"] == "Digits" and step["individual_digits"] for step in before]
        return {(): "gpt-2", (True,): "smollm"}.get(tuple(digits))
    if len(before) == 1 and before[0]["type"] == "Split":
        return RULES.get(str(before[0]["pattern"].get("Regex")))
    return None


def _steps(splitter: dict[str, Any] | None) -> list[dict[str, Any]]:
    if splitter is None:
        return []
    return list(splitter["pretokenizers"]) if splitter["type"] == "Sequence" else [splitter]


def _tokens(state: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    tokens, types = [f"[PAD{index}]" for index in range(rows)], [UNUSED] * rows
    for token, index in state["model"]["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for entry in state["added_tokens"]:
        if entry["id"] < rows:
            kind = CONTROL if entry["special"] else DEFINED
            kind = UNKNOWN if entry["content"] == state["model"].get("unk_token") else kind
            tokens[entry["id"]], types[entry["id"]] = entry["content"], kind
    return tokens, types


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    order: dict[str, int] = {}
    for place, merge in enumerate(merges):
        order.setdefault("".join(_pair(merge)), place)
    return [float(-order.get(token, len(merges))) for token in tokens]


def _pair(merge: Any) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _puts_a_space_before(state: Mapping[str, Any]) -> bool:
    told = json.dumps([state.get("normalizer"), state.get("pre_tokenizer")])
    return '"Prepend"' in told or '"first"' in told or '"always"' in told


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
