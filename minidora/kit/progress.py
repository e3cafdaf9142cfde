"""How far a run is, on stderr."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .report import CaseResult


@contextmanager
def progress(total: int, every: float = 10.0) -> Iterator[Callable[[CaseResult], None]]:
    """Say it while this lasts, over and over on a terminal, every so many seconds elsewhere.

    total: of results. Yields what is to be called with each as it comes.
    """
    terminal, over, done = sys.stderr.isatty(), threading.Event(), ["started"]
    before, after = ("\r", "\x1b[K") if terminal else ("", "\n")

    def tell() -> None:
        try:
            while not over.wait(0.2 if terminal else every):
                line = f"{before}{len(done) - 1} of {total}: {done[-1]}{after}"
                print(line, end="", file=sys.stderr, flush=True)
            print(before, after.strip(), sep="", end="", file=sys.stderr, flush=True)
        except (OSError, ValueError):
            pass  # nobody reads it

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield lambda result: done.append(str(result.variant))
    finally:
        over.set()
        thread.join()
