"""The findings of an evaluation, as an object, a table, Markdown, CSV or JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from polyprune_core.errors import counted
from polyprune_core.evaluation.footprint import Footprint
from polyprune_core.evaluation.latency import Load, Spread
from polyprune_core.evaluation.tasks import TaskScores
from polyprune_core.report import accuracy, number
from polyprune_core.report.csvfile import written
from polyprune_core.report.html import table_html
from polyprune_core.report.sheet import Band, Cell, Sheet
from polyprune_core.report.terminal import drawn, shown_width
from polyprune_core.results.row import TextScores
from polyprune_core.utils.numbers import finite
from polyprune_core.version import __version__

SCHEMA = 1
PHASES = ("prefill", "decode")
Fact = tuple[str, list[str]]


@dataclass(frozen=True)
class Timing:
    """The times of one batch in seconds: `prefill` for the whole prompt, `decode` for one further token."""

    prefill: Spread
    decode: Spread


@dataclass(frozen=True)
class Side:
    """The findings about one model.

    Attributes:
        name: the name or folder of the model.
        sha256: a hash of its weights.
        footprint: its sizes.
        evaluations: its perplexity on every text at every length.
        tasks: its scores by the name of a task.
        samples: what it wrote, one text for each prompt.
        latency: its times by batch size.
    """

    name: str
    sha256: str
    footprint: Footprint
    evaluations: tuple[TextScores, ...] = ()
    tasks: TaskScores = field(default_factory=dict)
    samples: tuple[str, ...] = ()
    latency: dict[int, Timing] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Findings:
    """The findings of an evaluation: about a model, and about its reference if there is one. It is shown as a table.

    `environment` has the versions and the machine, `conditions` the settings that hold for both models, such as the
    texts, and `load` how busy the machine was. `model` has the findings about the model, and `reference` those about
    the reference, such as the dense model, or None. `ratios` has the model's times as multiples of the reference's, by
    batch size. The times of both were measured in turn.
    """

    environment: dict[str, Any]
    conditions: dict[str, Any]
    load: Load
    model: Side
    reference: Side | None = None
    ratios: dict[int, Timing] = field(default_factory=dict)

    @property
    def sides(self) -> list[Side]:
        """The findings about the model, then those about the reference, if there is one."""
        return [self.model, *([self.reference] if self.reference else [])]

    def __repr__(self) -> str:
        return "\n".join([drawn(table(self), shown_width()), *below(self)])

    def _repr_html_(self) -> str:
        facts = tuple((Cell(what), *map(Cell, values)) for what, values in self.facts())
        names = tuple(side.name for side in self.sides)
        return table_html(Sheet(" beside ".join(names), ("", *names), (Band("", facts),), " ".join(self.notes())))

    def to_json(self) -> dict[str, Any]:
        """Returns the findings as JSON values; a number that is not finite becomes None."""
        found: dict[str, Any] = finite({"schema": SCHEMA, "polyprune": __version__, **dataclasses.asdict(self)})
        return found

    def facts(self) -> list[Fact]:
        """Returns (what, its value for each side) in table order."""
        return [*self._quality(), *self._tasks(), *self._weight(), *self._times()]

    def notes(self) -> list[str]:
        """Returns the conditions, and a plain line for every time that is not shorter than the reference's."""
        where = self.conditions
        chip, threads = self.environment["gpu"] or self.environment["cpu"], self.environment["threads"]
        lines = [
            f"{where['device']} ({chip}), {where['dtype']}, {threads} thread{'s' * (threads != 1)}, "
            f"torch {self.environment['torch']}."
        ]
        begun = f", each begun with {where['bos']}" if where["bos"] else ""
        cuts = ", ".join(
            f"{counted(windows, 'window')} of {seq_len}" + (f" of {text}" if len(where["texts"]) > 1 else "")
            for text, windows, seq_len in where["windows"]
        )
        lines.append(f"Perplexity on {' and '.join(where['texts'])}: {cuts}{begun}.")
        if self.model.latency:
            load = self.load
            lines.append(
                f"Times: median (quartiles) of {load.turns} turns after {load.warm_up} to warm up; prompts of "
                f"{load.prompt_tokens} tokens, {load.new_tokens} tokens written."
            )
        return lines + [self._verdict(batch, phase) for batch in self.ratios for phase in PHASES]

    def _quality(self) -> Iterator[Fact]:
        several = len(self.conditions["texts"]) > 1
        for found in zip(*(side.evaluations for side in self.sides), strict=True):
            ours = found[0]
            where = f"{ours.text}, {ours.seq_len} tokens" if several else f"{ours.seq_len} tokens"
            yield f"perplexity, {where}", [number(each.perplexity) for each in found]
            if self.reference:
                kl, same = ours.kl_to_dense, ours.top1_agreement
                yield f"nats over the reference, {where}", [number(ours.excess, 4), ""]
                yield f"KL to the reference, {where}", [number(kl, 4), ""]
                yield f"same top-1, {where}", ["" if same is None else f"{same:.1%}", ""]

    def _tasks(self) -> Iterator[Fact]:
        for task, scores in self.model.tasks.items():
            for metric in scores:
                if "stderr" not in metric and metric != "items":
                    yield f"{task}, {metric}", [accuracy(side.tasks[task], metric) for side in self.sides]

    def _weight(self) -> Iterator[Fact]:
        prints = [side.footprint for side in self.sides]
        yield "parameters", [f"{p.parameters:,}" for p in prints]
        yield "MB in memory", [number(p.bytes_in_memory / 1e6) for p in prints]
        yield "MB on disk", [number(None if p.bytes_on_disk is None else p.bytes_on_disk / 1e6) for p in prints]
        yield "KV-cache bytes per token", [f"{p.kv_cache_bytes_per_token:,.0f}" for p in prints]
        tokens = prints[0].pass_tokens
        yield f"MACs, {tokens} tokens", [f"{p.macs / 1e9:.4g} G" for p in prints]
        yield f"peak MB, {tokens} tokens", [number(p.peak_memory_mb, 1) for p in prints]

    def _times(self) -> Iterator[Fact]:
        for batch in self.model.latency:
            for phase, unit in (("prefill", "ms"), ("decode", "ms a token")):
                spreads = [getattr(side.latency[batch], phase) for side in self.sides]
                yield f"{phase}, batch {batch}, {unit}", [_milliseconds(spread) for spread in spreads]

    def _verdict(self, batch: int, phase: str) -> str:
        spread: Spread = getattr(self.ratios[batch], phase)
        low, high = spread.quartiles
        outcome = "faster" if high < 1 else "not faster"
        name = self.reference.name if self.reference else ""
        return (
            f"{phase}, batch {batch}: {outcome}, {spread.median:.2f} ({low:.2f} to {high:.2f}) of the time of {name}."
        )


