"""Settings by name: those of a quick look, of the published search, and the protocols of published metrics.

What is given beside a preset wins over it. `docs/explanation/protocols.md` says where each number comes from.
"""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal[
    "default", "quick", "paper", "released", "llm-pruner-paper", "flap-paper", "wanda-sp", "shortgpt-paper"
]


def _alone(metric: str, **settings: Any) -> dict[str, Any]:
    """Returns the settings of one metric without search, on units of width unless told, in windows of 128 tokens."""
    names = {"baselines": metric, "initializers": metric, "initializer": metric}
    return {"granularity": "head+channel", "scale": "raw", "repair": "none", "eval_seq_len": 128} | names | settings


# Rates and sizes of the search are those of the released scripts, in both; the step is the paper's own formula, or the
# released code's.
PRESETS: dict[Preset, dict[str, Any]] = {
    "default": {},
    "quick": {"baselines": ["random", "wanda", "thinet"], "steps": 10, "calibration_samples": 32, "limit": 24},
    "paper": {
        "policy": "probabilities",
        "optimizer": "sgd",
        "precondition": "none",
        "learning_rate": 2e-3,
        "masks_per_step": 2,
        "batch_size": 8,
        "seq_len": 128,
        "warmup": 0.0,
        "averaging": 0.0,
        "scope": "kind",
        "initializers": "wanda",
        "initializer": "wanda",
    },
    "llm-pruner-paper": _alone(
        "llm-pruner", calibration_samples=10, seq_len=64, scope="layer", protect="first=4,last=2"
    ),
    "flap-paper": _alone("flap:metric=wifv", calibration_samples=1024, seq_len=128, scope="global", repair="bias"),
    "wanda-sp": _alone("wanda:sequential=0.2", calibration_samples=128, seq_len=128, scope="layer"),
    "shortgpt-paper": _alone("block-influence:last=normed", granularity="layer", scope="kind"),
}
PRESETS["released"] = PRESETS["paper"] | {
    "precondition": "half-natural",
    "policy": "probabilities:start=sigmoid-norm-released",
}
