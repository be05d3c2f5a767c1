"""How far each metric is from what its authors' own code computes, on tiny models; tests/originals holds the latter.

python benchmarks/originals.py --output benchmarks/results/originals.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.testing.tiny import tiny_calibration, tiny_model, tiny_space

ORIGINALS = Path(__file__).resolve().parents[1] / "tests" / "originals" / "scores.json"
# The models: query heads that share key-value heads, as many of both, and five layers to remove whole.
MODELS: dict[str, dict[str, Any]] = {
    "gqa": {},
    "mha": {"num_key_value_heads": 6},
    "layers": {"num_hidden_layers": 5},
}
FILES = {
    "wanda": "CASIA-IVA-Lab/FLAP lib/prune.py (3bb57db), input norms as locuslab/wanda lib/layerwrapper.py (8e8fc87)",
    "flap": "CASIA-IVA-Lab/FLAP lib/prune.py, lib/layerwrapper.py (3bb57db)",
    "llm-pruner": "horseee/LLM-Pruner LLMPruner/pruner/hf_llama_pruner.py (128a07d)",
    "magnitude": "horseee/LLM-Pruner LLMPruner/pruner/hf_llama_pruner.py (128a07d)",
    "symbolic": "pprp/Pruner-Zero lib/gptree.py, data/best_tree.json (db70134)",
    "obs": "mazumder-lab/OSSCAR prune_algo.py (0bd7887)",
    "block-influence": "sramshetty/ShortGPT short_gpt/metrics.py (78d9615)",
    "angular-distance": "sramshetty/ShortGPT short_gpt/metrics.py (78d9615)",
    "bonsai": "ldery/Bonsai main.py, lib/modelling_llama_mod.py (2f911d7): prior, and which channels stay",
    "sleb": "leapingjagg-dev/SLEB sleb.py (3c17108)",
}


def file_of(spec: str) -> str:
    """Returns the original's repository, file and commit."""
    return FILES[spec.partition(":")[0]]


def difference(model_name: str, spec: str) -> float:
    """Returns the largest difference of a unit's score from the original's, both over the original's largest score.

    Orders, and which channels always stay, agree or not, 0 or 1. Other factors for all units, such as the number of
    tokens, are taken out.
    """
    original = json.loads(ORIGINALS.read_text("utf-8"))[model_name][spec]
    model = tiny_model("llama", **MODELS[model_name])
    space = tiny_space(model, "layer" if model_name == "layers" else "head+channel")
    calibration = tiny_calibration(model, budget=SelectionRule(0.4) if spec == "angular-distance" else None)
    if "prior" in original:
        return _of_prior(load_registry().build("initializer", spec), model, space, calibration, original)
    found = load_registry().measure(spec, model, space, calibration).values.double()
    if isinstance(original, dict):
        return float(found.argsort(stable=True).tolist()[: len(original["order"])] != original["order"])
    expected = torch.tensor(original, dtype=torch.float64)
    if spec.partition(":")[0] != "flap":
        found, expected = found / found.max(), expected / expected.max()
    return float((found - expected).abs().max() / expected.abs().max())


def _of_prior(metric: Any, model: Any, space: Any, calibration: Any, original: dict[str, list[float]]) -> float:
    found, expected = metric.prior(model, space, calibration), torch.tensor(original["prior"], dtype=torch.float64)
    stays = (~metric.free(found, space)).int().tolist()[-len(original["stays"]) :] == original["stays"]
    return max(float((found - expected).abs().max() / expected.max()), float(not stays))


def recorded() -> Iterator[tuple[str, str]]:
    """Yields (model, spec) of everything that an original computed."""
    for model_name, by_spec in json.loads(ORIGINALS.read_text("utf-8")).items():
        yield from ((model_name, spec) for spec in by_spec)


def main() -> None:
    """Writes the largest difference of every metric over the models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    worst: dict[str, float] = {}
    output = parser.parse_args().output
    for model_name, spec in recorded():
        worst[spec] = max(worst.get(spec, 0.0), difference(model_name, spec))
        print(f"{model_name} {spec}: {worst[spec]:.1e}", flush=True)
    rows = [{"metric": spec, "original": file_of(spec), "difference": found} for spec, found in sorted(worst.items())]
    output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
