"""The one file of code that polyprune writes into a model's folder, and how to tell that a folder holds no other."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from polyprune_core.models.checkpoint import read_config

CODE = Path(str(files("polyprune_core.models").joinpath("modeling_polyprune.py")))
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")


def is_own_code(folder: Path) -> bool:
    """Whether all code that loading `folder` would run is `modeling_polyprune.py`, byte for byte as it is here.

    Raises:
        ModelError: there is no config.json, or it cannot be read.
    """
    scripts = list(folder.rglob("*.py"))
    if len(scripts) != 1 or scripts[0] != folder / CODE.name or scripts[0].read_bytes() != CODE.read_bytes():
        return False
    tokenizer = folder / "tokenizer_config.json"
    named = _classes(read_config(folder)) + _classes(_read(tokenizer))
    return all(name.startswith(f"{CODE.stem}.") for name in named)


def _classes(config: dict[str, Any]) -> list[str]:
    return [str(name) for name in dict(config.get("auto_map") or {}).values()]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
