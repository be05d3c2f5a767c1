"""What cells cost before they have run: tokens from the request, time and memory as measured before, or assumed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from polyprune_core.config.cell import AUTO, Cell, Metric, Search
from polyprune_core.config.grid import cells
from polyprune_core.config.settings import Comparison
from polyprune_core.evaluation.text import load_text
from polyprune_core.plugins.contracts import extra_passes, trained_tokens, windows_run
from polyprune_core.plugins.registry import Registry
from polyprune_core.results.row import Row
from polyprune_core.runs.pooling import SCOPE_NAMES, most_candidates

# Operations a second where nothing has been measured; a token takes two a parameter. Other work bounds small models.
ASSUMED_OPERATIONS = {"cpu": 3e11, "cuda": 3e13}
ASSUMED_AT_MOST = 10_000
CHARACTERS_PER_TOKEN = 4
# Forward passes that a pass with back-propagation is worth.
BACKWARD = 3
# Peak memory over the weights: a search holds buffers beside the model, back-propagation activations and gradients.
PEAK, PEAK_BACKWARD = 1.5, 9.0
# Positions whose activations, and whose logits, exist at a time.
ACTIVE, WITH_LOGITS = 2048, 256
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Estimate:
    """A number, or None where there is no telling, and where it comes from."""

    value: float | None
    source: str


def tokens_of(cell: Cell, config: Comparison, registry: Registry, units: Mapping[str, int]) -> int:
    """Returns the forward tokens that the cell's row will count: of the metric, its pooling, the search, the repair.

    `units`: how many each granularity has, where it is known. Poolings that select the same units are run
    once, so that one that is chosen may cost less; so may a search that stops early.
    """
    parts = (_pooling_tokens, _search_tokens, _repair_tokens)
    return _metric_tokens(cell, config, registry, units) + sum(tokens(cell, config, registry) for tokens in parts)


def work_of(
    config: Comparison,
    registry: Registry,
    evaluation: int,
    finished: Collection[Cell] = (),
    units: Mapping[str, int] = MappingProxyType({}),
) -> dict[Cell, int]:
    """Returns what each cell has still to do, in forward tokens.

    That is its metric (once for all cells that share the scores), its pooling or search (once for all that only a
    repair tells apart), its repair, and `evaluation` tokens. `units`: how many each granularity has, where it is known.
    """
    scored, searched = set(), set()
    work: dict[Cell, int] = dict.fromkeys(cells(config), 0)
    for cell in work:
        if cell in finished:
            continue
        shared = (cell.granularity, cell.initializer, cell.seed)
        passes = BACKWARD if "gradients" in _needs(cell, registry) else 1
        metric = 0 if shared in scored else passes * _metric_tokens(cell, config, registry, units)
        scored.add(shared)
        unrepaired = cell.without("repair")
        chosen = _pooling_tokens(cell, config, registry) + _search_tokens(cell, config, registry)
        search = 0 if unrepaired in searched else chosen
        searched.add(unrepaired)
        trained = (BACKWARD - 1) * _trained_tokens(cell, config, registry)
        work[cell] = metric + search + _repair_tokens(cell, config, registry) + trained + evaluation
    return work


def evaluation_tokens(config: Comparison) -> int | None:
    """Returns the tokens of evaluating a model on all its texts at all lengths, guessed from characters.

    None where a text is distant and there is no limit.
    """
    limit = config.limit * config.eval_seq_len[0] if config.limit else None
    each = [_tokens(name, limit) for name in config.evaluation]
    known = [tokens for tokens in each if tokens is not None]
    return sum(known) * len(config.eval_seq_len) if len(known) == len(each) else None


def _tokens(text: str, limit: int | None) -> int | None:
    if Path(text).is_file():
        length = Path(text).stat().st_size
    elif text.startswith("builtin:"):
        length = len(load_text(text, "evaluation").content)
    else:
        return limit
    tokens = length // CHARACTERS_PER_TOKEN
    return min(limit, tokens) if limit else tokens


def speed(config: Comparison, parameters: int | None, measured: Sequence[Row]) -> Estimate:
    """Returns tokens a second: those of finished searches, or what is assumed of a model of that size."""
    searches = [row for row in measured if row.cell.kind == "search" and row.search_seconds]
    if searches:
        tokens, seconds = (sum(getattr(row, name) for row in searches) for name in ("forward_tokens", "search_seconds"))
        return Estimate(tokens / seconds, f"measured in {len(searches)} finished search{'es' * (len(searches) > 1)}")
    if parameters is None:
        return Estimate(None, "the model's size is not known yet")
    operations = ASSUMED_OPERATIONS["cuda" if config.device.startswith("cuda") else "cpu"]
    return Estimate(
        min(operations / (2 * parameters), ASSUMED_AT_MOST),
        f"assumed: {operations:.0e} operations a second, at most {ASSUMED_AT_MOST:,} tokens".replace("e+", "e"),
    )


def memory(
    config: Comparison,
    registry: Registry,
    parameters: int | None,
    measured: Sequence[Row],
    sizes: Mapping[str, Any],
) -> Estimate:
    """Returns the peak in MB (10^6 bytes): that of finished cells of every metric, or what is assumed.

    `sizes` is the model's configuration with the number format of its weights, where it is at hand: activations and
    logits come from it.
    """
    peaks = {row.cell.initializer: row.peak_memory_mb for row in measured if row.peak_memory_mb}
    wanted = {cell.initializer for cell in cells(config)}
    if wanted <= set(peaks):
        return Estimate(max(row.peak_memory_mb or 0.0 for row in measured), "measured in finished cells")
    if parameters is None:
        return Estimate(None, "the model's size is not known yet")
    backward = any("gradients" in _needs(cell, registry) | _repair_needs(cell, registry) for cell in cells(config))
    times, dtype = PEAK_BACKWARD if backward else PEAK, config.dtype
    if dtype == "auto":
        own = sizes.get("dtype", "bfloat16")
        dtype = own if own in BYTES else "float32"
    hidden, inner, words = (int(sizes.get(name, 0)) for name in ("hidden_size", "intermediate_size", "vocab_size"))
    kept = (evaluation_tokens(config) or 0) * hidden
    numbers = parameters * times + kept + ACTIVE * (8 * hidden + 3 * inner) + 3 * WITH_LOGITS * words
    return Estimate(numbers * BYTES[dtype] / 1e6, f"assumed: {times:g} times the weights in {dtype}, and activations")


def _needs(cell: Cell, registry: Registry) -> frozenset[str]:
    return registry.get("initializer", cell.initializer).provider.needs if cell.initializer else frozenset()


def _metric_tokens(cell: Cell, config: Comparison, registry: Registry, units: Mapping[str, int]) -> int:
    if not cell.initializer or not _needs(cell, registry):
        return 0
    times = len(SCOPE_NAMES) if cell.scope == AUTO and "budget" in _needs(cell, registry) else 1
    metric = registry.build("initializer", cell.initializer)
    count = units.get(cell.granularity or "", 0)
    return times * windows_run(metric, count, config.calibration_samples, config.held_back) * config.seq_len


def _pooling_tokens(cell: Cell, config: Comparison, registry: Registry) -> int:
    if not isinstance(cell, Metric):
        return 0
    return most_candidates(cell, registry.comparable(cell.initializer)) * config.held_back * config.seq_len


def _repair_tokens(cell: Cell, config: Comparison, registry: Registry) -> int:
    if not _repair_needs(cell, registry):
        return 0
    return config.repair_samples * config.seq_len + 2 * _trained_tokens(cell, config, registry)


def _trained_tokens(cell: Cell, config: Comparison, registry: Registry) -> int:
    asked = trained_tokens(registry.build("repair", cell.repair)) if cell.repair else 0
    return min(asked, config.repair_samples * config.seq_len)


def _repair_needs(cell: Cell, registry: Registry) -> frozenset[str]:
    return registry.get("repair", cell.repair).provider.needs if cell.repair else frozenset()


def _search_tokens(cell: Cell, config: Comparison, registry: Registry) -> int:
    if not isinstance(cell, Search):
        return 0
    extra = extra_passes(registry.build("estimator", cell.estimator))
    steps = config.steps_for(extra)
    passes = steps * (config.masks_per_step + extra + config.dense_passes)
    return passes * config.batch_size * config.seq_len + config.look_tokens(steps)