def _milliseconds(spread: Spread) -> str:
    low, high = spread.quartiles
    return f"{spread.median * 1e3:.4g} ({low * 1e3:.4g} to {high * 1e3:.4g})"


def table(findings: Findings) -> Table:
    """Returns the facts as a rich table, a column a model."""
    grid = Table(header_style="bold", pad_edge=False, box=SIMPLE_HEAD)
    grid.add_column("", no_wrap=True)
    for side in findings.sides:
        grid.add_column(escape(side.name), justify="right", overflow="fold")
    for what, values in findings.facts():
        grid.add_row(escape(what), *map(escape, values))
    return grid


def below(findings: Findings, prompts: tuple[str, ...] = ()) -> list[str]:
    """Returns the lines below a table: the conditions, and what each model wrote after each prompt."""
    lines = findings.notes()
    for index, prompt in enumerate(prompts):
        lines += ["", f"> {prompt}"]
        lines += [f"{side.name}: {side.samples[index]}" for side in findings.sides]
    return lines


def to_markdown(findings: Findings, prompts: tuple[str, ...] = ()) -> str:
    """Returns the facts as a Markdown table, and the lines below it."""
    names = [side.name for side in findings.sides]
    lines = ["| | " + " | ".join(names) + " |", "|---" + "|---:" * len(names) + "|"]
    lines += [f"| {what} | {' | '.join(values)} |" for what, values in findings.facts()]
    return "\n".join([*lines, "", "\n\n".join(below(findings, prompts))]) + "\n"


def to_csv(findings: Findings) -> str:
    """Returns one line a number, by its path in the JSON form, with a column for each model."""
    record = findings.to_json()
    sides = [dict(_flat(record[name])) for name in ("model", "reference") if record[name]]
    head = ["measure", "model", "reference"][: 1 + len(sides)]
    return written([head, *([path, *(side.get(path) for side in sides)] for path in sides[0])])


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        yield from _flat(dict(enumerate(value)), path)
    else:
        yield path, value
