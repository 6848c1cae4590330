"""Was it asked to stop?"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator


class Stop:
    """While it is open, the first SIGINT or SIGTERM is remembered, so that an update can end; a second one ends it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop; every process must ask, and gets the same answer."""
        if accelerator.num_processes == 1:
            return self.signal is not None
        import torch

        asked = torch.tensor(float(self.signal or 0), device=accelerator.device)
        highest = int(accelerator.gather(asked).max())
        if highest:  # a signal that came since is kept for the next time
            self.signal = highest
        return highest > 0
