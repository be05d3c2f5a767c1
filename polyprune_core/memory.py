"""Peak memory of a stretch of work, above what the process held before the model."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import psutil
import torch

MEGABYTE = 1_000_000


class PeakMemory:
    """Measures from `restart()` on: device memory on a GPU, resident memory above `baseline` bytes on a CPU.

    A Linux kernel lets a process restart its own high-water mark; elsewhere the mark is that of the whole process.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.baseline = psutil.Process().memory_info().rss

    def restart(self) -> None:
        """Forgets earlier peaks, and hands freed memory that the allocator still holds back to the system."""
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)
                Path("/proc/self/clear_refs").write_text("5")

    def megabytes(self) -> float:
        """Returns the peak since `restart()` in MB (10^6 bytes)."""
        if self.device is not None and self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MEGABYTE
        return max(0, _resident_peak() - self.baseline) / MEGABYTE


def _resident_peak() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))
