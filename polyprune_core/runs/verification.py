"""An exported model in the runtime it was written for, beside the same weights in torch and the dense model there."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyprune_core.errors import ConfigError, ModelError, VerificationError, plain
from polyprune_core.evaluation import runtime_driver
from polyprune_core.models.sources import LoadedModel
from polyprune_core.plugins.contracts import Exporter, Runtime
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.types import Selection

TOP, PROMPT, NEW, REPEATS = 20, 64, 32, 3
# The largest of as many normal errors differ by less than half, and a pruned model answers up to twice as strongly.
TIMES_DENSE = 3.0


@dataclass(frozen=True)
class InRuntime:
    """One model in a runtime. Speeds are in tokens a second, of reading a prompt and of writing one token at a time."""

    parameters: int
    bytes: int
    perplexity: float
    reading: float
    writing: float


@dataclass(frozen=True)
class RuntimeCheck:
    """What a runtime computes of a model, and of the dense one.

    `largest_difference` is of log-probabilities in nats, over the next token and the likeliest ones at each of
    `positions`, against the same weights in float32 by transformers; `perplexity` is what those give. `tokenizer` says
    whether the runtime cuts the text into the same tokens, None where it reads ids alone.
    """

    runtime: str
    version: str
    positions: int
    largest_difference: float
    tolerance: float
    top1_agreement: float
    tokenizer: bool | None
    perplexity: float
    pruned: InRuntime
    dense: InRuntime
    sample: str

    def lines(self) -> list[str]:
        """Returns it for people."""
        same = {True: "same tokens", False: "OTHER TOKENS for the same text", None: "token ids alone, no text"}
        lines = [
            f"  {self.runtime:<11} {self.version}: largest difference of a log-probability "
            f"{self.largest_difference:.3g} (up to {self.tolerance:g} is rounding), same top-1 "
            f"{self.top1_agreement:.1%} of {self.positions} positions; {same[self.tokenizer]}",
            f"              {'':>10} {'perplexity':>10} {'in torch':>9} {'MB':>8} {'parameters':>12} "
            f"{'reads/s':>8} {'writes/s':>8}",
        ]
        for name, model, torch_says in (("this", self.pruned, f"{self.perplexity:.3f}"), ("dense", self.dense, "")):
            lines.append(
                f"              {name:>10} {model.perplexity:>10.3f} {torch_says:>9} {model.bytes / 1e6:>8.1f} "
                f"{model.parameters:>12,} {model.reading:>8.1f} {model.writing:>8.1f}"
            )
        return [*lines, f"  it writes   {self.sample!r}"]


def require_runtime(exporter: Exporter) -> None:
    """Checks that what a runtime needs is installed.

    Raises:
        ConfigError: it is not; the message says what to install.
    """
    runtime = runtime_of(exporter)
    missing = [need for module, need in (runtime.requires.items() if runtime else ()) if find_spec(module) is None]
    if runtime and missing:
        wanted = " ".join(f"'{need}'" for need in dict.fromkeys(missing))
        raise ConfigError(f"--verify runs the model in {runtime.name}, which is not installed: pip install {wanted}.")


def runtime_of(exporter: Exporter) -> Runtime | None:
    """Returns where what an exporter writes runs, if it says so."""
    declared = getattr(exporter, "runtime", None)
    runtime: Runtime | None = declared() if declared is not None else None
    return runtime


def check_in_runtime(
    pruned: PrunedModel, exporter: Exporter, folder: Path, reference: LoadedModel, windows: Tensor, text: str
) -> RuntimeCheck | None:
    """Runs what was written to `folder`, and the dense model written alike, where the exporter says that it runs.

    `reference` is the folder read back, in float32; `windows` (N, T) are token ids, of `text` the tokens are compared.

    Raises:
        VerificationError: a log-probability is further off than the runtime's tolerance, or the mean of the text's own
            by more than a tenth of that; or text is cut into other tokens.
        ModelError: the runtime fails.
    """
    runtime = runtime_of(exporter)
    if runtime is None:
        return None
    everything = Selection(
        torch.ones_like(pruned.selection.keep), pruned.selection.total_cost, pruned.selection.total_cost
    )
    with tempfile.TemporaryDirectory(prefix="polyprune-dense-") as name:
        dense_folder, dense = Path(name), dataclasses.replace(pruned, selection=everything, updates={})
        dense_report = exporter.export(dense, dense_folder)
        theirs = ask_runtime(runtime, folder, windows, text)
        its = ask_runtime(runtime, dense_folder, windows, text)
        tolerance = runtime.tolerance
        if tolerance is None:
            again = exporter.load(dense_folder, dtype="float32", device=str(reference.model.device))
            tolerance = TIMES_DENSE * _apart(windows, _log_probs(again.model, windows), its).largest
            del again
    expected = _log_probs(reference.model, windows)
    found = _apart(windows, expected, theirs)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    positions = windows.numel() - len(windows)
    tokens = reference.tokenizer(text)["input_ids"]
    check = RuntimeCheck(
        runtime=runtime.name,
        version=theirs["version"],
        positions=positions,
        largest_difference=found.largest,
        tolerance=tolerance,
        top1_agreement=found.agree / positions,
        tokenizer=None if theirs["tokens"] is None else theirs["tokens"] == tokens,
        perplexity=math.exp(found.ours / positions),
        pruned=_measured(theirs, sum(p.numel() for p in reference.model.parameters()), size),
        dense=_measured(its, dense_report.parameters, dense_report.bytes),
        sample=str(reference.tokenizer.decode(theirs["generated"])),
    )
    drift = abs(found.told - found.ours) / positions
    if not found.largest <= tolerance or not drift <= tolerance / 10 or check.tokenizer is False:
        advice = "report this to the exporter's author."
        if runtime.tolerance is None and check.tokenizer is not False:
            advice = (
                f"it is over {TIMES_DENSE:g} times as far off as the dense model: this is no rounding, or this model "
                "answers to rounding more strongly. Write a format of more bits, or leave --verify out."
            )
        raise VerificationError(
            f"{runtime.name} computes another model than transformers from the same weights. Nothing was written; "
            f"{advice}\n" + "\n".join(check.lines())
        )
    return check


@dataclass
class _Apart:
    """How far a runtime's log-probabilities are from those expected: the largest, equal top-1, and the text's sums."""

    largest: float = 0.0
    agree: int = 0
    told: float = 0.0
    ours: float = 0.0


def _apart(windows: Tensor, expected: list[Tensor], answer: dict[str, Any]) -> _Apart:
    found = _Apart()
    for window, rows, answers in zip(windows, expected, answer["log_probs"], strict=True):
        for wanted, row, (value, likeliest) in zip(window[1:].tolist(), rows, answers, strict=True):
            pairs = [(value, float(row[wanted])), *((each, float(row[int(t)])) for t, each in likeliest.items())]
            found.largest = max(found.largest, *(abs(a - b) for a, b in pairs))
            found.agree += int(max(likeliest, key=likeliest.__getitem__)) == int(row.argmax())
            found.told, found.ours = found.told - value, found.ours - float(row[wanted])
    return found


def _measured(answer: dict[str, Any], parameters: int, size: int) -> InRuntime:
    losses = [-found for window in answer["log_probs"] for found, _ in window]
    return InRuntime(
        parameters,
        size,
        math.exp(sum(losses) / len(losses)),
        reading=PROMPT / answer["reading"],
        writing=(len(answer["generated"]) - 1) / answer["writing"],
    )


def ask_runtime(runtime: Runtime, folder: Path, windows: Tensor, text: str) -> dict[str, Any]:
    """Returns what a runtime answers of the model in a folder: see `runtime_driver.ask`.

    Raises:
        ModelError: it fails.
    """
    job = {
        "program": str(runtime.program),
        "folder": str(folder),
        "threads": torch.get_num_threads(),
        "windows": windows.tolist(),
        "text": text,
        "top": TOP,
        "prompt": windows.flatten()[:PROMPT].tolist(),
        "new": NEW,
        "repeats": REPEATS,
    }
    with tempfile.TemporaryDirectory(prefix="polyprune-runtime-") as name:
        question, answer = Path(name) / "job.json", Path(name) / "answer.json"
        question.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-I", str(Path(runtime_driver.__file__)), str(question), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, cwd=name)
        dead = {"error": f"exit status {done.returncode}, {' '.join(done.stderr.split())[-500:]}"}
        found: dict[str, Any] = json.loads(answer.read_text("utf-8")) if answer.is_file() else dead
    if "error" in found:
        raise ModelError(f"{runtime.name} cannot run what was written: {plain(found['error'])}")
    return found


@torch.inference_mode()
def _log_probs(model: Any, windows: Tensor) -> list[Tensor]:
    """Returns for each window (T - 1, V): the log-probabilities of what comes after each token but the last."""
    where = model.device
    return [
        model(input_ids=window[None].to(where), use_cache=False).logits[0, :-1].float().log_softmax(-1).cpu()
        for window in windows
    ]
