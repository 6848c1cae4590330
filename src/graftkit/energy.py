"""How much energy did it take?

What the hardware's own counters say: of the processor packages (Intel's RAPL, which AMD's have too; root alone may read
it on most machines) and of the GPUs that torch sees (NVML, where nvidia-ml-py is installed). They count all that runs
on the machine meanwhile, and neither memory nor fans.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
PERIOD = 60.0  # seconds between looks: a package's counter starts over after some 20 minutes at full load

Counter = Callable[[], float]
"""Joules so far, from any start."""


class Meter:
    """Joules since it was made, by what is counted."""

    def __init__(self, found: dict[str, list[tuple[Counter, float]]]):
        """`found` are, by kind, counters and the joules after which each starts over."""
        self._found = found
        self._joules = dict.fromkeys(found, 0.0)
        self._before = {kind: [count() for count, _ in counters] for kind, counters in found.items()}
        self._lock, self._closed = threading.Lock(), threading.Event()
        if found:
            threading.Thread(target=self._look_on, daemon=True).start()

    def read(self) -> dict[str, float]:
        """The joules so far."""
        with self._lock:
            for kind, counters in self._found.items():
                now = [count() for count, _ in counters]
                pairs = zip(counters, now, self._before[kind], strict=True)
                self._joules[kind] += sum((new - old) % most for (_, most), new, old in pairs)
                self._before[kind] = now
            return {kind: round(joules, 1) for kind, joules in self._joules.items()}

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def _look_on(self) -> None:
        while not self._closed.wait(PERIOD):
            self.read()


def start_meter() -> Meter:
    """A meter of what this machine tells: `cpu_joules`, `gpu_joules`, both or none."""
    found = {"cpu_joules": package_counters(POWERCAP), "gpu_joules": gpu_counters()}
    return Meter({kind: counters for kind, counters in found.items() if counters})


def package_counters(folder: Path) -> list[tuple[Counter, float]]:
    """Those of the processor packages that may be read; not of their parts, nor of the whole machine (psys)."""
    found = []
    for zone in sorted(folder.glob("intel-rapl:*")):
        try:
            if (zone / "name").read_text().startswith("package"):
                count = partial(_joules, zone / "energy_uj")
                count()
                found.append((count, _joules(zone / "max_energy_range_uj")))
        except OSError:  # not there, or root's alone
            continue
    return found


def gpu_counters() -> list[tuple[Counter, float]]:
    """Those of the GPUs that torch sees; none without nvidia-ml-py, or for GPUs that do not count (before Volta)."""
    import torch

    if not torch.cuda.is_available():
        return []
    try:
        import pynvml
    except ImportError:
        return []
    found = []
    try:
        pynvml.nvmlInit()
        for place in range(torch.cuda.device_count()):
            gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(place).uuid}")
            count = partial(_gpu_joules, pynvml.nvmlDeviceGetTotalEnergyConsumption, gpu)
            count()
            found.append((count, float("inf")))
    except pynvml.NVMLError:
        return []
    return found


def _joules(path: Path) -> float:
    return int(path.read_text()) / 1e6


def _gpu_joules(count: Callable[[object], int], gpu: object) -> float:
    return count(gpu) / 1e3
