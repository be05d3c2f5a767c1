"""Options that commands share, and how their text becomes values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import rich_click as click
from click.shell_completion import CompletionItem


class CommaList(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A comma-separated list; "none" is the empty one."""

    name = "LIST"

    def __init__(self, item: Callable[[str], Any] = str) -> None:
        self.item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Returns the items as a tuple."""
        if isinstance(value, tuple):
            return value
        if value.strip().lower() == "none":
            return ()
        try:
            return tuple(self.item(part.strip()) for part in value.split(",") if part.strip())
        except ValueError:
            kind = "whole numbers" if self.item is int else "numbers"
            self.fail(f"{value!r} is not a comma-separated list of {kind}.", param, ctx)


class NameOf(click.Choice):  # type: ignore[type-arg]
    """One of `names()`, which are looked up where they are needed: in a value, a help text or a completion."""

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self.names, self.case_sensitive = names, True

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names."""
        return tuple(self.names())


def completed(names: Callable[[], dict[str, str]]) -> Callable[..., list[CompletionItem]]:
    """Returns click's callback that completes the last of comma-separated, and joined, `names()` (with help texts)."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        cut = max(incomplete.rfind(","), incomplete.rfind("+")) + 1
        before = incomplete[:cut]
        taken = set(before.replace("+", ",").split(","))
        return [
            CompletionItem(before + name, help=text)
            for name, text in names().items()
            if name.startswith(incomplete[cut:]) and name not in taken
        ]

    return complete


def words(*names: str) -> Callable[..., list[CompletionItem]]:
    """Completes fixed names."""
    return completed(lambda: dict.fromkeys(names, ""))


def plugin_names(kind: str | None = None) -> Callable[..., list[CompletionItem]]:
    """Completes the names of installed plugins, of one kind or of all."""

    def names() -> dict[str, str]:
        from polyprune_core.plugins.registry import load_registry

        return {item.provider.name: item.provider.summary for item in load_registry().all(kind)}

    return completed(names)


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the names of the catalogue; where there is none, folders and files."""
    from polyprune_core.models.catalogue import catalogue

    known = [CompletionItem(e.name, help=e.summary) for e in catalogue().values() if e.name.startswith(incomplete)]
    return known or [CompletionItem(incomplete, type="file")]


