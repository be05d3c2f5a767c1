"""The text source `builtin:prose`: Jane Austen's novel Persuasion (1818), 0.46 MB of English narrative.

The author died in 1817, and the text is in the public domain. `prose.txt.gz` is the transcription in Debian's package
r-cran-janeaustenr 1.0.0 without its title page: 24 chapters, each under a heading, and one line a paragraph. Dense
SmolLM2-135M has a perplexity of about 60 on it at 128 tokens: it does not know the novel by heart.
"""

from __future__ import annotations

import functools
import gzip
import re
from importlib.resources import files

from polyprune_core.evaluation.apart import runs, without

FILE = "prose.txt.gz"
# Every fourth chapter is held out.
HELD_OUT = 4


@functools.cache
def chapters() -> tuple[str, ...]:
    """Returns the chapters in their order, each with its heading."""
    text = gzip.decompress(files("polyprune_core.evaluation").joinpath(FILE).read_bytes()).decode("utf-8")
    return tuple(part.strip("\n") for part in re.split(r"(?m)^(?=Chapter \d+$)", text) if part.strip())


@functools.cache
def calibration_text() -> str:
    """Returns the chapters to calibrate on, joined by blank lines."""
    return "\n\n".join(text for number, text in enumerate(chapters(), 1) if number % HELD_OUT)


@functools.cache
def evaluation_text() -> str:
    """Returns the held-out chapters, without paragraphs that share twelve words in a row with the others.

    Shorter paragraphs are left out where they stand whole in the calibration text.
    """
    seen = runs(calibration_text())
    held_out = (text for number, text in enumerate(chapters(), 1) if number % HELD_OUT == 0)
    return "\n\n".join(without(text, seen) for text in held_out)
