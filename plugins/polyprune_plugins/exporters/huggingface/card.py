"""The model card of a folder that transformers loads: what it is, how it scores, how to run it, how it was made."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyprune_core import PrunedModel

CARD = """\
---
{front}
---

# {name}, pruned

{base} with {removed} of its prunable parameters removed, as units of {granularity}.
It has {parameters}, in {layers}. The weights stay under {licence}.

```python
DIR = "path/to/this/folder"
{reload}```

{code}
{measured}## How to run it

| with | |
|---|---|
{elsewhere}

## How it was made

{command}| polyprune {version} | |
|---|---|
{table}
"""
CODE = """\
`modeling_polyprune.py` gives each layer its own widths; read it before you trust it. Where polyprune is
installed, `polyprune_core.register_models()` takes its place, and nothing has to be trusted.
"""
MEASURED = """\
## What it scores

| perplexity on | window | predicted tokens | this model | dense |
|---|---|---|---|---|
{rows}

"""
COMMAND = """\
```bash
{command} --exporter huggingface --output pruned
```

"""
ORDINARY = {
    "transformers": "the lines above",
    "lm-eval": "`lm_eval --model hf --model_args pretrained=FOLDER --tasks arc_easy`",
    "PEFT": "`LoraConfig()`, as for the base model",
    "vLLM": "`vllm serve FOLDER`, as the base model; not run by whoever wrote polyprune",
    "llama.cpp": "its converter reads the folder as it reads the base model",
}
WITH_CODE = {
    "transformers": "the lines above; the tokenizer alone with `trust_remote_code=False`",
    "lm-eval": "`lm_eval --model hf --model_args pretrained=FOLDER,trust_remote_code=True --tasks arc_easy`",
    "PEFT": '`LoraConfig(target_modules="all-linear")`',
    "vLLM": "`vllm serve FOLDER --model-impl transformers --trust-remote-code`; read in its source, not run",
    "llama.cpp": "written anew from the masks: `polyprune export MASKS --exporter gguf --output FOLDER`",
    "ONNX Runtime": "likewise: `--exporter onnx`",
    "programs that run no code of a folder": "likewise: `--exporter huggingface:pad=widest`, an ordinary checkpoint",
}


def card(pruned: PrunedModel, origin: Mapping[str, Any], parameters: int, reload: str) -> str:
    """Returns README.md of a folder; `reload` loads it, and names trust where the folder has code."""
    base, sparsity = origin["base"], origin["sparsity"]
    licence, hub = pruned.base.licence, pruned.base.hub_id
    front = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [polyprune, pruning]"]
    front += [f"license: {licence.lower()}"] if licence else []
    front += [f"base_model: {hub}"] if hub else []
    asked = "" if sparsity["asked"] is None else f" ({sparsity['asked']:.2%} asked for)"
    formats = origin["dtype"]
    rows = {"base model": base["name"], "base weights": base["source"], "base weights, sha256": base["sha256"]}
    rows |= {"weights": f"{formats['written']} (of the base: {formats['stored']})", "decided in": formats["computed"]}
    recipe = dict(origin["recipe"])
    command, has_code = _line(recipe.pop("command", None) or ""), "trust_remote_code" in reload
    ways = WITH_CODE if has_code else ORDINARY
    rows |= recipe
    rows = {name: value for name, value in rows.items() if value is not None}
    table = "\n".join(f"| {_text(name)} | {_text(value)} |" for name, value in rows.items())
    return CARD.format(
        front="\n".join(front),
        name=_text(base["name"].rsplit("/", 1)[-1]),
        base=_text(base["name"]),
        removed=f"{sparsity['achieved']:.2%}{asked}",
        granularity=_text(origin["granularity"]),
        parameters=f"{parameters:,} of the {origin['parameters']['dense']:,} parameters",
        layers=f"{len(origin['layers'])} of {pruned.layout.num_layers} layers",
        licence=f"the licence of the base model ({licence})" if licence else "the licence of the base model",
        reload=reload,
        code=CODE if has_code else "",
        measured=_measured(pruned.measured),
        elsewhere="\n".join(f"| {runtime} | {how} |" for runtime, how in ways.items()),
        command=COMMAND.format(command=command) if command.startswith("polyprune ") else "",
        version=origin["version"],
        table=table,
    )


def _measured(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f"| {_text(each['text'])} | {each['window']} | {each['tokens']:,} | {each['perplexity']:.4f} "
        f"| {each['dense']:.4f} |"
        for each in found
    ]
    return MEASURED.format(rows="\n".join(rows)) if rows else ""


def _text(value: Any) -> str:
    """Text that Markdown shows as it is, on one line: no tag, no link, no new cell."""
    return html.escape(re.sub(r"([\\|`*\[\]!])", r"\\\1", _line(value)), quote=False)


def _line(value: Any) -> str:
    """Text on one line, without signs that control a terminal."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in str(value)).split())
