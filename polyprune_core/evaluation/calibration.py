"""What a metric may look at: calibration text, input statistics, gradients, and randomness of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyprune_core.errors import PluginError
from polyprune_core.evaluation.losses import Metered, Objective, last_hidden, token_losses
from polyprune_core.models.layout import ModelLayout
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.scaling import scale
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import Scores

Measure = Callable[[str, nn.Module, MaskSpace, "Calibration"], Scores]


@dataclass
class InputStatistics:
    """Moments over calibration tokens of one reader's input features: `mean` and `mean_square` are (F,) float32."""

    mean: Tensor
    mean_square: Tensor


class Calibration(Metered):
    """Calibration for one model; every statistic is computed once and its cost counted.

    Attributes:
        windows: (N, T) int64 token windows.
        rng: the metric's own generator.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: ModelLayout,
        windows: Tensor,
        rng: torch.Generator,
        batch_size: int = 8,
        progress: Callable[[int, int], None] = lambda done, total: None,
        compactor: Compactor | None = None,
        budget: SelectionRule | None = None,
        measure: Measure | None = None,
    ) -> None:
        """Takes what it holds and what it draws on.

        `compactor`: the one in use around this, where there is one; `losses` otherwise starts its own each time.
        `budget`: for a metric that needs it. `measure`: makes the scores of another metric, for `score`.
        """
        super().__init__()
        self.model, self.layout, self.windows, self.rng = model, layout, windows, rng
        self.batch_size, self.progress = batch_size, progress
        self._compactor, self._budget, self._measure = compactor, budget, measure
        self._inputs: dict[str, InputStatistics] = {}
        self._gradients: dict[bool, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    @property
    def budget(self) -> SelectionRule:
        """What the scores are selected under.

        Raises:
            PluginError: the metric does not say that it needs "budget", so its scores serve every sparsity.
        """
        if self._budget is None:
            raise PluginError('scores made for one budget have to say so: put "budget" into the needs of the Provider.')
        return self._budget

    def score(self, spec: str, space: MaskSpace, how: str = "raw") -> Tensor:
        """Returns (U,) scores of another metric on this calibration, which bears their cost.

        `spec` is NAME or NAME:option=value…; `how` they are made comparable across layers: `raw`, `zscore` or
        `per-parameter`.

        Raises:
            PluginError: there is no such metric or option, or this calibration was made without other metrics.
        """
        if self._measure is None:
            raise PluginError(f"this calibration was made without other metrics, so {spec!r} cannot be measured.")
        scores = self._measure(spec, self.model, space, self)
        return scale(scores.values, space, "raw" if scores.comparable else how)

    def rand(self, *size: int) -> Tensor:
        """Returns uniform draws in [0, 1) from `rng`."""
        return torch.rand(size, generator=self.rng)

    def batches(self, batch_size: int | None = None) -> Iterator[Tensor]:
        """Yields (B, T) batches of `windows` on the model's device, and reports progress."""
        chunks = self.windows.split(batch_size or self.batch_size)
        for done, ids in enumerate(chunks, 1):
            yield ids.to(self.model.device)
            self.count(ids.numel())
            self.progress(done, len(chunks))

    def losses(self, space: MaskSpace, masks: Tensor, ids: Tensor) -> Tensor:
        """Returns (K,) float32 mean next-token loss in nats of the model without the units that `masks` removes.

        `masks` is (K, U) bool over the units of `space`, True where a unit stays; `ids` (B, T) tokens, for instance
        some of `windows`. Every mask counts as one forward pass.
        """
        with ExitStack() as stack:
            compactor = self._compactor or stack.enter_context(Compactor(self.model, self.layout))
            values = Objective(compactor, space).losses(masks, ids).clone()  # no inference tensor: it can be written
        self.count(ids.numel(), passes=len(masks))
        return values

    def input_statistics(self) -> dict[str, InputStatistics]:
        """Returns, by axis name, the moments of what the axis' reader takes in, in the unpruned model; of views too."""
        readers = {axis.name: axis.reader for axis in self.layout.axis.values() if axis.reader is not None}
        moments = self._moments(list(readers.values()))
        return {name: moments[reader] for name, reader in readers.items()}

    def input_norms(self, modules: Iterable[str]) -> dict[str, Tensor]:
        """Returns, by module name, (F,) float32 root mean squares over tokens of each linear module's input features.

        Wanda's norm of an input feature, divided by the square root of the number of tokens.
        """
        names = list(dict.fromkeys(modules))
        moments = self._moments(names)
        return {name: moments[name].mean_square.sqrt() for name in names}

    def second_moments(self, axes: Iterable[str]) -> dict[str, Tensor]:
        """Returns, by axis name, (F, F) float32: the mean over tokens of x xᵀ, x being what the axis' reader takes in.

        One pass over the text for all that are asked for together; not kept, as F² numbers an axis are many.
        """
        readers = {name: self.layout.axis[name].reader_module for name in axes}
        totals = self._sums(list(readers.values()), lambda x: [x.T @ x])
        # Taken out one by one: sums and means of all axes together would take twice the memory.
        return {name: totals.pop(reader)[0] / self.windows.numel() for name, reader in readers.items()}

    def gradients(self, *, squares: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns gradients of the mean loss by parameter name, for every parameter that an axis cuts, in float32.

        The second dictionary is empty, or with `squares` holds the mean over windows of the squared gradient of each
        window's own mean loss (one backward pass a window instead of one a batch).
        """
        if squares not in self._gradients:
            self._gradients[squares] = self._collect_gradients(squares)
        return self._gradients[squares]

    def _moments(self, modules: list[str]) -> dict[str, InputStatistics]:
        missing = [name for name in modules if name not in self._inputs]
        if missing:
            self._inputs |= self._collect_inputs(missing)
        return self._inputs

    def _collect_inputs(self, modules: list[str]) -> dict[str, InputStatistics]:
        totals = self._sums(modules, lambda x: [x.sum(dim=0), x.square().sum(dim=0)])
        tokens = self.windows.numel()
        return {name: InputStatistics(total / tokens, square / tokens) for name, (total, square) in totals.items()}

    @torch.inference_mode()
    def _sums(self, modules: list[str], measure: Callable[[Tensor], list[Tensor]]) -> dict[str, list[Tensor]]:
        """Returns, by module, what is measured of its inputs (tokens, F) float32, added up over the text."""
        sums: dict[str, list[Tensor]] = {}

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                measured = measure(inputs[0].detach().flatten(0, -2).float())
                totals = sums.setdefault(name, [torch.zeros_like(new) for new in measured])
                for total, new in zip(totals, measured, strict=True):
                    total.add_(new)

            return hook

        with ExitStack() as undo:
            for name in modules:
                undo.enter_context(self.model.get_submodule(name).register_forward_pre_hook(watch(name)))
            for ids in self.batches():
                last_hidden(self.model, ids)
        return sums

    def _collect_gradients(self, squares: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        names = list(dict.fromkeys(cut.parameter for axis in self.layout.axes for cut in axis.cuts))
        parameters = [self.model.get_parameter(name) for name in names]
        mean = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in zip(names, parameters, strict=True)}
        square = {name: torch.zeros_like(total) for name, total in mean.items()} if squares else {}
        wanted = [parameter.requires_grad for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            for ids in self.batches(1 if squares else None):
                share = len(ids) / len(self.windows)
                gradients = torch.autograd.grad(token_losses(self.model, ids).mean(), parameters)
                self.backward_passes += 1
                for name, gradient in zip(names, gradients, strict=True):
                    mean[name].add_(gradient, alpha=share)
                    if squares:
                        square[name].addcmul_(gradient.float(), gradient.float(), value=share)
        finally:
            for parameter, before in zip(parameters, wanted, strict=True):
                parameter.requires_grad_(before)
        return mean, square
