"""A pruned folder in vLLM beside transformers: what to paste where somebody says that it works, or does not.

python benchmarks/check_vllm.py FOLDER [--tensor-parallel-size N] [--dtype float32]

It needs vLLM and what comes with it, no polyprune and no network, and runs the code that lies in FOLDER where there is
some; look at modeling_polyprune.py before. It compares the log-probability of every next token of a text, and what is
written after it. Nobody of polyprune has run it: vLLM's source was read, version 0.33.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TEXT = """A pruned model is a smaller one. Some heads and some channels are gone, and what stays is as it was before.
def area(width: float, height: float) -> float:
    return width * height
The quick brown fox jumps over the lazy dog, 1024 times in 3.5 seconds; the dog does not mind at all."""
NEW = 24


def main() -> None:
    """Asks both, each in a process of its own, so that neither holds the other's memory."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--dtype", default="float32", help="that both compute in; differences in 16 bits are rounding")
    parser.add_argument("--as", dest="runtime", choices=("transformers", "vllm"), help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.runtime:
        found = {"transformers": in_transformers, "vllm": in_vllm}[asked.runtime](asked)
        asked.answer.write_text(json.dumps(found), encoding="utf-8")
        return
    answers = {name: answer_of(name, sys.argv[1:]) for name in ("transformers", "vllm")}
    print("\n".join(report(asked, answers)))


def answer_of(runtime: str, arguments: list[str]) -> dict[str, Any]:
    """Returns what a runtime says, or the end of why it says nothing."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "answer.json"
        command = [sys.executable, __file__, *arguments, "--as", runtime, "--answer", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text("utf-8"))
            return found
        return {"error": (done.stderr or done.stdout).strip()[-1500:]}


def has_code(folder: Path) -> bool:
    """Whether the folder brings code along."""
    return "auto_map" in json.loads((folder / "config.json").read_text("utf-8"))


def in_transformers(asked: argparse.Namespace) -> dict[str, Any]:
    """Returns the log-probability of each next token of TEXT, and what is written after it."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trusted, dtype = has_code(asked.folder), getattr(torch, asked.dtype)
    tokenizer = AutoTokenizer.from_pretrained(asked.folder, trust_remote_code=trusted)
    model: Any = AutoModelForCausalLM.from_pretrained(asked.folder, dtype=dtype, trust_remote_code=trusted)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]], device=model.device)
    with torch.no_grad():
        rows = model(ids).logits[0, :-1].float().log_softmax(-1)
        written = model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    told = rows.gather(1, ids[0, 1:, None])[:, 0]
    return {
        "version": transformers.__version__,
        "ids": ids[0].tolist(),
        "log_probs": told.tolist(),
        "written": written[0, ids.shape[1] :].tolist(),
        "text": tokenizer.decode(written[0, ids.shape[1] :]),
    }


def in_vllm(asked: argparse.Namespace) -> dict[str, Any]:
    """Returns the same of vLLM, through its Transformers backend where the folder brings code along."""
    import vllm

    more: dict[str, Any] = {"model_impl": "transformers", "trust_remote_code": True} if has_code(asked.folder) else {}
    engine = vllm.LLM(
        str(asked.folder), dtype=asked.dtype, tensor_parallel_size=asked.tensor_parallel_size, max_model_len=512, **more
    )
    settings = vllm.SamplingParams(temperature=0, max_tokens=NEW, min_tokens=NEW, prompt_logprobs=1, ignore_eos=True)
    (answer,) = engine.generate([TEXT], settings)
    ids = list(answer.prompt_token_ids)
    told = [place[token].logprob for place, token in zip(answer.prompt_logprobs[1:], ids[1:], strict=True)]
    output = answer.outputs[0]
    return {
        "version": vllm.__version__,
        "ids": ids,
        "log_probs": told,
        "written": list(output.token_ids),
        "text": output.text,
    }


def report(asked: argparse.Namespace, answers: dict[str, dict[str, Any]]) -> list[str]:
    """Returns the lines to paste."""
    config = json.loads((asked.folder / "config.json").read_text("utf-8"))
    layers = config.get("per_layer_config") or {}
    lines = ["```", f"folder       {asked.folder.name}: {config['model_type']}, {config['num_hidden_layers']} layers"]
    lines.append(f"widths       {len(layers)} layers of their own, {json.dumps(layers)[:200]}")
    lines.append(f"asked        {asked.dtype}, tensor parallel {asked.tensor_parallel_size}; {platform.platform()}")
    for name, answer in answers.items():
        lines.append(f"{name:<12} {answer.get('version') or 'failed: ' + answer['error']}")
    ours, theirs = answers["transformers"], answers["vllm"]
    if "error" not in ours and "error" not in theirs:
        same = ours["ids"] == theirs["ids"]
        lines.append(f"tokens       {'the same' if same else 'OTHERS for the same text'}: {len(ours['ids'])}")
        if same:
            apart = [abs(a - b) for a, b in zip(ours["log_probs"], theirs["log_probs"], strict=True)]
            means = [math.exp(-sum(each["log_probs"]) / len(apart)) for each in (ours, theirs)]
            lines.append(
                f"difference   of a log-probability: {max(apart):.3g} at most, {sum(apart) / len(apart):.3g} mean"
            )
            lines.append(f"perplexity   {means[0]:.4f} in transformers, {means[1]:.4f} in vLLM")
        alike = sum(a == b for a, b in zip(ours["written"], theirs["written"], strict=False))
        lines.append(f"written      {alike} of {NEW} tokens alike: {theirs['text']!r}")
    return [*lines, "```"]


if __name__ == "__main__":
    main()
