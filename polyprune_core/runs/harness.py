"""One model on one text: everything that cells share, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.cell import Pruned
from polyprune_core.config.settings import Settings
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.evaluation.latency import Load, Seconds, ratios, take_turns
from polyprune_core.evaluation.moments import MomentStore, Reading
from polyprune_core.evaluation.perplexity import Evaluation, Evaluator
from polyprune_core.evaluation.tasks import Tasks, TaskScores
from polyprune_core.evaluation.text import Text
from polyprune_core.evaluation.windows import Cutter, sample_windows, shared_runs
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import LoadedModel, load_model
from polyprune_core.plugins.registry import Registry
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pricing import PricedBudget, price_budget
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import Scores, Selection
from polyprune_core.runs.witness import Witness, take_numbers
from polyprune_core.utils.memory import PeakMemory
from polyprune_core.utils.progress import Reporter, Task
from polyprune_core.utils.rng import generator

OF_UNITS = ("cost", "group", "kind", "layer", "peers")


class Harness:
    """The model under `compactor`, its texts and its plugins; use inside `with harness.compactor`."""

    def __init__(
        self,
        loaded: LoadedModel,
        texts: dict[str, Text],
        settings: Settings,
        registry: Registry,
        reporter: Reporter,
        tasks: Tasks | None = None,
    ) -> None:
        self.tasks = tasks
        self.loaded, self.settings, self.registry = loaded, settings, registry
        self.reporter = reporter
        self.layout = describe(loaded.model)
        self.compactor = Compactor(loaded.model, self.layout)
        self.texts = texts
        self.cutter = Cutter.of(loaded.tokenizer, loaded.model, settings.bos)
        self.calibration_windows, self.evaluation_windows = self._windows()
        self.overlap = shared_runs(self.evaluation_windows, self.calibration_windows, self.cutter.beginning)
        self.evaluator = Evaluator(self.evaluation_windows, whole=lambda: self.compactor.applied({}))
        self.witness = Witness(
            loaded.model, self.calibration_windows, lambda: self.compactor.applied({}), self._read_weights_again
        )
        self.memory = self._peak_memory()
        self.dense_peak_mb: float | None = None
        self.spaces: dict[str, MaskSpace] = {}
        self.moments = MomentStore()
        self._terms: dict[tuple[str, str, BudgetSpec], PricedBudget] = {}

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
        return self.loaded.model.dtype.itemsize

    @property
    def stored_itemsize(self) -> int:
        """Bytes of one number in the files of the weights."""
        return self.loaded.stored_dtype.itemsize

    def latency(self, space: MaskSpace, selection: Selection) -> float:
        """Returns the smaller model's time for one request as a fraction of the dense model's, measured in turns.

        A request is one prompt of `seq_len` tokens read and some tokens written; the ratio is a median.
        """
        load = Load(prompt_tokens=self.settings.seq_len, beginning=self.cutter.beginning)

        def total(seconds: Seconds) -> float:
            return seconds.prefill + load.new_tokens * seconds.decode

        pruned = PrunedModel(self.loaded, space, selection, Scores(selection.keep.float(), "selection"))
        with self.compactor.paused() as dense:
            ours, theirs = take_turns([pruned.build(), dense], load)
        return ratios(ours, theirs, total).median

    def calibration(self, seed: int, purpose: str, task: Task, rule: SelectionRule | None = None) -> Calibration:
        """Returns the sample of a seed, with the generator of a purpose; `rule` is for a metric that needs it."""
        windows = sample_windows(self.calibration_windows, self.settings.calibration_samples, seed)
        return self._calibration(windows, generator(seed, purpose), task, budget=rule)

    def repair_calibration(self, seed: int, purpose: str, task: Task, readings: Iterable[Reading]) -> Calibration:
        """Returns the sample of a seed that a repair looks at; `readings` are passes that its row bears already."""
        windows = sample_windows(self._repair_pool, self.settings.repair_samples, seed)
        return self._calibration(windows, generator(seed, purpose), task, readings=readings)

    @cached_property
    def _repair_pool(self) -> Tensor:
        asked, pool = self.settings, self.calibration_windows
        if len(pool) >= asked.repair_samples:
            return pool
        return self.cutter.pool(self.texts["calibration"], asked.seq_len, asked.repair_samples)

    def _calibration(self, windows: Tensor, rng: torch.Generator, task: Task, **more: Any) -> Calibration:
        return Calibration(
            self.loaded.model,
            self.layout,
            windows,
            rng,
            self.settings.batch_size,
            progress=lambda done, total: task.update(done / total),
            compactor=self.compactor,
            measure=self.measure,
            store=self.moments,
            **more,
        )

    def watched(self, *plugins: tuple[str, str]) -> AbstractContextManager[None]:
        """Has the block's plugins (kind, spec) leave the model, and the code that rows are measured with, as they were.

        Raises PluginError at the end of the block, with the model as before, where one of another's did not.
        """
        shared = {"the calibration text": self.calibration_windows, "the evaluation text": self.evaluation_windows}
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
        key = (cell.granularity, cell.scope, cell.target)
        if key not in self._terms:
            space = self.space(cell.granularity)
            with self.reporter.task(f"what {cell.asked} means for {space.name}", 1):
                self._terms[key] = price_budget(cell.target, space, cell.scope, self.settings.min_keep, self)
        return self._terms[key]

    @cached_property
    def dense(self) -> Evaluation:
        """The dense model on the evaluation windows."""
        self.memory.restart()
        evaluation = self._evaluate("dense model", self.evaluator.dense)
        self.dense_peak_mb = self.memory.megabytes()
        return evaluation

    def evaluate(self, label: str, pruned: PrunedModel) -> Evaluation:
        """Returns the evaluation of the smaller model, run without its removed units and with what a repair changed."""
        _ = self.dense
        with self.compactor.applied(pruned.axis_keep(), pruned.updates):
            return self._evaluate(label, self.evaluator.compare)

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
                parts = [self.registry.build("granularity", name).groups(self.layout) for name in names]
            self.spaces[granularity] = MaskSpace(self.layout, [g for groups in parts for g in groups], granularity)
        return self.spaces[granularity]

    def _windows(self) -> tuple[Tensor, Tensor]:
        """The windows to calibrate on, and those to evaluate on."""
        asked, texts = self.settings, self.texts
        longest = getattr(self.loaded.model.config, "max_position_embeddings", None)
        for role, seq_len in (("calibration", asked.seq_len), ("evaluation", asked.eval_seq_len)):
            if longest and seq_len > longest:
                self.reporter.status(
                    f"{role} windows of {seq_len} tokens are longer than the {longest} the model was made for"
                )
        return (
            self.cutter.pool(texts["calibration"], asked.seq_len, asked.calibration_samples),
            self.cutter.windows(texts["evaluation"], asked.eval_seq_len, asked.limit),
        )

    def _evaluate(self, label: str, run: Callable[..., Evaluation]) -> Evaluation:
        with self.reporter.task(f"perplexity of {label}", len(self.evaluator.batches)) as task:
            return run(self.loaded.model, lambda done, total: task.update(done))
