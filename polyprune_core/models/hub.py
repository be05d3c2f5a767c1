"""A model's files from the Hugging Face hub or its local cache. When the hub cannot be reached, that is found fast."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from polyprune_core.errors import ModelError, brief
from polyprune_core.models.checkpoint import LICENCES, PICKLE_REFUSAL, PICKLES, is_whole
from polyprune_core.models.quiet import Status, heartbeat, megabytes_in, quiet

PROBE_SECONDS = 4.0
FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "README.md", *LICENCES]
CODE = ["*.py"]
SUBFOLDERS = ["*/*"]

T = TypeVar("T")


def snapshot(repo: str, *, revision: str | None, code: bool, prefer_local: bool, status: Status) -> Path:
    """The folder of hub model `repo` ("owner/name") at a branch, tag or commit (None: its main branch).

    The hub is asked first, in at most PROBE_SECONDS, unless HF_HUB_OFFLINE is set, or prefer_local is and the local
    cache holds the whole model; without the hub the local cache serves. `code` also takes the model's Python files.

    Raises:
        ModelError: unknown, private or gated model, no safetensors, or not reachable and not in the local cache.
    """
    from huggingface_hub import constants

    local = _local(repo, revision, code)
    if local and (prefer_local or constants.HF_HUB_OFFLINE):
        status(f"{repo}: the hub's local cache")
        return local
    if constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"HF_HUB_OFFLINE is set, and the hub's local cache {constants.HF_HUB_CACHE} has no {repo}. "
            "Unset it, or give a folder."
        )
    status(f"{repo}: asking the hub")
    try:
        names = _file_names(repo, revision)
    except _Unreachable as error:
        if local:
            status(f"{repo}: the hub's local cache ({error})")
            return local
        raise ModelError(f"{error}, and the hub's local cache {constants.HF_HUB_CACHE} has no {repo}.") from error
    _require_safetensors(repo, names)
    return _download(repo, revision, code, status)


class _Unreachable(Exception):
    """The hub did not answer, or not as a hub does."""


def _file_names(repo: str, revision: str | None) -> list[str]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info: Any = within(PROBE_SECONDS, lambda: HfApi().model_info(repo, revision=revision, timeout=PROBE_SECONDS))
    except GatedRepoError as error:
        raise ModelError(f"{repo} is gated: accept its terms on the hub, then run `hf auth login`.") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model {repo!r} that you may see (for a private one: `hf auth login`)."
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{repo} has no revision {revision!r} on the hub. Give a branch, tag or commit that it has."
        ) from error
    except Exception as error:
        # The hub client passes on its HTTP library's errors, and the library differs between its releases.
        raise _Unreachable(f"the hub cannot be reached ({brief(error, 120)})") from error
    return [sibling.rfilename for sibling in info.siblings or ()]


def _require_safetensors(repo: str, names: list[str]) -> None:
    top = [name for name in names if "/" not in name]
    if any(name.endswith(".safetensors") for name in top):
        return
    if any(name.endswith(PICKLES) for name in top):
        raise ModelError(f"{repo} has no safetensors on the hub: {PICKLE_REFUSAL}.")
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        raise ModelError(f"{repo} holds GGUF files only: `hf download {repo} {ggufs[0]}`, then give that file's path.")
    raise ModelError(f"{repo} has no safetensors weights on the hub. Give a model that has.")


def _download(repo: str, revision: str | None, code: bool, status: Status) -> Path:
    from huggingface_hub import constants, snapshot_download

    store = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    begun = megabytes_in(store)
    status(f"{repo}: downloading from the hub")

    def progress(seconds: float) -> str:
        return f"{repo}: {max(megabytes_in(store) - begun, 0.0):.0f} MB from the hub after {seconds:.0f} s"

    try:
        with quiet(), heartbeat(status, progress):
            return Path(
                snapshot_download(
                    repo,
                    revision=revision,
                    allow_patterns=FILES + CODE * code,
                    ignore_patterns=SUBFOLDERS,
                    etag_timeout=2 * PROBE_SECONDS,
                )
            )
    except Exception as error:
        raise ModelError(
            f"the download of {repo} from the hub failed: {brief(error)}. Try again, or give a folder."
        ) from error


def _local(repo: str, revision: str | None, code: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            folder = snapshot_download(
                repo,
                revision=revision,
                allow_patterns=FILES + CODE * code,
                ignore_patterns=SUBFOLDERS,
                local_files_only=True,
            )
    except (OSError, ValueError):
        return None
    return Path(folder) if is_whole(Path(folder)) else None


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises, or TimeoutError after so many seconds; a call that hangs is left behind.

    A name look-up has no timeout of its own, so a client's timeout alone does not bound the wait.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(call())
        except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
            errors.append(error)

    thread = threading.Thread(target=run, name="polyprune-probe", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    if errors:
        raise errors[0]
    return answers[0]
