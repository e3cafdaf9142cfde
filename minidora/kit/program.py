"""An implementation in another process: one JSON request a line in, one JSON answer a line out.

Whatever the program does (end, hang, print rubbish), it costs one answer: it is stopped with
everything that it started, and started again for the next request. Nothing but the named program
is executed, under a watcher (`watcher.py`), and no shell.
"""

import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from .protocol import ANSWERS, VERSION, Request, check_alternatives, escaped

LONGEST = 2 * 2**20  # bytes of one answer; the cases' own have a tenth of that
DEEPEST = 50  # more, and what reads or shows it may run out of stack
IN_A_ROW = 3  # questions that time out before no more is asked
WATCHER = Path(__file__).with_name("watcher.py").read_text(encoding="utf-8")
WATCHED = [sys.executable, "-I", "-S", "-c", f"{WATCHER}\nimport sys\n\nmain(sys.argv[1:])"]


class Failed(Exception):
    """The program gave no usable answer; the message says how."""


class TimedOut(Failed):
    """It gave none in time."""


class Program:
    """The kit's Implementation around a program; a context manager that ends it."""

    stopped = ""  # why it is asked no more

    def __init__(
        self, command: str | Sequence[str], *, timeout: float = 30.0, keep_going: bool = False
    ) -> None:
        """command: the program and its arguments; timeout: seconds that one answer may take.

        keep_going: ask on after three time-outs in a row.

        Raises Failed, or ValueError for alternatives that SPEC.md does not know, where the program
        does not start or does not answer {"op": "hello"}.
        """
        try:
            self.command = shlex.split(command) if isinstance(command, str) else list(command)
        except ValueError:  # a quotation without its end
            self.command = []
        if not self.command:
            raise ValueError(f"--program: expected a command, got {command!r}")
        self.timeout, self.keep_going = timeout, keep_going
        self._timeouts = 0
        self._running: _Running | None = None
        self._count = 0
        try:
            greeting = self._ask({"op": "hello", "kit": VERSION})
            self.name = greeting.get("name") or self.command[0]
            self.version = greeting.get("version") or "unknown"
            self.kit = greeting.get("kit") or VERSION
            if "alternatives" not in greeting:
                raise Failed('"hello" was answered without "alternatives"')
            self.alternatives = check_alternatives(greeting["alternatives"])
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the program."""
        if self._running:
            self._running.stop()
            self._running = None

    def forward(self, request: Request) -> Any:
        """What the program gives for y; for m or W, as init_magnitude or merge."""
        answer = self._ask(request.as_json())
        name = ANSWERS[request.op]
        if name not in answer:
            has = _start(", ".join(answer))
            raise Failed(f'{request.op} was answered without "{name}"; the answer has {has}')
        return answer[name]

    init_magnitude = merge = forward

    def backward(self, request: Request) -> dict:
        """What the program gives for the gradients."""
        return self._ask(request.as_json())

    def _ask(self, question: dict) -> dict:
        if self.stopped:
            raise Failed(self.stopped)
        self._count += 1
        if self._running is None:
            self._running = _Running(self.command)
        try:
            line = self._running.ask(json.dumps({"id": self._count, **question}), self.timeout)
            answer = _parsed(line, self._count)
            self._timeouts = 0
        except Failed as failed:
            self.close()  # what it may still say belongs to no question
            self._timeouts = self._timeouts + 1 if isinstance(failed, TimedOut) else 0
            if self._timeouts == IN_A_ROW and not self.keep_going:
                self.stopped = f"{failed}, {IN_A_ROW} times in a row (--keep-going asks on)"
            raise
        if answer.get("unsupported") and question["op"] != "hello":
            raise NotImplementedError(answer["unsupported"])
        if answer.get("error"):
            raise Failed(escaped(answer["error"]))
        return answer


def _parsed(line: str, number: int) -> dict:
    if _depth(line) > DEEPEST:
        raise Failed(f"the answer is nested more than {DEEPEST} deep: {_start(line)}")
    try:
        answer = json.loads(line)
    except ValueError:
        raise Failed(f"the answer is not JSON: {_start(line)}") from None
    if not isinstance(answer, dict):
        raise Failed(f"the answer is not a JSON object: {_start(line)}")
    if answer.get("id") != number:
        got = _start(repr(answer.get("id")))
        raise Failed(f"the answer has id {got}, the question had {number}")
    return answer


def _depth(line: str) -> int:
    """How many brackets are open at most (those in texts counted as well)."""
    characters = np.frombuffer(line.encode(errors="replace"), np.uint8)
    turns = np.isin(characters, list(b"[{")).astype(np.int32) - np.isin(characters, list(b"]}"))
    return int(turns.cumsum().max(initial=0))


def _start(text: str, length: int = 100) -> str:
    return escaped(" ".join(text[: 10 * length].split()), length)


class _Running:
    """One process, and the threads that write to it and read what it says."""

    def __init__(self, command: list[str]) -> None:
        pipe, watched = subprocess.PIPE, WATCHED if os.name == "posix" else []
        try:
            self.process = subprocess.Popen(
                watched + command, stdin=pipe, stdout=pipe, stderr=pipe,
                bufsize=0, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise Failed(f"{command[0]} does not start: {error}") from None
        self.stopping = False
        self.questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.chunks: queue.Queue[bytes] = queue.Queue(maxsize=16)  # more than that waits
        self.said, self.complaints = bytearray(), b""
        _thread(self._write, self.process.stdin)
        _thread(self._read, self.process.stdout)
        self.listener = _thread(self._listen, self.process.stderr)

    def _write(self, stdin: IO[bytes]) -> None:
        while question := self.questions.get():
            while question:
                question = question[stdin.write(question) :]

    def _read(self, stdout: IO[bytes]) -> None:
        while not self.stopping and (chunk := stdout.read(2**16)):
            self.chunks.put(chunk)
        self.chunks.put(b"")

    def _listen(self, stderr: IO[bytes]) -> None:
        while chunk := stderr.read(2**16):
            self.complaints = (self.complaints + chunk)[-1000:]

    def ask(self, question: str, timeout: float) -> str:
        """One line out, one line back."""
        self.questions.put(question.encode() + b"\n")
        deadline, line = time.monotonic() + timeout, b""
        try:
            while not line:
                line = self._line(deadline).strip()
        except queue.Empty:
            raise TimedOut(f"no answer within {timeout:g} s") from None
        return line.decode(errors="replace")

    def _line(self, deadline: float) -> bytes:
        searched = 0
        while (end := self.said.find(b"\n", searched)) < 0:
            searched = end = len(self.said)
            if searched > LONGEST:
                raise Failed(f"the answer is longer than {LONGEST} bytes")
            self.said += self._chunk(deadline)
            if len(self.said) == searched:  # there is no more
                if not self.said.strip():
                    raise Failed(self._ended())
                break
        line = bytes(self.said[:end])
        del self.said[: end + 1]
        return line

    def _chunk(self, deadline: float) -> bytes:
        if (left := deadline - time.monotonic()) <= 0:  # though there is more, as of a flood
            raise queue.Empty
        chunk = self.chunks.get(timeout=left)
        if not chunk:
            self.chunks.put(chunk)  # for who asks again
        return chunk

    def _ended(self) -> str:
        try:
            code = self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            return "the program closed its output"
        self.listener.join(timeout=1)
        last = _start(self.complaints[-300:].decode(errors="replace"), 300)
        return f"the program ended with exit code {code}: {last or 'it said nothing'}"

    def stop(self) -> None:
        """End the process and what it started."""
        self.stopping = True
        self.process.terminate()  # the watcher, which kills them
        if hasattr(signal, "SIGCONT"):
            self.process.send_signal(signal.SIGCONT)
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # there are thousands; it goes on without us
            threading.Thread(target=self.process.wait, daemon=True).start()
        self.questions.put(b"")
        while not self.chunks.empty():  # a reader that waits for room ends
            self.chunks.get_nowait()


def _thread(work: Callable[[IO[bytes]], None], stream: IO[bytes] | None) -> threading.Thread:
    """Work on a pipe in a thread, which closes it: nobody else could without waiting for it."""

    def run() -> None:
        assert stream
        with stream:
            try:
                work(stream)
            except OSError:
                pass  # the process has ended

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
