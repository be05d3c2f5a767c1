"""What a process of its own runs to ask a runtime about a model; nothing of polyprune can be imported in it.

    python -I runtime_driver.py JOB ANSWER

JOB and ANSWER are JSON files. The program that JOB names is described in `polyprune_core.plugins.contracts.Runtime`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any


def main(job_file: str, answer_file: str) -> None:
    """Opens the model and writes down what it answers, or what went wrong."""
    for package in ("polyprune_core", "polyprune_plugins"):
        sys.modules[package] = None  # type: ignore[assignment]
    job: dict[str, Any] = json.loads(Path(job_file).read_text("utf-8"))
    try:
        answer = ask(job)
    except Exception as error:  # noqa: BLE001 - a runtime may raise anything, and its own words say what it is
        answer = {"error": f"{type(error).__name__}: {error}"}
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")


def ask(job: dict[str, Any]) -> dict[str, Any]:
    """Returns what the program of a job answers."""
    spec = importlib.util.spec_from_file_location("runtime_program", job["program"])
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = program
    spec.loader.exec_module(program)
    model = program.open_model(job["folder"], job["threads"])
    answer = {
        "version": model.version,
        "tokens": model.tokenize(job["text"]),
        "log_probs": [model.log_probs(window, job["top"]) for window in job["windows"]],
    }
    runs = [model.generate(job["prompt"], job["new"]) for _ in range(job["repeats"])]
    answer["generated"] = runs[0][0]
    answer["reading"] = min(run[1] for run in runs)
    answer["writing"] = min(run[2] for run in runs)
    return answer


if __name__ == "__main__":
    main(*sys.argv[1:])
