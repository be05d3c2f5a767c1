"""Every exporter's model of one decision in its own runtime, beside the dense model there.

polyprune prune -m smollm2-135m --dtype bfloat16 --initializer thinet --sparsity 0.3 --exporter masks --output masks \\
    --calibration wiki.valid.raw --calibration-samples 16 --evaluation wiki.test.raw --limit 8
python benchmarks/exports.py masks --output benchmarks/results/exports.json

An export that is refused or that its runtime cannot run is a row with the reason. Rows already in the output stay, so
that an interrupted run goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

EXPORTERS = ("huggingface", "huggingface:pad=widest", "masked", "gguf:type=f16", "gguf:type=q8_0", "onnx")


@click.command()
@click.argument("masks", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--exporter", "exporters", multiple=True, default=EXPORTERS, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(masks: tuple[Path, ...], exporters: tuple[str, ...], output: Path) -> None:
    """Export each folder of MASKS with each exporter, and verify it."""
    rows: list[dict[str, Any]] = json.loads(output.read_text("utf-8"))["rows"] if output.is_file() else []
    for folder in masks:
        recipe = json.loads((folder / "masks.json").read_text("utf-8"))
        for exporter in exporters:
            if any((row["decision"], row["exporter"]) == (folder.name, exporter) for row in rows):
                continue
            about = {"decision": folder.name, "granularity": recipe["granularity"], "sparsity": recipe["sparsity"]}
            rows.append(about | {"exporter": exporter, **_verified(folder, exporter)})
            output.write_text(json.dumps({"rows": rows}, indent=1) + "\n", "utf-8")


def _verified(folder: Path, exporter: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        options = ["--exporter", exporter, "--dtype", "float32", "--verify", "--format", "json", "--quiet"]
        command = [str(Path(sys.executable).with_name("polyprune")), "export", str(folder), *options]
        command += ["--output", f"{name}/out"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"status": done.returncode, "refused": said[-1]}
    found: dict[str, Any] = json.loads(done.stdout)
    kept = ("environment", "verification", "in_runtime")
    return {"status": 0} | {name: found[name] for name in kept} | {"details": found["report"]["details"]}


if __name__ == "__main__":
    main()
