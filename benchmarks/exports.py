"""Every exporter's model of three decisions in its own runtime, beside the dense model there.

python benchmarks/exports.py wiki.valid.raw --masks exported-masks --output benchmarks/results/exports.json

SmolLM2-135M without 30 % of what can be pruned: heads and channels of their own number in each layer; whole attentions
and MLPs; and the first again, refitted by least squares with biases. The decisions are kept as masks under --masks.
They were made for free widths, so formats of blocks fill them up with zeros and say so. An export that is refused, or
that its runtime cannot run, is a row with the reason. Rows and decisions that are there stay, and every row is written
as soon as it is known, so that an interrupted run goes on. Speeds mean something on a machine without other work only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from polyprune_core.utils.files import write_json

EXPORTERS = (
    *("huggingface", "huggingface:pad=widest", "vllm", "masked", "gguf:f16", "gguf:q8_0", "gguf:q4_k", "gguf:q6_k"),
    *("onnx", "onnx:cache=false", "onnx:type=int8"),
)
SHARED = ("--model", "smollm2-135m", "--dtype", "bfloat16", "--limit", "8", "--exporter", "masks", "--quiet")
POOLED = ("--sparsity", "0.3", "--scope", "global", "--scale", "zscore", "--calibration-samples", "16")
# By name: the decision that it is made from, if any, and what is asked for.
DECISIONS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "widths": (None, (*POOLED, "--initializer", "thinet")),
    "sublayers": (None, (*POOLED, "--initializer", "magnitude", "--granularity", "attention+mlp")),
    "biases": ("widths", ("--repair", "least-squares", "--repair-samples", "64")),
}


@click.command()
@click.argument("calibration", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--masks", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of decisions.")
@click.option("--decision", "decisions", multiple=True, default=tuple(DECISIONS), show_default=True)
@click.option("--exporter", "exporters", multiple=True, default=EXPORTERS, show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSON file to write.")
def main(calibration: Path, masks: Path, decisions: tuple[str, ...], exporters: tuple[str, ...], output: Path) -> None:
    """Export each decision with each exporter, and verify it; decisions are calibrated on CALIBRATION."""
    rows: list[dict[str, Any]] = json.loads(output.read_text("utf-8"))["rows"] if output.is_file() else []
    for decision in decisions:
        _decide(decision, masks, calibration)
        recipe = json.loads((masks / decision / "masks.json").read_text("utf-8"))
        for exporter in exporters:
            if any((row["decision"], row["exporter"]) == (decision, exporter) for row in rows):
                continue
            about = {"decision": decision, "granularity": recipe["granularity"], "sparsity": recipe["sparsity"]}
            rows.append(about | {"exporter": exporter, **_verified(masks / decision, exporter)})
            write_json(output, {"rows": rows})


def _decide(name: str, masks: Path, calibration: Path) -> None:
    """Makes the masks of a decision where they are not there."""
    source, asked = DECISIONS[name]
    if (masks / name / "masks.json").is_file():
        return
    made_from = ("--from-masks", str(masks / source)) if source else ()
    if source:
        _decide(source, masks, calibration)
    texts = ("--calibration", str(calibration), "--evaluation", "builtin:pydocs")
    done = _polyprune("prune", *SHARED, *asked, *made_from, *texts, "--output", str(masks / name))
    if done.returncode:
        raise click.ClickException(done.stderr.strip())


def _verified(folder: Path, exporter: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        options = ("--exporter", exporter, "--dtype", "float32", "--verify", "--format", "json", "--quiet")
        done = _polyprune("export", str(folder), *options, "--output", f"{name}/out")
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"status": done.returncode, "refused": said[-1], "load": load}
    found: dict[str, Any] = json.loads(done.stdout)
    kept = ("environment", "verification", "in_runtime")
    told = {"details": found["report"]["details"], "load": load}
    return {"status": 0} | {name: found[name] for name in kept} | told


def _polyprune(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("polyprune")), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main()
