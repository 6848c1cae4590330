"""How far is it?"""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """A bar with rows/s, loss and time left on a terminal; elsewhere a plain line now and then."""

    EVERY = 20.0  # seconds between plain lines

    def __init__(self, total: int, start: int, rows_per_update: int, *, show: bool):
        self.total, self.done, self.rows = total, start, rows_per_update
        self.spoke = self.clock = time.perf_counter()
        self.training = 0.0  # seconds spent in updates
        self.seen = 0  # rows since the start
        self.losses: list[float] = []  # of the updates since the last evaluation
        self.show = show
        self.bar = None
        if show and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=start, unit="update", dynamic_ncols=True, leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    @property
    def rows_per_second(self) -> float:
        """Training rows per second of training, over all processes."""
        return self.seen / self.training if self.training else 0.0

    def start_clock(self) -> None:
        """Training begins, or goes on after an evaluation."""
        self.clock = time.perf_counter()

    def step(self, rows: int, loss: float) -> None:
        """Count an update of `rows` rows."""
        now = time.perf_counter()
        self.training += now - self.clock
        self.clock = now
        self.done += 1
        self.seen += rows
        self.losses.append(loss)
        if self.bar is not None:
            self.bar.set_postfix_str(f"{self.rows_per_second:.0f} rows/s, loss {loss:.3f}", refresh=False)
            self.bar.update()
        elif self.show and now - self.spoke > self.EVERY:
            self.spoke = now
            left = (self.total - self.done) * self.rows / self.rows_per_second
            rate = f"{self.rows_per_second:.0f} rows/s"
            print(f"update {self.done}/{self.total}, {rate}, loss {loss:.3f}, {left:.0f} s left", flush=True)

    def mean_loss(self) -> float:
        """The mean loss of the updates since it was last asked for."""
        mean = sum(self.losses) / max(1, len(self.losses))
        self.losses.clear()
        return mean

    def write(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if not self.show:
            return
        if self.bar is not None:
            self.bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)
