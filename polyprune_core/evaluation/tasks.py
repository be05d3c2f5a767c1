"""Zero-shot and few-shot tasks of lm-evaluation-harness, on a model in memory."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from polyprune_core.errors import ConfigError, DataError, brief, unknown_name
from polyprune_core.models.quiet import quiet

# By task: each metric's mean over items, its standard error over items as METRIC_stderr, and the number of `items`.
TaskScores = dict[str, dict[str, float]]

FEWSHOT_SEED = 1234


def require_harness() -> None:
    """Raises ConfigError unless lm-evaluation-harness is installed."""
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "--tasks needs lm-evaluation-harness, which is not installed: pip install 'polyprune[tasks]'."
        )


class Tasks:
    """Tasks by name, with their data, ready to be run on any number of models."""

    def __init__(
        self,
        names: Sequence[str],
        include_path: Path | None = None,
        num_fewshot: int | None = None,
        limit: int | None = None,
    ) -> None:
        """Finds the tasks in `include_path` (a folder of task files, or one of them), else among those of the harness.

        Raises:
            ConfigError: the harness is not installed, or there is no such task or folder.
            DataError: the data of a task cannot be had.
        """
        require_harness()
        # All of it now: what is imported later would count as memory of the work it is imported in.
        import lm_eval.models.huggingface  # noqa: F401

        self.names, self.num_fewshot, self.limit = tuple(names), num_fewshot, limit
        self.folder = _folder(include_path)
        with _silence():
            self._loaded = _load(self.names, self.folder)
            for task in self._loaded["tasks"].values():
                _set_shots(task, num_fewshot)

    def run(self, model: Any, tokenizer: Any, batch_size: int = 8) -> TaskScores:
        """Returns the scores of one model; its weights and the global random state stay as they are."""
        from lm_eval.evaluator import evaluate

        with _silence():
            found: Any = evaluate(
                _language_model(model, tokenizer, batch_size),
                self._loaded,
                limit=self.limit,
                bootstrap_iters=100,
                log_samples=False,
            )
        return {
            name: _scores(values) | {"items": float(found["n-samples"][name]["effective"])}
            for name, values in found["results"].items()
            if name in found["n-samples"]
        }


def identity(
    names: Sequence[str], include_path: Path | None = None, num_fewshot: int | None = None, limit: int | None = None
) -> dict[str, Any]:
    """Returns what decides the scores besides the model, as JSON values; raises ConfigError as `Tasks` does."""
    require_harness()
    folder = _folder(include_path)
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder else []
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()
    own = {"names": tuple(names), "num_fewshot": num_fewshot, "limit": limit}
    return own | {"lm_eval": version("lm_eval"), "files": digest if files else None}


def _folder(include_path: Path | None) -> Path | None:
    if include_path is None:
        return None
    if not include_path.exists():
        raise ConfigError(f"there is no file or folder {include_path}; give a folder of task files as --include-path.")
    return (include_path if include_path.is_dir() else include_path.parent).resolve()


def _load(names: Sequence[str], folder: Path | None) -> Any:
    """Loads tasks; to index all that come with the harness takes long, so it is done where one of them is asked for."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder) if folder else None, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=str(folder) if folder else None)
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(_unknown(name, manager.all_tasks))
    try:
        with contextlib.chdir(folder) if folder else contextlib.nullcontext():
            return manager.load(list(names))
    except Exception as error:  # datasets, the hub and a task's own code raise whatever they like
        raise DataError(
            f"task {', '.join(names)} cannot be loaded: {brief(error)}. Paths in a task file start at --include-path."
        ) from error


def _unknown(name: str, known: Sequence[str]) -> str:
    told = unknown_name("task", name, known)
    return told if len(known) < 50 else told.split(" Available: ")[0] + " lm-eval ls tasks lists those there are."


def _set_shots(task: Any, num_fewshot: int | None) -> None:
    """As the harness does: a task that is always zero-shot stays so; one that says nothing is zero-shot by default."""
    told = task.get_config("num_fewshot")
    if told is None or (num_fewshot is not None and told != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def _language_model(model: Any, tokenizer: Any, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    class InMemory(HFLM):  # type: ignore[misc]  # the harness is not installed where types are checked
        """Draws no progress bars of its own."""

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm=True)

    return InMemory(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def _scores(values: dict[str, Any]) -> dict[str, float]:
    """Returns {metric: value} of {"metric,filter": value}; a filter other than "none" stays in the name."""
    scores = {}
    for key, value in values.items():
        metric, _, rule = key.partition(",")
        if isinstance(value, int | float) and rule:
            scores[metric if rule == "none" else f"{metric} ({rule})"] = float(value)
    return scores


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hides the harness's log and the progress bars of the harness and of datasets."""
    import datasets  # noqa: F401  # so that `quiet` finds it
    from lm_eval.api import task

    log, bar = logging.getLogger("lm_eval"), task.tqdm
    level = log.level
    log.setLevel(logging.ERROR)
    task.tqdm = lambda items, **_: items
    try:
        with quiet():
            yield
    finally:
        log.setLevel(level)
        task.tqdm = bar
