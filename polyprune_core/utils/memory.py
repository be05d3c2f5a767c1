"""Peak memory of a stretch of work: the model, its activations and whatever else the work allocates."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import psutil
import torch

MEGABYTE = 1_000_000
M_MMAP_THRESHOLD, LARGE = -3, 2**20


class PeakMemory:
    """Measures from `restart()` on: device memory on a GPU, else resident memory of the process.

    What was held besides the `model_bytes` of the loaded model when this was made (another model; on a CPU also the
    interpreter, its libraries, the tokenized texts) is subtracted. A Linux kernel lets a process restart its own
    high-water mark; elsewhere the mark is that of the whole process.
    """

    def __init__(self, device: torch.device, model_bytes: int) -> None:
        self.device = device
        _trim()
        on_gpu = device.type == "cuda"
        held = torch.cuda.memory_allocated(device) if on_gpu else psutil.Process().memory_info().rss
        self.baseline = held - model_bytes

    def restart(self) -> None:
        """Forgets earlier peaks, and hands freed memory that the allocator still holds back to the system."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _trim()
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def megabytes(self) -> float:
        """Returns the peak since `restart()` in MB (10^6 bytes)."""
        on_gpu = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) if on_gpu else _resident_peak()
        return float(max(0, peak - self.baseline)) / MEGABYTE


def ran_out(error: BaseException) -> bool:
    """Whether it says that there is no memory left, on a GPU or in the process."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def give_back_freed() -> None:
    """Has the C library of Linux give large blocks back to the system as soon as they are freed, from now on.

    Otherwise it keeps them for later, where they count as memory in use.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def _trim() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _resident_peak() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))
