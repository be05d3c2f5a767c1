"""Trains a pruned model on a stated number of tokens, and the dense model in the same way, and writes the result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyprune_core.config.cell import NO_REPAIR, Dense
from polyprune_core.config.requests import Recover
from polyprune_core.errors import ConfigError, ModelError
from polyprune_core.evaluation.perplexity import Evaluation, Evaluator, in_turn, measured
from polyprune_core.evaluation.text import load_texts
from polyprune_core.models.checkpoint import read_config
from polyprune_core.models.sources import LoadedModel
from polyprune_core.plugins.contracts import check_exportable
from polyprune_core.plugins.registry import Registry
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.runs.added_biases import check_added, check_repair
from polyprune_core.runs.asked_shapes import held_by
from polyprune_core.runs.decision import Cost, Decider
from polyprune_core.runs.decisions import Decided, holds_decision
from polyprune_core.runs.export import Exported, write_out
from polyprune_core.runs.harness import Harness
from polyprune_core.runs.inputs import decision_place, model_place
from polyprune_core.runs.model_sources import load_asked
from polyprune_core.runs.verification import require_runtime
from polyprune_core.search.checkpoint import Checkpoint
from polyprune_core.utils.environment import environment
from polyprune_core.utils.outputs import new_folder
from polyprune_core.utils.progress import Reporter
from polyprune_core.version import __version__

NAMES = ("dense", "dense, trained", "pruned", "pruned, trained")
# What decides a training, beside its models and texts.
TRAINING = ("seed", "seq_len", "dtype", "device", "bos", "tokens")


@dataclass(frozen=True)
class TrainedRow:
    """The measurements of one model before or after training.

    Attributes:
        name: one of NAMES, such as "pruned, trained".
        parameters: the number of its parameters.
        evaluations: its perplexity on every text at every length.
        forward_tokens: how many tokens went forward through models for its training; 0 before training.
        seconds: how long its training took.
    """

    name: str
    parameters: int
    evaluations: tuple[Evaluation, ...]
    forward_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Recovered:
    """The pruned and the dense model before and after the same training.

    Attributes:
        repair: the repair that trained, with its options.
        seed: the seed of the order of the windows.
        calibration: the name of the text that was trained on.
        rows: the dense model, the dense model after training, the pruned model, and the pruned model after training.
        exported: what was written to disk, or None.
    """

    repair: str
    seed: int
    calibration: str
    rows: tuple[TrainedRow, ...]
    exported: Exported | None = None

    def lines(self) -> list[str]:
        """Returns the measurements as lines for people to read."""
        trained = {row.name: row for row in self.rows}
        places = [f"{each.text} at {each.seq_len}" for each in self.rows[0].evaluations]
        lines = [f"{self.repair}, seed {self.seed}, on {self.calibration}"]
        lines.append(f"  {'':<16} {'parameters':>13} {'tokens':>9} {'seconds':>8}  perplexity on " + ", ".join(places))
        for row in self.rows:
            figures = "  ".join(f"{each.perplexity:10.3f}" for each in row.evaluations)
            lines.append(
                f"  {row.name:<16} {row.parameters:>13,} {row.forward_tokens:>9,} {row.seconds:>8.0f}  {figures}"
            )
        for index, place in enumerate(places):
            before, after = (
                trained[ours].evaluations[index].nll - trained[theirs].evaluations[index].nll
                for ours, theirs in (("pruned", "dense"), ("pruned, trained", "dense, trained"))
            )
            lines.append(f"  {place}: {before:.3f} nats over the dense model before, {after:.3f} with both trained")
        return lines + (["", *self.exported.lines()] if self.exported else [])

    def __repr__(self) -> str:
        return "\n".join(self.lines())

    def to_json(self) -> dict[str, Any]:
        """Returns the measurements as JSON values, without any path of this machine."""
        rows = [
            {
                "name": row.name,
                "parameters": row.parameters,
                "forward_tokens": row.forward_tokens,
                "seconds": row.seconds,
                "evaluations": [
                    {
                        name: getattr(each, name)
                        for name in ("text", "seq_len", "perplexity", "nll", "tokens", "kl_to_dense", "top1_agreement")
                    }
                    for each in row.evaluations
                ],
            }
            for row in self.rows
        ]
        record = {"repair": self.repair, "seed": self.seed, "calibration": self.calibration, "rows": rows}
        written = self.exported.to_json() if self.exported else {}
        return {"polyprune": __version__, "environment": environment(), **written, "recovery": record}


def recover(
    request: Recover, registry: Registry, output: Path | None, overwrite: bool, reporter: Reporter
) -> Recovered:
    """Trains what `request.source` is and the dense model beside it; what is written to `output` appears whole.

    Training goes on where it was interrupted, from a hidden folder beside `output`.

    Raises:
        PolypruneError: there is no such model, its dense one cannot be had, or the folder cannot be written.
    """
    exporter, trainer = registry.build("exporter", request.exporter), registry.get("repair", request.trainer)
    if "gradients" not in trainer.provider.needs:
        raise ConfigError(f"--repair {request.repair} trains nothing; give recover, recover:lora, distil or another.")
    registry.build("repair", request.trainer)
    if request.verify:
        require_runtime(exporter)
    if output is None:
        return _Run(request, registry, reporter).recovered()[0]
    read = {"what is trained,": decision_place(request.place)} | model_place(request.model or "", None)
    with new_folder(output, overwrite, read) as place:
        run = _Run(request, registry, reporter)
        check_exportable(exporter, run.pruned.base)
        run.check_biases()
        beside = place.path.with_name(f".{place.path.name}.recovery")
        found, pruned = run.recovered(beside)
        exported = write_out(pruned, exporter, place, request.verify, request.trust_remote_code, found.to_json())
        shutil.rmtree(beside, ignore_errors=True)
    return dataclasses.replace(found, exported=exported)


class _Run:
    """The pruned model and the dense one, each with the texts cut for it; one harness serves both where it can."""

    def __init__(self, request: Recover, registry: Registry, reporter: Reporter) -> None:
        self.request, self.registry, self.reporter = request, registry, reporter
        if holds_decision(request.place):
            source = Decided.at(request.place, request.cell, request.model)
            base = load_asked(source.name, request, reporter, source.revision)
            self.dense = self.of_pruned = self._harness(base)
            self.pruned = source.apply(base, registry)
            return
        loaded = load_asked(request.source, request, reporter, None)
        dense = self._dense_of(loaded)
        self.dense, self.of_pruned = self._harness(dense), self._harness(loaded)
        self.pruned = self.of_pruned.whole()

    def check_biases(self) -> None:
        """Refuses an exporter that cannot hold the biases of the pruned model, before or after its training."""
        asked, registry = self.request, self.registry
        if registry.build("repair", asked.trainer).start in (None, NO_REPAIR):
            check_added(asked.exporter, self.pruned, registry)
        held = held_by(registry.build("exporter", asked.exporter), self.pruned.layout)
        check_repair(asked.trainer, f"--exporter {asked.exporter}", held, self.pruned, registry)

    def recovered(self, folder: Path | None = None) -> tuple[Recovered, PrunedModel]:
        """Returns all four rows and the pruned model after its training, whose state is kept in `folder`."""
        spec, seed = self.request.trainer, self.request.seed
        if folder:
            folder.mkdir(exist_ok=True)
        before = self._row(NAMES[2], self.pruned)
        warned = set[str]()
        ours, theirs = Decider(self.of_pruned, warned), Decider(self.dense, warned)
        with self.reporter.task("training the pruned model", 1):
            pruned, cost = ours.repaired(self.pruned, spec, seed, (), self._kept(folder, "pruned"))
        after = self._row(NAMES[3], pruned, cost)
        with self.reporter.task("training the dense model alike", 1):
            trained = theirs.trained(Dense(repair=spec, seed=seed), self._kept(folder, "dense"))
        pruned = dataclasses.replace(pruned, measured=measured(after.evaluations, self.dense.dense))
        earlier, begun = self.pruned.recipe.get("repair", NO_REPAIR), self.registry.build("repair", spec).start
        if earlier != NO_REPAIR and begun in (None, NO_REPAIR):
            pruned = dataclasses.replace(pruned, recipe=pruned.recipe | {"repaired_before": earlier})
        rows = (
            TrainedRow(NAMES[0], self.dense.layout.total_parameters, self.dense.dense),
            self._row(NAMES[1], trained.pruned, trained.cost),
            before,
            after,
        )
        return Recovered(spec, seed, self.dense.texts.calibration.name, rows), pruned

    def _row(self, name: str, pruned: PrunedModel, cost: Cost | None = None) -> TrainedRow:
        _ = self.dense.dense
        found = in_turn(self.dense.evaluators, Evaluator.compare, pruned.build(), name, self.reporter)
        return TrainedRow(name, pruned.parameters, found, *((cost.forward_tokens, cost.seconds) if cost else ()))

    def _dense_of(self, pruned: LoadedModel) -> LoadedModel:
        """Returns the dense model that a folder was made from, in as many steps as it took."""
        if self.request.model is not None:
            dense = load_asked(self.request.model, self.request, self.reporter, None)
        else:
            dense, origin = pruned, _origin(pruned)
            while origin is not None:
                told, dense = origin, load_asked(origin["name"], self.request, self.reporter, None)
                if dense.sha256 != told.get("sha256"):
                    raise ModelError(
                        f"{dense.name} here has other weights than those that {pruned.name} was made from; give these "
                        "as --model."
                    )
                origin = _origin(dense)
            if dense is pruned:
                raise ConfigError(
                    f"{pruned.name} does not say which dense model it was made from, which is trained beside it; give "
                    "it as --model."
                )
        theirs, ours = dense.model.config.vocab_size, pruned.model.config.vocab_size
        if theirs != ours:
            raise ModelError(
                f"{dense.name} has a vocabulary of {theirs}, {pruned.name} one of {ours}; give its dense model as "
                "--model."
            )
        return dense

    def _harness(self, loaded: LoadedModel) -> Harness:
        config = self.request.as_comparison(loaded.name)
        texts = load_texts(config.calibration, config.evaluation, config.text_column)
        return Harness(loaded, texts, config, self.registry, self.reporter)

    def _kept(self, folder: Path | None, which: str) -> Checkpoint | None:
        """Returns where one training is kept; its name changes with all that decides the training."""
        if folder is None:
            return None
        asked = self.request.model_dump(mode="json", include=set(TRAINING)) | {"repair": self.request.trainer}
        decided = hashlib.sha256(bytes(self.pruned.selection.keep.tolist()))
        for name, value in sorted(self.pruned.updates.items()):
            decided.update(name.encode() + value.float().cpu().numpy().tobytes())
        models = [self.pruned.base.sha256, self.dense.loaded.sha256, decided.hexdigest(), self.dense.texts.hashes]
        key = hashlib.sha256(json.dumps([which, asked, models], sort_keys=True).encode()).hexdigest()[:16]
        return Checkpoint(folder / f"{key}.safetensors", key, self.reporter)


def _origin(loaded: LoadedModel) -> dict[str, Any] | None:
    """Returns name and sha256 of the model that a folder was made from, as it says itself; None of a dense one."""
    made = read_config(loaded.path).get("polyprune") if loaded.path else None
    origin = made.get("base") if isinstance(made, dict) else None
    return origin if isinstance(origin, dict) and isinstance(origin.get("name"), str) else None
