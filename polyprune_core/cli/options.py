"""Options that commands share, and how their text becomes values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import rich_click as click

from polyprune_core.cli.config_file import read_config
from polyprune_core.cli.params import (
    CommaList,
    Setting,
    TextList,
    UserPath,
    complete_model,
    complete_text,
    plugin_names,
    setting,
    words,
)
from polyprune_core.config.presets import PRESETS

table_or_json = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="What is printed.",
)


CUTTING = [
    setting(
        "--text-column",
        metavar="NAME",
        help="Column of a dataset, .jsonl, .json or .parquet text.",
        unless="text",
    ),
    setting(
        "--bos",
        metavar="NAME",
        shell_complete=words("auto", "always", "never"),
        help="Whether every window begins with the tokenizer's BOS; auto: as the tokenizer begins a text.",
    ),
]
CELL = setting("--cell", metavar="ID", help="Cell of a results store; the beginning of its id will do.")
LOADING_LOCAL = [
    setting("--trust-remote-code", is_flag=True, help="Run modelling code that a checkpoint brings along."),
    setting(
        "--dtype",
        metavar="NAME",
        shell_complete=words("auto", "float32", "bfloat16", "float16"),
        help="Number format to compute in: auto (the model's own), float32, bfloat16 or float16.",
    ),
    setting(
        "--device",
        metavar="NAME",
        shell_complete=words("auto", "cpu", "cuda"),
        help="Where to compute: auto, cpu or cuda[:i].",
    ),
]
LOADING = [
    setting("--revision", metavar="REV", help="Revision of a model that is named by its hub id."),
    *LOADING_LOCAL,
]
MODEL = [
    setting(
        "--model",
        "-m",
        metavar="NAME",
        shell_complete=complete_model,
        help="The model: a catalogue name, a hub id, a folder or a .gguf file.",
    ),
    *LOADING,
]
EVALUATED = [
    setting(
        "--eval-seq-len",
        type=CommaList(int),
        metavar="LIST",
        help="Tokens of an evaluation window. The first length is the headline's.",
    ),
    setting(
        "--limit",
        "-L",
        type=int,
        metavar="N",
        help="Windows to evaluate on, evenly spaced over the text. Further lengths get about as many tokens.",
        unless="all",
    ),
]
EVALUATION = setting(
    "--evaluation",
    type=TextList(),
    metavar="LIST",
    shell_complete=complete_text,
    help="Texts to measure perplexity on: builtin:prose, files or hub datasets. The first is the headline.",
)
TASKS = [
    setting("--tasks", "-t", type=CommaList(), metavar="LIST", help="Tasks of lm-evaluation-harness."),
    setting(
        "--include-path",
        type=UserPath(),
        metavar="DIR",
        help="Folder with task files of your own. Paths in those files start there.",
    ),
    setting(
        "--num-fewshot",
        "-f",
        type=int,
        metavar="N",
        help="Solved examples before each item of a task.",
        unless="as the task says",
    ),
    setting("--tasks-limit", type=int, metavar="N", help="Items of each task, at most.", unless="all"),
]
TEXT = [
    setting(
        "--calibration",
        metavar="TEXT",
        shell_complete=complete_text,
        help="builtin:pydocs, builtin:prose, builtin:mix of the two, a file, a hub dataset, or A+B of these in equal "
        "shares; auto is builtin:mix where a repair fits weights to the text, and builtin:pydocs elsewhere.",
    ),
    EVALUATION,
    *CUTTING,
    setting("--calibration-samples", type=int, metavar="N", help="Calibration windows that a metric looks at."),
    setting("--repair-samples", type=int, metavar="N", help="Calibration windows that a repair looks at, at most."),
    setting("--seq-len", type=int, metavar="T", help="Tokens of a calibration window."),
    *EVALUATED,
]
SEARCH = [
    setting("--steps", type=int, metavar="N", help="Search steps."),
    setting("--masks-per-step", type=int, metavar="K", help="Masks that are drawn in each step of a search."),
    setting("--batch-size", "-b", type=int, metavar="B", help="Windows in a batch."),
    setting(
        "--forward-tokens",
        type=int,
        metavar="N",
        help="Tokens that a search may run through the model. Replaces --steps.",
    ),
    setting(
        "--preset",
        metavar="NAME",
        shell_complete=words(*PRESETS),
        help="Settings taken together: quick for a first look, or a published protocol, as paper. Other options win.",
    ),
    setting(
        "--policy",
        metavar="NAME",
        shell_complete=plugin_names("policy"),
        help="What a search moves, with its options: gaussian, gaussian:sigma=0.1, probabilities or another.",
    ),
    setting(
        "--optimizer",
        metavar="NAME",
        shell_complete=words("sgd", "adam"),
        help="How a search steps: sgd or adam.",
        unless="the policy's",
    ),
    setting("--learning-rate", type=float, metavar="X", help="First step size of a search.", unless="the policy's"),
    setting(
        "--precondition",
        metavar="NAME",
        shell_complete=words("none", "half-natural", "natural"),
        help="Scaling of the gradient: none, half-natural or natural.",
    ),
    setting(
        "--warmup",
        type=float,
        metavar="F",
        help="First share of the steps, in which the sparsity rises from 0 to its goal.",
    ),
    setting(
        "--objective",
        metavar="NAME",
        shell_complete=words("cross-entropy", "kl"),
        help="What a search minimises: cross-entropy of the text, or kl to the dense model.",
    ),
    setting("--averaging", type=float, metavar="F", help="Last share of the steps, whose mean is the result."),
    setting(
        "--protect", metavar="LAYERS", help="Layers that nothing is removed from, as first=4,last=2.", unless="none"
    ),
    setting(
        "--min-keep", type=int, metavar="N", help="Units of each kind that a layer keeps at least, if it has several."
    ),
    setting(
        "--early-stopping",
        type=int,
        metavar="N",
        help="Looks at text held back without a lower loss after which a search ends. It then gives the best so far.",
        unless="none",
    ),
]
PLACEMENT = [
    setting(
        "--device-map",
        metavar="NAME",
        shell_complete=words("none", "auto"),
        help="auto lays layers over all GPUs, then memory, and leaves the rest in their files.",
    ),
    setting(
        "--max-memory",
        metavar="LIST",
        help="Memory for weights, as cpu=8GB,cuda:0=20GB. What does not fit stays in its files.",
        unless="no limit",
    ),
    setting(
        "--threads", type=int, metavar="N", help="Threads of each process.", unless="all it may have, or 1 if faster"
    ),
    setting(
        "--mask-workers", type=int, metavar="N", help="Copies of the model that the masks of a step are spread over."
    ),
]
ENGINE = [
    setting(
        "--executor",
        metavar="NAME",
        shell_complete=words("local", "ray"),
        help="Where workers run: local (this machine) or ray (a cluster).",
    ),
    setting(
        "--address",
        metavar="A",
        shell_complete=words("local", "auto"),
        help="Address of Ray: local, auto or HOST:PORT.",
    ),
    setting("--cpus-per-cell", type=float, metavar="X", help="Processors that a worker of Ray takes."),
    setting(
        "--gpus-per-cell",
        type=float,
        metavar="X",
        help="GPUs that a worker of Ray takes. 0.5 lets two share one.",
        unless="1 where there are any",
    ),
    setting("--memory-per-cell", metavar="SIZE", help="Memory that a worker of Ray takes, as 8GB.", unless="none"),
]
EXECUTION = [
    *PLACEMENT,
    *ENGINE,
    setting("--workers", type=int, metavar="N", help="Processes that run cells.", unless="1; with ray as many as fit"),
    setting(
        "--patience",
        type=float,
        metavar="S",
        help="Seconds after which a worker that says nothing is replaced.",
        unless="no limit",
    ),
]
TRACKING = [
    setting(
        "--report-to",
        type=CommaList(),
        metavar="LIST",
        shell_complete=words("none", "tensorboard", "wandb", "trackio"),
        help="Where losses and rows are logged, one run for each cell: tensorboard, wandb, trackio.",
    ),
]


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
        callback=read_config,
        help="TOML file with these options. The command line wins over it.",
    ),
    click.option("--quiet", "-q", is_flag=True, help="Show results, warnings and errors only."),
    click.option(
        "--verbose",
        "-v",
        is_flag=True,
        callback=_remembered,
        help="Show every step with its time, and tracebacks of plugins.",
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
