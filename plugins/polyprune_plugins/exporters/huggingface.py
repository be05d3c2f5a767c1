"""Hugging Face: a folder that transformers loads, with each layer as small as what was kept of it.

Where all layers that stay are alike it is an ordinary checkpoint of the family. Otherwise config.json says the widths
with transformers' `per_layer_config` and one short file of code comes along, which a reader has to trust.
"""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyprune_core import Exporter, ExportReport, Provider, hookimpl

if TYPE_CHECKING:
    from polyprune_core import LoadedModel, PrunedModel

RELOAD = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(DIR{trust})
tokenizer = AutoTokenizer.from_pretrained(DIR{trust})
"""

CARD = """\
---
{front}
---

# {name}, pruned

{base} with {removed} of its prunable parameters removed, as units of {granularity}.
It has {parameters}, in {layers}. The weights stay under {licence}.

```python
DIR = "path/to/this/folder"
{reload}```

{code}
| made with | polyprune {version} |
|---|---|
{table}
"""


@dataclass(frozen=True)
class HuggingFace:
    """`max_shard_size`: the size at which the weights are split into several files."""

    max_shard_size: str = "5GB"

    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        from polyprune_core.models.quiet import quiet
        from polyprune_core.models.remote_code import CODE
        from polyprune_core.pruning.build import build_compact, kept_layers
        from polyprune_core.pruning.provenance import export_report, provenance

        model = build_compact(pruned)
        origin = provenance(pruned) | {"layers": kept_layers(pruned.layout, pruned.axis_keep())}
        model.config.polyprune = getattr(model.config, "polyprune", {}) | origin
        has_code = hasattr(model.config, "auto_map")
        reload = RELOAD.format(trust=", trust_remote_code=True" if has_code else "")
        with quiet():
            model.save_pretrained(out_dir, max_shard_size=self.max_shard_size)
            pruned.base.tokenizer.save_pretrained(out_dir)
        _forget_how_it_was_loaded(out_dir / "tokenizer_config.json")
        if has_code:
            shutil.copyfile(CODE, out_dir / CODE.name)
        parameters = model.num_parameters()
        (out_dir / "README.md").write_text(_card(pruned, origin, parameters, reload), encoding="utf-8")
        return export_report(out_dir, "huggingface", reload, parameters, trust_remote_code=has_code)

    def load(self, path: Path, *, dtype: str = "auto", device: str = "auto") -> LoadedModel:
        """Loads the folder; code in it is run only if it is the very file that this version writes."""
        from polyprune_core.models.remote_code import is_own_code
        from polyprune_core.models.sources import load_model

        return load_model(str(path), dtype=dtype, device=device, trust_remote_code=is_own_code(path))


def _forget_how_it_was_loaded(path: Path) -> None:
    config = json.loads(path.read_text("utf-8"))
    for key in ("is_local", "local_files_only", "name_or_path"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _card(pruned: PrunedModel, origin: dict[str, Any], parameters: int, reload: str) -> str:
    base, sparsity = origin["base"], origin["sparsity"]
    licence, hub = _licence_and_hub_id(pruned)
    front = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [polyprune, pruning]"]
    front += [f"license: {licence.lower()}"] if licence else []
    front += [f"base_model: {hub}"] if hub else []
    asked = "" if sparsity["asked"] is None else f" ({sparsity['asked']:.2%} asked for)"
    code = "`modeling_polyprune.py` gives each layer its own widths; read it before you trust it.\n"
    rows = {"base model": base["name"], "base weights, sha256": base["sha256"], **origin["recipe"]}
    rows = {name: value for name, value in rows.items() if value is not None}
    table = "\n".join(f"| {_text(name)} | {_text(value)} |" for name, value in rows.items())
    return CARD.format(
        front="\n".join(front),
        name=_text(base["name"].rsplit("/", 1)[-1]),
        base=_text(base["name"]),
        removed=f"{sparsity['achieved']:.2%}{asked}",
        granularity=_text(origin["granularity"]),
        parameters=f"{parameters:,} of the {origin['parameters']['dense']:,} parameters",
        layers=f"{len(origin['layers'])} of {pruned.layout.num_layers} layers",
        licence=f"the licence of the base model ({licence})" if licence else "the licence of the base model",
        reload=reload,
        code=code if "trust_remote_code" in reload else "",
        version=origin["version"],
        table=table,
    )


def _licence_and_hub_id(pruned: PrunedModel) -> tuple[str | None, str | None]:
    from polyprune_core.models.catalogue import catalogue
    from polyprune_core.pruning.provenance import local_path

    base = pruned.base
    entry = catalogue().get(base.name)
    if entry:
        return entry.licence, entry.hub
    card = base.path / "README.md" if base.path else None
    text = card.read_text("utf-8", "replace") if card and card.is_file() else ""
    found = re.search(r"^license: *([\w.+-]+)\s*$", text, re.M)
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", base.name) and local_path(base.name) is None
    return found.group(1) if found else None, base.name if is_hub_id else None


def _text(value: Any) -> str:
    """Text that Markdown shows as it is, on one line: no tag, no link, no new cell."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in str(value)).split())
    return html.escape(re.sub(r"([\\|`*\[\]!])", r"\\\1", line), quote=False)


@hookimpl
def polyprune_exporters() -> Iterator[Provider[Exporter]]:
    yield Provider("huggingface", "a smaller model that transformers loads", HuggingFace)
