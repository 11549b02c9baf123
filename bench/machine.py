"""The machine that measures: its name, on how many of its cores, a clock that waits for it, and its peak memory."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import time
from pathlib import Path

LIBRARIES = ("torch", "transformers", "trl", "vllm", "diffusers", "peft")


def name() -> str:
    """The accelerator, or the processor and its cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def slug(machine: str) -> str:
    """The machine's folder below docs/benchmarks."""
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")


def description() -> str:
    """Beyond the name: system, precision, memory."""
    import psutil

    from raftune.models import compute_dtype, device

    dtype = str(compute_dtype(device())).removeprefix("torch.")
    gigabytes = psutil.virtual_memory().total / 1024**3
    return f"{platform.system()}, Python {platform.python_version()}, {gigabytes:.0f} GiB of memory, {dtype}"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, help="threads of every side; default: as many as it takes")
    parser.add_argument("--cpus", help="the cores that every side may use, like 0 or 0,1; default: all")


def confine(threads: int | None, cpus: str | None) -> None:
    """Of this process and all that it starts."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if cpus is not None:
        os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})


def conditions(options: argparse.Namespace) -> dict[str, object]:
    """What was asked for, and who else was there when it began."""
    load = [round(one, 2) for one in os.getloadavg()]
    return {"threads": options.threads, "cpus": options.cpus, "load_before": load, "when": time.strftime("%Y-%m-%d")}


def versions() -> dict[str, str]:
    """Of the libraries that this process has loaded."""
    return {name: sys.modules[name].__version__ for name in LIBRARIES if name in sys.modules}


def clock() -> float:
    """Seconds, once the accelerator has done what it was told."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def device_peak() -> int | None:
    """Bytes at most so far of the accelerator's memory, as torch allocates it; None without one."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_available() else None


def peak_gb() -> float:
    """GiB at most so far: of the accelerator's memory where there is one, else of the process's resident set."""
    from raftune import memory

    return (device_peak() or memory.peak()) / 1024**3
