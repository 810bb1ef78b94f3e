"""Facts about the machine that runs: what it is, and how much memory it really has."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def in_use_bytes(device: torch.device) -> int:
    """Bytes taken on a GPU before anything is allocated: contexts, and other programs."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def machine_facts(device: torch.device) -> dict[str, str]:
    """What a later reader needs to know where a measurement was taken."""
    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        facts |= {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name(device)}
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"one core of {_processor()}"


def device_memory_bytes(device: torch.device) -> int:
    """Memory of the device, which on the CPU is that of the host."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else host_memory_bytes()


def host_memory_bytes() -> int:
    """Memory of this machine, or of its container where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total


def available_memory_bytes() -> int:
    """Host memory that can be had without swapping; the total where the system does not say."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return min(int(line.split()[1]) * 1024, host_memory_bytes())
    return host_memory_bytes()
