"""The calibration text on its way through a model: what a pass over it shows, and how many passes were made.

Symbols in shapes: N windows of T tokens, B windows a batch, F input features of a reader, U units, K masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor, nn

from polyprune_core.errors import ModelError
from polyprune_core.evaluation.gradients import collect_gradients
from polyprune_core.evaluation.layerwise import Refit, SideBySide
from polyprune_core.evaluation.losses import Metered, Objective
from polyprune_core.evaluation.moments import AT_MOST, input_sums
from polyprune_core.evaluation.observing import Watch, features_of, observe
from polyprune_core.models.layout import ModelLayout
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.readers import Reader
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor


@dataclass
class InputStatistics:
    """Means over calibration tokens of the input features of one reader.

    Attributes:
        mean: (F,) float32, the mean of each input feature.
        mean_square: (F,) float32, the mean of the square of each input feature.
    """

    mean: Tensor
    mean_square: Tensor


class TextPasses(Metered):
    """Windows of text for one model, and what passes over them show. Every pass is counted.

    Attributes:
        model: the dense model.
        layout: the axes of the model.
        windows: (N, T) int64, windows of tokens.
        batch_size: windows in one forward pass.
        progress: is called after each batch with the number of batches done, and the number of all.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: ModelLayout,
        windows: Tensor,
        batch_size: int,
        progress: Callable[[int, int], None],
        compactor: Compactor | None,
    ) -> None:
        """Keeps its arguments; nothing is run yet. With no active `compactor`, `losses` makes its own."""
        super().__init__()
        self.model, self.layout, self.windows = model, layout, windows
        self.batch_size, self.progress, self._compactor = batch_size, progress, compactor
        self._inputs: dict[str, InputStatistics] = {}
        self._gradients: dict[bool, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    def batches(self, batch_size: int | None = None) -> Iterator[Tensor]:
        """Yields `windows` in batches (B, T) on the model's device, and counts a forward pass for each batch."""
        chunks = self.windows.split(batch_size or self.batch_size)
        for done, ids in enumerate(chunks, 1):
            yield ids.to(self.model.device)
            self.count(ids.numel())
            self.progress(done, len(chunks))

    def observe(self, watched: Mapping[str, Watch]) -> None:
        """Runs the text once through the model as it is now, without gradients.

        Args:
            watched: maps the name of a module to a function. The function is called each time the module has run, with
                the module's positional arguments and its output.
        """
        observe(self.model, watched.items(), self.batches())

    def observe_readers(self, axes: Iterable[str], tell: Callable[[str, Tensor], None]) -> None:
        """Runs the text once through the model, and calls `tell` with the inputs of the readers of these axes.

        For an axis of experts, the input features are the inner features of all experts side by side. Each is
        multiplied by the router's weight for its expert, which is 0 if the expert is not chosen.

        Args:
            axes: names of axes.
            tell: is called for each axis and batch with the name of the axis, and with the inputs (tokens, F) float32
                of its reader.

        Raises:
            ModelError: an axis has no reader.
        """

        def watch(axis: str) -> tuple[str, Watch]:
            name = self.layout.axis[axis].reader_module
            module = self.model.get_submodule(name)
            return name, lambda inputs, _output: tell(axis, features_of(module, inputs))

        observe(self.model, [watch(axis) for axis in axes], self.batches())

    def losses(self, space: MaskSpace, masks: Tensor, ids: Tensor) -> Tensor:
        """Returns the mean next-token loss (K,) float32, in nats, of the model under each of K masks.

        Every mask counts as one forward pass.

        Args:
            space: the units.
            masks: (K, U) bool, True for a unit that stays.
            ids: (B, T) int64 tokens, for instance some of `windows`.
        """
        with ExitStack() as stack:
            compactor = self._compactor or stack.enter_context(Compactor(self.model, self.layout))
            values = Objective(compactor, space).losses(masks, ids).clone()  # no inference tensor: it can be written
        self.count(ids.numel(), passes=len(masks))
        return values

    def refitted(self, pruned: PrunedModel, refit: Refit) -> dict[str, Tensor]:
        """Refits the readers of the pruned model one after another, and returns the new parameters by name.

        The text passes through the dense model and the pruned model side by side, layer by layer. `refit(reader, seen)`
        is called for every reader that is left. At that time, all earlier readers have the values that `refit` returned
        for them. `seen` (`Seen`) holds the reader's inputs in the pruned model, and the outputs that it should have. A
        layer with R readers takes one pass through the dense model and R + 1 through the pruned one.

        The experts of a layer are one reader here. If its products would need more than 16 GB and nothing of it is
        removed, it is left as it is.

        Raises:
            ModelError: a layer of the model does more than add the outputs of its readers to its hidden states, or the
                experts of a layer are cut and their products would need more than 16 GB.
        """
        readers = [reader for reader in pruned.left_readers(routed=True) if _fits(reader)]
        batches = [ids.to(self.model.device) for ids in self.windows.split(self.batch_size)]
        with ExitStack() as stack:
            compactor = self._compactor or stack.enter_context(Compactor(self.model, self.layout))
            models = SideBySide(compactor, self.layout, pruned.axis_keep())
            updates = models.refitted(batches, readers, refit, self.progress)
        self.count(self.windows.numel(), passes=models.passes)
        return updates

    def input_statistics(self) -> dict[str, InputStatistics]:
        """Returns for the name of every axis and view with a reader the statistics of the reader's inputs.

        They are those of the dense model.
        """
        readers = {axis.name: axis.reader_module for axis in self.layout.axis.values() if axis.is_read}
        moments = self._moments(list(readers.values()))
        return {name: moments[reader] for name, reader in readers.items()}

    def input_norms(self, modules: Iterable[str]) -> dict[str, Tensor]:
        """Returns for each named linear module the root mean square (F,) float32 over tokens of its input features.

        It is the norm of Wanda (Sun et al. 2023, arXiv 2306.11695, eq. 1), divided by the square root of the number of
        tokens.
        """
        names = list(dict.fromkeys(modules))
        moments = self._moments(names)
        return {name: moments[name].mean_square.sqrt() for name in names}

    def gradients(self, *, squares: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns two dictionaries from the name of every parameter that an axis cuts to a float32 tensor of its shape.

        The first has the gradient of the mean loss in nats per token. The second is empty, or with `squares` it has the
        mean over windows of the squared gradient of the window's mean loss. `squares` takes one backward pass a window
        instead of one a batch.
        """
        if squares not in self._gradients:
            names = dict.fromkeys(cut.parameter for axis in self.layout.axes for cut in axis.cuts)
            batches = self.batches(1 if squares else None)
            mean, square, passes = collect_gradients(self.model, list(names), batches, len(self.windows), squares)
            self.backward_passes += passes
            self._gradients[squares] = mean, square
        return self._gradients[squares]

    def _moments(self, modules: list[str]) -> dict[str, InputStatistics]:
        missing = [name for name in modules if name not in self._inputs]
        if missing:
            self._inputs |= self._collect_inputs(missing)
        return self._inputs

    def _collect_inputs(self, modules: list[str]) -> dict[str, InputStatistics]:
        sums = input_sums(self.model, modules, lambda x: [x.sum(dim=0), x.square().sum(dim=0)], self.batches())
        return {name: InputStatistics(*(total / tokens for total in totals)) for name, (tokens, totals) in sums.items()}


def _fits(reader: Reader) -> bool:
    """Whether the products of what a reader takes in can be held; raises ModelError if not and it lost some of it."""
    size = 4.0 * int(reader.keep.sum()) ** 2
    if not reader.routed or size <= AT_MOST:
        return True
    if reader.whole:
        return False
    raise ModelError(
        f"the experts of {reader.module} are refitted together, and the products of what they take in would need "
        f"{size / 1e9:,.0f} GB, more than {AT_MOST / 1e9:.0f}; use least-squares, which refits each by itself where "
        "channels of experts are removed, or none."
    )
