"""A model that is larger than the memory it may take, pruned, written and read back; and the same without --max-memory.

    python benchmarks/beyond_memory.py --output benchmarks/results/beyond_memory.json

The limit is on anonymous memory (RssAnon of Linux), which is what cannot be dropped and read again from a file: whoever
passes it is killed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from polyprune_core.models.sources import load_model
from polyprune_core.utils.environment import environment

LIMIT, FOR_WEIGHTS = 950_000_000, "200MB"
ASKED = ["--initializer", "wanda", "-s", "0.5", "--scope", "kind", "--scale", "raw", "--limit", "4", "--threads", "1"]
ASKED += ["--seq-len", "64", "--eval-seq-len", "64", "--calibration-samples", "4", "--dtype", "bfloat16"]


def make_model(folder: Path) -> int:
    """Writes a random Llama of 0.8 billion parameters with the tiny model's tokenizer; returns its bytes."""
    tiny = load_model("tiny")
    config = LlamaConfig(
        vocab_size=tiny.model.config.vocab_size,
        hidden_size=1024,
        intermediate_size=5120,
        num_hidden_layers=40,
        num_attention_heads=16,
        num_key_value_heads=16,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=tiny.model.config.bos_token_id,
        eos_token_id=tiny.model.config.eos_token_id,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="300MB")
    tiny.tokenizer.save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def run_within(limit: int, command: list[str]) -> dict[str, Any]:
    """Runs a command, and kills it where its anonymous memory passes the limit."""
    start, peak, killed = time.perf_counter(), 0, False
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while run.poll() is None:
        try:
            found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{run.pid}/status").read_text())
        except OSError:
            found = None
        peak = max(peak, int(found[1]) * 1024 if found else 0)
        if peak > limit:
            run.kill()
            killed = True
        time.sleep(0.01)
    told = run.stdout.read() if run.stdout else ""
    seconds = time.perf_counter() - start
    return {"peak_bytes": peak, "killed": killed, "status": run.returncode, "seconds": seconds, "told": told[:1500]}


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, out = Path(folder) / "model", Path(folder) / "pruned"
        size = make_model(model)
        command = [sys.executable, "-c", "from polyprune_core.cli import main; main()", "prune", "-m", str(model)]
        within = run_within(LIMIT, [*command, *ASKED, "--max-memory", f"cpu={FOR_WEIGHTS}", "-o", str(out)])
        written = sum(path.stat().st_size for path in out.glob("*.safetensors")) if out.is_dir() else 0
        without = run_within(LIMIT, [*command, *ASKED, "-o", str(Path(folder) / "other")])
    within["told"] = within["told"].replace(folder, "")
    record = {"environment": environment(), "model_bytes": size, "limit_bytes": LIMIT, "max_memory": FOR_WEIGHTS}
    record |= {"with_max_memory": within, "written_bytes": written, "without": without}
    asked.output.write_text(json.dumps(record, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
