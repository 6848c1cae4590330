"""What machine and software is this?"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from graftkit.errors import UserError

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "peft", "timm", "tokenizers", "numpy", "scikit-learn")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def choose_precision(wanted: str, device: str) -> str:
    """The precision to train in on a kind of device: fp32, bf16 or fp16. Raises UserError where it lacks `wanted`."""
    import torch

    if device == "cuda":
        best = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    else:
        best = "bf16" if device == "cpu" and _cpu_has_bf16() else "fp32"
    if wanted == "fp16" and device != "cuda":
        raise UserError(f"--run.precision fp16 needs a CUDA GPU, this runs on {device}; use bf16 or fp32")
    if wanted == "bf16" and device == "cuda" and best == "fp16":
        raise UserError("--run.precision bf16: this GPU has none; use fp16, auto or fp32")
    return best if wanted == "auto" else wanted


def _cpu_has_bf16() -> bool:
    """Whether matrix products in bf16 are faster than in fp32 here: AVX512-BF16 or AMX."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones, instead of giving it back page by page.

    On a CPU every tensor above 128 KiB (above 32 MiB, once glibc has learned) is otherwise mapped and cleared anew, in
    each layer of each update: up to half of the time of a network for pictures.
    """
    import ctypes

    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory() -> dict[str, float | None]:
    """The most memory that this process, and its GPU, held so far, in GiB."""
    import torch

    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    gpu = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"process": round(resident, 3), "gpu": None if gpu is None else round(gpu, 3)}


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GiB, and GPUs."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "memory_gib": memory, "gpus": gpus}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def threads() -> int:
    """Threads that torch computes with in this process."""
    import torch

    return torch.get_num_threads()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Where graftkit keeps what it can make again: GRAFTKIT_CACHE, otherwise ~/.cache/graftkit."""
    return Path(os.environ.get("GRAFTKIT_CACHE") or "~/.cache/graftkit").expanduser()


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit that the working folder stands at, if it is a git checkout."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def use_all_cores() -> None:
    """Take the cores that `accelerate launch` leaves idle: it sets one thread for a lone process on a CPU.

    What the user asked for (OMP_NUM_THREADS, --num_cpu_threads_per_process) stays.
    """
    import psutil
    import torch

    try:
        launcher = psutil.Process(os.getppid())
        words, environment = launcher.cmdline(), launcher.environ()
    except psutil.Error:
        return
    asked = "OMP_NUM_THREADS" in environment or any("num_cpu_threads" in word.replace("-", "_") for word in words)
    if "launch" in words and not asked:
        torch.set_num_threads(psutil.cpu_count(logical=False) or 1)


def processes_asked_for() -> int | None:
    """What `--num_processes` of `accelerate launch` says, where this process was started by it."""
    import psutil

    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    if "launch" not in words:
        return None
    flags = [word for word in words if word.startswith(("--num_processes", "--num-processes"))]
    if not flags:
        return None
    _, equals, value = flags[-1].partition("=")
    value = value if equals else words[words.index(flags[-1]) + 1]
    return int(value) if value.isdigit() else None
