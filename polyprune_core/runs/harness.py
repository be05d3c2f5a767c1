"""One model and its texts: everything that cells share, computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.cell import Pruned
from polyprune_core.config.settings import Settings
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.evaluation.keeping import Keeper
from polyprune_core.evaluation.latency import Load, Seconds, ratios, take_turns
from polyprune_core.evaluation.losses import Spread
from polyprune_core.evaluation.moments import MomentStore, Reading
from polyprune_core.evaluation.perplexity import Evaluation, Evaluator, in_turn
from polyprune_core.evaluation.tasks import Tasks, TaskScores
from polyprune_core.evaluation.text import Texts
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import LoadedModel, load_model
from polyprune_core.plugins.contracts import Exporter
from polyprune_core.plugins.registry import Registry
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pricing import PricedBudget, price_budget
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.space import MaskSpace, said_of
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import LegalShapes, Scores, Selection, UnitGroup
from polyprune_core.runs.asked_shapes import held_by, legal_shapes
from polyprune_core.runs.cut_texts import CutTexts
from polyprune_core.runs.pooling import SCOPE_NAMES, in_scopes
from polyprune_core.runs.witness import Witness, take_numbers
from polyprune_core.utils.memory import PeakMemory
from polyprune_core.utils.progress import Reporter, Task
from polyprune_core.utils.rng import generator

# Tokens of a repair's text that go through the model at a time.
REPAIR_TOKENS = 2048
OF_UNITS = ("cost", "group", "kind", "layer", "peers")


class Harness:
    """The model under `compactor`, its texts and its plugins; use inside `with harness.compactor`."""

    def __init__(
        self,
        loaded: LoadedModel,
        texts: Texts,
        settings: Settings,
        registry: Registry,
        reporter: Reporter,
        tasks: Tasks | None = None,
        exporter: Exporter | None = None,
    ) -> None:
        """`exporter`: what is written afterwards; every selection fits its format."""
        self.tasks = tasks
        self.loaded, self.settings, self.registry = loaded, settings, registry
        self.reporter = reporter
        self.layout = describe(loaded.model)
        self._format = held_by(exporter, self.layout) if exporter else LegalShapes()
        self.compactor = Compactor(loaded.model, self.layout)
        self._check_lengths()
        self.texts, self.windows = texts, CutTexts(texts, settings, loaded.tokenizer, loaded.model)
        self.evaluators = [
            Evaluator(each.windows, whole=lambda: self.compactor.applied({}), text=each.text.name)
            for each in self.windows.evaluated
        ]
        self.witness = Witness(
            loaded.model, self.windows.calibration, lambda: self.compactor.applied({}), self._read_weights_again
        )
        self.memory = self._peak_memory()
        self.dense_peak_mb: float | None = None
        self.spaces: dict[str, MaskSpace] = {}
        self.moments = MomentStore()
        self.spread: Spread | None = None
        self._terms: dict[tuple[str, str, BudgetSpec, str | None], PricedBudget] = {}

    @property
    def weights_bytes(self) -> int:
        """Size of the dense model's weights in memory."""
        return sum(p.numel() * p.element_size() for p in self.loaded.model.parameters())

    @property
    def stored_bytes(self) -> int:
        """Size of the dense model's weights in the number format of their files."""
        return self.layout.total_parameters * self.stored_itemsize

    @property
    def itemsize(self) -> int:
        """Bytes of one number that the model computes with."""
        itemsize: int = self.loaded.model.dtype.itemsize
        return itemsize

    @property
    def stored_itemsize(self) -> int:
        """Bytes of one number in the files of the weights."""
        return self.loaded.stored_dtype.itemsize

    def latency(self, space: MaskSpace, selection: Selection) -> float:
        """Returns the smaller model's time for one request as a fraction of the dense model's, measured in turns.

        A request is one prompt of `seq_len` tokens read and some tokens written; the ratio is a median.
        """
        load = Load(prompt_tokens=self.settings.seq_len, beginning=self.windows.cutter.beginning)

        def total(seconds: Seconds) -> float:
            return seconds.prefill + load.new_tokens * seconds.decode

        pruned = PrunedModel(self.loaded, space, selection, Scores(selection.keep.float(), "selection"))
        with self.compactor.paused() as dense:
            ours, theirs = take_turns([pruned.build(), dense], load)
        return ratios(ours, theirs, total).median

    def calibration(
        self, seed: int, purpose: str, task: Task, rule: SelectionRule | None = None, held_back: bool = False
    ) -> Calibration:
        """Returns the sample of a seed, with the generator of a purpose; the rest is for a metric that needs it."""
        return self._calibration(
            self.windows.sample(seed),
            generator(seed, purpose),
            task,
            self.compactor,
            budget=rule,
            held_back=self.windows.held_back(seed) if held_back else None,
        )

    def repair_calibration(
        self, seed: int, spec: str, task: Task, readings: Iterable[Reading], keeper: Keeper | None
    ) -> Calibration:
        """Returns the sample of a seed that a repair looks at; `readings` are passes that its row bears already.

        It is for use without the compactor; `keeper` keeps its state.
        """
        asked = self.settings
        return self._calibration(
            self.windows.repair_sample(seed),
            generator(seed, f"repair {spec}"),
            task,
            None,
            batch_size=max(asked.batch_size, REPAIR_TOKENS // asked.seq_len),
            readings=readings,
            mend=self._mend,
            keeper=keeper,
        )

    def _mend(self, spec: str, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        updates: Mapping[str, Tensor] = self.registry.build("repair", spec).repair(pruned, calibration)
        return updates

    def _calibration(
        self, windows: Tensor, rng: torch.Generator, task: Task, compactor: Compactor | None, **more: Any
    ) -> Calibration:
        return Calibration(
            self.loaded.model,
            self.layout,
            windows,
            rng,
            more.pop("batch_size", self.settings.batch_size),
            progress=lambda done, total: task.update(done / total),
            compactor=compactor,
            measure=self.measure,
            store=self.moments,
            **more,
        )

    def watched(self, *plugins: tuple[str, str]) -> AbstractContextManager[None]:
        """Has the block's plugins (kind, spec) leave the model, and the code that rows are measured with, as they were.

        Raises PluginError at the end of the block, with the model as before, where one of another's did not.
        """
        shared = {"the calibration text": self.windows.calibration}
        shared |= {f"the evaluation text {each.name}": each.windows for each in self.windows.evaluated}
        for name, space in self.spaces.items():
            shared |= {f"the {what} of units of {name}": getattr(space, what) for what in OF_UNITS}
        return self.witness.over(self.registry.outside(*plugins), shared)

    def measure(self, spec: str, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Scores:
        """Returns a metric's scores, as `Registry.measure` does, with the model left as it was."""
        with self.watched(("initializer", spec)):
            return self.registry.measure(spec, model, space, calibration)

    def _read_weights_again(self) -> None:
        asked = self.settings
        self.reporter.status(f"{asked.model}: its weights were changed by a plugin and are read again")
        fresh = load_model(
            asked.model,
            dtype=asked.dtype,
            device=asked.device,
            revision=asked.revision,
            trust_remote_code=asked.trust_remote_code,
        )
        with self.compactor.paused() as model:
            take_numbers(model, fresh.model)

    def terms(self, cell: Pruned) -> PricedBudget:
        """Returns what the cell's budget means for its units and scope, found once.

        Raises:
            BudgetError: it cannot be met.
        """
        key = (cell.granularity, cell.scope, cell.target, cell.shapes)
        if key not in self._terms:
            space = self.space(cell.granularity)
            with self.reporter.task(f"what {cell.asked} means for {space.name}", 1):
                shapes, asked = self.shapes(cell.shapes), self.settings
                self._terms[key] = price_budget(
                    cell.target, space, cell.scope, asked.min_keep, self, asked.protected, shapes
                )
        return self._terms[key]

    def shapes(self, asked: str | None) -> LegalShapes:
        """Returns the widths that layers may have: those asked for that the format to write holds too."""
        return self._format.both(legal_shapes(asked, self.layout, self.registry))

    def in_scopes(self, cell: Pruned) -> list[tuple[Pruned, PricedBudget]]:
        """Returns the cell in each scope that it may take, with what its budget means there.

        Raises:
            BudgetError: it cannot be met in any of them.
        """
        each = {scope: cell.model_copy(update={"scope": scope}) for scope in SCOPE_NAMES}
        priced = in_scopes(cell.scope, lambda scope: self.terms(each[scope]))
        return [(each[scope], terms) for scope, terms in priced.items()]

    @cached_property
    def dense(self) -> tuple[Evaluation, ...]:
        """The dense model on every text at every length, the headline first."""
        self.memory.restart()
        found = in_turn(self.evaluators, Evaluator.dense, self.loaded.model, "dense model", self.reporter)
        self.dense_peak_mb = self.memory.megabytes()
        return found

    def evaluate(self, label: str, pruned: PrunedModel) -> tuple[Evaluation, ...]:
        """Returns what the smaller model scores on every text at every length, the headline first.

        It is run without its removed units and with what a repair changed.
        """
        _ = self.dense
        with self.compactor.applied(pruned.axis_keep(), pruned.updates):
            return in_turn(self.evaluators, Evaluator.compare, self.loaded.model, label, self.reporter)

    def task_scores(self, label: str, pruned: PrunedModel | None = None) -> TaskScores:
        """Returns the scores of a pruned model, built as an exporter would, or of the dense one."""
        if self.tasks is None:
            return {}
        with self.reporter.task(f"tasks of {label}", 1), self.compactor.paused() as dense:
            model = pruned.build() if pruned else dense
            scores = self.tasks.run(model, self.loaded.tokenizer, self.settings.batch_size)
            del model
            # What the libraries of the tasks keep is no memory of the cells to come.
            self.memory = self._peak_memory()
        return scores

    def _peak_memory(self) -> PeakMemory:
        return PeakMemory(self.loaded.model.device, self.weights_bytes)

    def space(self, granularity: str) -> MaskSpace:
        """Returns the units of "head+channel" and the like: the units of all its parts."""
        if granularity not in self.spaces:
            names = granularity.split("+")
            with self.watched(*(("granularity", name) for name in names)):
                space = self.registry.space(granularity, self.layout)
            for told in said_of(space):
                self.reporter.status(told)
            self.spaces[granularity] = space
        return self.spaces[granularity]

    def whole(self) -> PrunedModel:
        """Returns the model with nothing removed."""
        units = [
            UnitGroup(axis.kind, axis.layer, 1, ((axis.name, axis.size),)) for axis in self.layout.axes if not axis.of
        ]
        space = MaskSpace(self.layout, units, "nothing")
        keep = torch.ones(len(space), dtype=torch.bool)
        selection = Selection(keep, space.total_cost, space.total_cost)
        return PrunedModel(self.loaded, space, selection, Scores(keep.float(), "nothing"))

    def _check_lengths(self) -> None:
        asked = self.settings
        longest = getattr(self.loaded.model.config, "max_position_embeddings", None)
        roles = [("calibration", asked.seq_len), *(("evaluation", each) for each in asked.eval_seq_len)]
        for role, seq_len in roles:
            if longest and seq_len > longest:
                self.reporter.status(
                    f"{role} windows of {seq_len} tokens are longer than the {longest} the model was made for"
                )
