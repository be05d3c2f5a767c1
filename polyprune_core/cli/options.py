"""Options that commands share, and how their text becomes values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import rich_click as click
from click.shell_completion import CompletionItem

from polyprune_core.errors import ConfigError
from polyprune_core.utils.files import user_path

# Options of the commands themselves: what they ask for is in no request.
OF_THE_COMMAND = {name: name for name in ("output", "overwrite", "quiet", "verbose", "dry_run")} | {"format": "form"}


class UserPath(click.Path):
    """A path, with ~ for the home folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Returns the path; a text that can name none is refused."""
        if isinstance(value, Path):
            return value
        try:
            return user_path(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


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
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if not parts:
            self.fail(f"{value!r} lists nothing; write none for an empty list.", param, ctx)
        try:
            return tuple(self.item(part) for part in parts)
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


class Setting(click.Option):
    """An option whose default stands in the settings of its command; its help tells it in brackets.

    `unless`: what happens where it is not given and the settings have no default.
    """

    settings: tuple[str, ...] = ()

    def __init__(self, *names: Any, unless: str = "", **how: Any) -> None:
        self.unless = unless
        super().__init__(*names, **how)

    @property
    def help(self) -> str | None:
        """What the option is for, and its default."""
        default = "" if self.is_flag else self._default()
        return f"{self._told} [{default}]" if default else self._told

    @help.setter
    def help(self, told: str | None) -> None:
        self._told = told

    def _default(self) -> str:
        for name in self.settings:
            module = import_module(f"polyprune_core.config.{'settings' if name in GRIDS else 'requests'}")
            field = getattr(module, name).model_fields.get(self.name)
            value = None if field is None else field.default
            if isinstance(value, tuple) and (value or not self.unless):
                return ",".join(map(str, value)) or "none"
            if value is not None and not isinstance(value, tuple) and not repr(value).startswith("Pydantic"):
                return f"{value:g}" if isinstance(value, float) else str(value)
        return self.unless


GRIDS = ("Comparison", "Pruning")


def _option(*names: str, **how: Any) -> Callable[[Any], Any]:
    return click.option(*names, default=None, cls=Setting, **how)


CUTTING = [
    _option(
        "--text-column",
        metavar="NAME",
        help="Column of a dataset, .jsonl, .json or .parquet text.",
        unless="text",
    ),
    _option(
        "--bos",
        metavar="NAME",
        shell_complete=words("auto", "always", "never"),
        help="Whether every window begins with the tokenizer's BOS; auto: as the tokenizer begins a text.",
    ),
]
LOADING_LOCAL = [
    _option("--trust-remote-code", is_flag=True, help="Run modelling code that a checkpoint brings along."),
    _option(
        "--dtype",
        metavar="NAME",
        shell_complete=words("auto", "float32", "bfloat16", "float16"),
        help="Compute in auto (the model's own), float32, bfloat16 or float16.",
    ),
    _option("--device", metavar="NAME", shell_complete=words("auto", "cpu", "cuda"), help="auto, cpu or cuda[:i]."),
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
        help="Catalogue name, hub id, folder or .gguf file.",
    ),
    *LOADING,
]
TASKS = [
    _option("--tasks", "-t", type=CommaList(), metavar="LIST", help="Tasks of lm-evaluation-harness."),
    _option(
        "--include-path",
        type=UserPath(),
        metavar="DIR",
        help="Folder of task files of your own, where paths in them start.",
    ),
    _option(
        "--num-fewshot", "-f", type=int, metavar="N", help="Solved items before each one.", unless="as the task says"
    ),
    _option("--tasks-limit", type=int, metavar="N", help="Items of each task.", unless="all"),
]
TEXT = [
    _option(
        "--calibration",
        metavar="TEXT",
        shell_complete=complete_text,
        help="builtin:pydocs, a file, a hub dataset, or A+B of these in equal shares.",
    ),
    _option(
        "--evaluation",
        metavar="TEXT",
        shell_complete=complete_text,
        help="As above, but one text, and never the calibration text.",
    ),
    *CUTTING,
    _option("--calibration-samples", type=int, metavar="N", help="Windows that a metric looks at."),
    _option("--seq-len", type=int, metavar="T", help="Tokens of a calibration window."),
    _option("--eval-seq-len", type=int, metavar="T", help="Tokens of an evaluation window."),
    _option("--limit", "-L", type=int, metavar="N", help="Evaluation windows, evenly spaced.", unless="all"),
]
SEARCH = [
    _option("--steps", type=int, metavar="N", help="Search steps."),
    _option("--masks-per-step", type=int, metavar="K", help="Masks a step."),
    _option("--batch-size", "-b", type=int, metavar="B", help="Sequences of a batch."),
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
        shell_complete=plugin_names("policy"),
        help="What a search moves: gaussian, probabilities, … with its options, as gaussian:sigma=0.1.",
    ),
    _option(
        "--optimizer",
        metavar="NAME",
        shell_complete=words("sgd", "adam"),
        help="sgd or adam.",
        unless="the policy's",
    ),
    _option("--learning-rate", type=float, metavar="X", help="Initial step size.", unless="the policy's"),
    _option(
        "--precondition",
        metavar="NAME",
        shell_complete=words("none", "half-natural", "natural"),
        help="none, half-natural or natural.",
    ),
    _option("--warmup", type=float, metavar="F", help="Share of the steps in which the sparsity rises."),
    _option("--averaging", type=float, metavar="F", help="Share of the steps, the last, that are averaged."),
    _option("--min-keep", type=int, metavar="N", help="Units that every layer with several of a kind keeps."),
]
TRACKING = [
    _option(
        "--report-to",
        type=CommaList(),
        metavar="LIST",
        shell_complete=words("none", "tensorboard", "wandb", "trackio"),
        help="Loggers of losses and rows: tensorboard, wandb, trackio; a run a cell.",
    ),
]


def _from_file(context: click.Context, parameter: click.Parameter, config: Path | None) -> Path | None:
    """Makes what a configuration file says of the command's own options their defaults."""
    from polyprune_core.config.settings import read_toml

    if config is not None:
        own, _ = _parted(context.command, read_toml(config))
        if wrong := [name for name, value in own.items() if not isinstance(value, str | bool)]:
            raise ConfigError(f"{config}: {wrong[0]} is {own[wrong[0]]!r}; a text, true or false is needed.")
        context.default_map = {OF_THE_COMMAND[name]: value for name, value in own.items()}
    return config