def complete_text(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the built-in text; for anything else files."""
    builtin = "builtin:pydocs"
    return [CompletionItem(builtin) if builtin.startswith(incomplete) else CompletionItem(incomplete, type="file")]


def _option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    return click.option(*names, default=None, **settings)


LOADING_LOCAL = [
    _option("--trust-remote-code", is_flag=True, help="Run modelling code that a checkpoint brings along."),
    _option(
        "--dtype",
        metavar="NAME",
        shell_complete=words("auto", "float32", "bfloat16", "float16"),
        help="auto, float32, bfloat16 or float16. [auto]",
    ),
    _option(
        "--device", metavar="NAME", shell_complete=words("auto", "cpu", "cuda"), help="auto, cpu or cuda[:i]. [auto]"
    ),
]
LOADING = [
    _option("--revision", metavar="REV", help="Revision of a hub id."),
    *LOADING_LOCAL,
]
MODEL = [
    _option(
        "--model",
        "-m",
        metavar="NAME",
        shell_complete=complete_model,
        help="Catalogue name, hub id, folder or .gguf file. [smollm2-135m]",
    ),
    *LOADING,
]
TASKS = [
    _option("--tasks", "-t", type=CommaList(), metavar="LIST", help="Tasks of lm-evaluation-harness. [none]"),
    _option(
        "--include-path",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder of task files of your own, where paths in them start.",
    ),
    _option("--num-fewshot", "-f", type=int, metavar="N", help="Solved items before each one. [as the task says]"),
    _option("--tasks-limit", type=int, metavar="N", help="Items of each task. [all]"),
]
TEXT = [
    _option(
        "--calibration",
        metavar="TEXT",
        shell_complete=complete_text,
        help="builtin:pydocs, a text file, or a hub dataset. [builtin:pydocs]",
    ),
    _option(
        "--evaluation",
        metavar="TEXT",
        shell_complete=complete_text,
        help="As above; never the calibration text. [builtin:pydocs]",
    ),
    _option("--calibration-samples", type=int, metavar="N", help="Windows that a metric looks at. [64]"),
    _option("--seq-len", type=int, metavar="T", help="Tokens of a calibration window. [128]"),
    _option("--eval-seq-len", type=int, metavar="T", help="Tokens of an evaluation window. [128]"),
    _option("--limit", "-L", type=int, metavar="N", help="Evaluation windows, evenly spaced. [all]"),
]
SEARCH = [
    _option("--steps", type=int, metavar="N", help="Search steps. [50]"),
    _option("--masks-per-step", type=int, metavar="K", help="Masks a step. [8]"),
    _option("--batch-size", "-b", type=int, metavar="B", help="Sequences of a batch. [2]"),
    _option("--forward-tokens", type=int, metavar="N", help="Tokens a search may spend, instead of --steps."),
    _option(
        "--preset",
        metavar="NAME",
        shell_complete=words("default", "paper", "released"),
        help="paper or released: that search's settings; others given win.",
    ),
    _option(
        "--policy",
        metavar="NAME",
        shell_complete=words("probabilities", "logits", "hierarchical", "gaussian"),
        help="What a search moves: probabilities, logits, hierarchical or gaussian. [gaussian]",
    ),
    _option(
        "--optimizer",
        metavar="NAME",
        shell_complete=words("sgd", "adam"),
        help="sgd or adam. [adam for gaussian, else sgd]",
    ),
    _option("--learning-rate", type=float, metavar="X", help="Initial step size. [0.15 for gaussian, else 0.001]"),
    _option(
        "--precondition",
        metavar="NAME",
        shell_complete=words("none", "half-natural", "natural"),
        help="none, half-natural or natural. [half-natural]",
    ),
    _option(
        "--probabilities",
        metavar="NAME",
        shell_complete=words("sigmoid-norm", "min-max-norm", "const", "uniform"),
        help="How a metric starts a policy: sigmoid-norm, min-max-norm, const or uniform.",
    ),
    _option(
        "--start-scale",
        metavar="NAME",
        shell_complete=words("uniform", "raw", "zscore", "per-parameter"),
        help="How a gaussian policy starts: uniform shares, or raw, zscore or per-parameter scores pooled. [zscore]",
    ),
    _option("--sigma", type=float, metavar="X", help="Standard deviation of a gaussian policy's noise. [0.2]"),
    _option("--warmup", type=float, metavar="F", help="Share of the steps in which the sparsity rises. [0]"),
    _option("--averaging", type=float, metavar="F", help="Share of the steps, the last, that are averaged. [0]"),
    _option("--min-keep", type=int, metavar="N", help="Units that every group keeps. [1]"),
]
TRACKING = [
    _option(
        "--report-to",
        type=CommaList(),
        metavar="LIST",
        shell_complete=words("none", "tensorboard", "wandb", "trackio"),
        help="Loggers of losses and rows: tensorboard, wandb, trackio; a run a cell. [none]",
    ),
]
OUTPUT = [
    click.option(
        "--config", "-C", type=click.Path(path_type=Path), help="TOML file with the same keys; the command line wins."
    ),
    click.option("--quiet", "-q", is_flag=True, help="Results, warnings and errors only."),
    click.option("--verbose", "-v", is_flag=True, help="Every step and its time; tracebacks of plugins."),
]


def options(*groups: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Returns a decorator that adds the options of the groups in their order."""

    def decorate(command: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        return command

    return decorate


def given(values: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """Returns what the user asked for: the configuration file, overruled by options on the command line."""
    from polyprune_core.config.settings import read_toml

    asked = {name: value for name, value in values.items() if value is not None}
    return (read_toml(config) if config else {}) | asked
