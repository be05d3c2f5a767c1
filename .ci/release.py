"""Cuts a release: `python .ci/release.py cut 0.2.0` writes its number everywhere, `check` says whether all agree.

`notes 0.2.0` prints the changelog's part of a release. The release is a tag: `git tag v0.2.0 && git push --tags`.
"""

from __future__ import annotations

import datetime
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ("plugins/polyprune-example/pyproject.toml", "plugins/polyprune-evolution/pyproject.toml")
# Every place that states the version: the file, and the line with the number as its second group.
PLACES = {
    "pyproject.toml": r'(?m)^(version = ")([^"]+)(")$',
    "polyprune_core/version.py": r'(?m)^(__version__ = ")([^"]+)(")$',
    "CITATION.cff": r"(?m)^(version: )(\S+)()$",
    "docs/cite.md": r"(Version )(\d+\.\d+\.\d+)(\})",
    **dict.fromkeys(PLUGINS, r'(?m)^(version = ")([^"]+)(")$'),
}
# What a plugin that is released with it needs of polyprune.
NEEDED = r"polyprune>=[\d.]+,<[\d.]+"
UNRELEASED = "## Unreleased\n"


def stated(root: Path) -> dict[str, str]:
    """Returns the version that each place states."""
    return {name: re.findall(place, (root / name).read_text("utf-8"))[0][1] for name, place in PLACES.items()}


def needed(version: str) -> str:
    """Returns what goes with a version: until 1.0 a minor version may change the contracts of plugins."""
    major, minor, _ = map(int, version.split("."))
    return f"polyprune>={major}.{minor},<{major}.{minor + 1}" if major == 0 else f"polyprune>={version},<{major + 1}"


def notes(root: Path, version: str) -> str:
    """Returns the changelog's part of a version, without its heading; nothing where there is none."""
    parts = re.split(r"(?m)^## (.+)\n", (root / "CHANGELOG.md").read_text("utf-8"))
    named = {title.split(" ")[0]: text for title, text in zip(parts[1::2], parts[2::2], strict=True)}
    return named.get(version, "").strip()


def faults(root: Path, version: str) -> list[str]:
    """Returns what keeps this version from being released."""
    wrong = [f"{name} states {found}, not {version}." for name, found in stated(root).items() if found != version]
    unlike = [name for name in PLUGINS if needed(version) not in (root / name).read_text("utf-8")]
    wrong += [f"{name} does not need {needed(version)}." for name in unlike]
    return wrong if notes(root, version) else [*wrong, f"CHANGELOG.md has no part for {version}."]


def cut(root: Path, version: str, day: datetime.date) -> None:
    """Writes the version everywhere, and makes what is unreleased in the changelog its part."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit(f"{version!r} is no version; give three numbers, as 0.2.0.")
    if not notes(root, "Unreleased"):
        sys.exit("CHANGELOG.md has nothing under Unreleased.")
    for name, place in PLACES.items():
        path = root / name
        text = re.sub(place, rf"\g<1>{version}\g<3>", path.read_text("utf-8"), count=1)
        path.write_text(re.sub(NEEDED, needed(version), text) if name in PLUGINS else text, "utf-8")
    changelog = root / "CHANGELOG.md"
    heading = f"{UNRELEASED}\n## {version} ({day.isoformat()})\n"
    changelog.write_text(changelog.read_text("utf-8").replace(UNRELEASED, heading, 1), "utf-8")


def main() -> None:
    """Does what the command line asks for."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("cut", "check", "notes"):
        sys.exit("usage: release.py cut|check|notes VERSION")
    what, version = sys.argv[1:]
    if what == "cut":
        cut(ROOT, version, datetime.datetime.now(datetime.UTC).date())
    elif what == "notes":
        sys.stdout.write(notes(ROOT, version) + "\n")
    elif wrong := faults(ROOT, version):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