def _parted(command: click.Command, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what is for the command itself, and what is for its request."""
    there = {parameter.name for parameter in command.params}
    own = {name: value for name, value in values.items() if OF_THE_COMMAND.get(name) in there}
    return own, {name: value for name, value in values.items() if name not in own}


def _remembered(context: click.Context, parameter: click.Parameter, verbose: bool) -> bool:
    """Lets whoever runs the command know it too."""
    if isinstance(context.obj, dict):
        context.obj["verbose"] = verbose
    return verbose


OUTPUT = [
    click.option(
        "--config",
        "-C",
        type=UserPath(),
        is_eager=True,
        callback=_from_file,
        help="TOML file with the same keys; the command line wins.",
    ),
    click.option("--quiet", "-q", is_flag=True, help="Results, warnings and errors only."),
    click.option(
        "--verbose",
        "-v",
        is_flag=True,
        callback=_remembered,
        help="Every step and its time; tracebacks of plugins.",
    ),
]


def options(settings: tuple[str, ...], *groups: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """Returns a decorator that adds the options of the groups in their order.

    `settings` names the classes that their defaults are read from; the first that has one is taken.
    """

    def decorate(command: Any) -> Any:
        for option in reversed([option for group in groups for option in group]):
            command = option(command)
        for option in command.__click_params__:
            if isinstance(option, Setting):
                option.settings = settings
        return command

    return decorate


def given(values: dict[str, Any], config: Path | None) -> dict[str, Any]:
    """Returns what the user asked for: the configuration file, overruled by options on the command line."""
    from polyprune_core.config.settings import read_toml

    asked = {name: value for name, value in values.items() if value is not None}
    if config is None:
        return asked
    context = click.get_current_context()
    assert context is not None
    return _parted(context.command, read_toml(config))[1] | asked
