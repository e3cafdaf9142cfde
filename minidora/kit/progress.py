"""How far a run is, on stderr."""

import sys
import threading
from types import TracebackType
from typing import Self

from .report import CaseResult


class Progress:
    """A context manager that says it while it lasts; called with each result as it comes."""

    def __init__(self, total: int, every: float = 10.0) -> None:
        """total: of results; every: seconds between two lines where stderr is no terminal."""
        self.total, self.done, self.last = total, 0, "started"
        self.terminal = sys.stderr.isatty()
        self.every = 0.2 if self.terminal else every
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._tell, daemon=True)

    def __call__(self, result: CaseResult) -> None:
        """Take note of a result."""
        self.done, self.last = self.done + 1, str(result.variant)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.over.set()
        self.thread.join()

    def _tell(self) -> None:
        before, after = ("\r", "\x1b[K") if self.terminal else ("", "\n")
        try:
            while not self.over.wait(self.every):
                line = f"{self.done} of {self.total}: {self.last}"
                print(before, line, after, sep="", end="", file=sys.stderr, flush=True)
            print(before, after.strip(), sep="", end="", file=sys.stderr, flush=True)
        except (OSError, ValueError):
            pass  # nobody reads it
