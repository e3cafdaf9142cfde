"""An implementation in another process: one JSON request a line in, one JSON answer a line out.

Whatever the program does (end, hang, print rubbish), it costs one answer: it is stopped and started
again for the next request. Nothing but the named program is executed, and no shell.
"""

import json
import os
import queue
import shlex
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from .protocol import ANSWERS, VERSION, Request, check_alternatives

LONGEST = 64 * 2**20  # characters of one answer


class Failed(Exception):
    """The program gave no usable answer; the message says how."""


class Program:
    """The kit's Implementation around a program; a context manager that ends it."""

    def __init__(self, command: str | Sequence[str], *, timeout: float = 30.0) -> None:
        """command: the program and its arguments; timeout: seconds that one answer may take.

        Raises Failed, or ValueError for alternatives that SPEC.md does not know, where the program
        does not start or does not answer {"op": "hello"}.
        """
        self.command = shlex.split(command) if isinstance(command, str) else list(command)
        self.timeout = timeout
        self._running: _Running | None = None
        self._count = 0
        try:
            greeting = self._ask({"op": "hello", "kit": VERSION})
            self.name = str(greeting.get("name", self.command[0]))
            self.version = str(greeting.get("version", "unknown"))
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

    def init_magnitude(self, request: Request) -> Any:
        """What the program gives for m."""
        return self._one(request)

    def forward(self, request: Request) -> Any:
        """What the program gives for y."""
        return self._one(request)

    def merge(self, request: Request) -> Any:
        """What the program gives for W."""
        return self._one(request)

    def backward(self, request: Request) -> dict:
        """What the program gives for the gradients."""
        return self._ask(request.as_json())

    def _one(self, request: Request):
        answer = self._ask(request.as_json())
        name = ANSWERS[request.op]
        if name not in answer:
            raise Failed(
                f'{request.op} was answered without "{name}": {_start(json.dumps(answer))}'
            )
        return answer[name]

    def _ask(self, question: dict) -> dict:
        self._count += 1
        if self._running is None:
            self._running = _Running(self.command)
        try:
            line = self._running.ask(json.dumps({"id": self._count, **question}), self.timeout)
            answer = _parsed(line, self._count)
        except Failed:
            self.close()  # what it may still say belongs to no question
            raise
        if "unsupported" in answer:
            raise NotImplementedError(str(answer["unsupported"]))
        if "error" in answer:
            raise Failed(_start(str(answer["error"]), 300))
        return answer


def _parsed(line: str, number: int) -> dict:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        raise Failed(f"the answer is not JSON: {_start(line)}") from None
    if not isinstance(answer, dict):
        raise Failed(f"the answer is not a JSON object: {_start(line)}")
    if answer.get("id") != number:
        raise Failed(f"the answer has id {answer.get('id')!r}, the question had {number}")
    return answer


def _start(text: str, length: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


@dataclass
class _End:
    """What the reader puts in the queue when there is nothing more to read."""

    why: str


class _Running:
    """One process, and the threads that read what it says."""

    def __init__(self, command: list[str]) -> None:
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                command,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                text=True,
                encoding="utf-8",
                errors="replace",
                bufsize=1,
                start_new_session=True,
            )
        except OSError as error:
            raise Failed(f"{command[0]} does not start: {error}") from None
        self.stdin, self.stdout, self.stderr = _pipes(self.process)
        self.answers: queue.Queue = queue.Queue(maxsize=1000)
        self.complaints: deque[str] = deque(maxlen=20)
        threading.Thread(target=self._read, daemon=True).start()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _read(self) -> None:
        try:
            while line := self.stdout.readline(LONGEST):
                if len(line) >= LONGEST:
                    self.answers.put(_End(f"the answer is longer than {LONGEST} characters"))
                    return
                if line.strip():
                    self.answers.put(line)
        except (OSError, ValueError):
            pass  # it was stopped while it was still talking
        self.answers.put(_End(""))

    def _listen(self) -> None:
        try:
            while line := self.stderr.readline(10_000):
                self.complaints.append(line)
        except (OSError, ValueError):
            pass

    def ask(self, question: str, timeout: float) -> str:
        """One line out, one line back."""
        writer = threading.Thread(target=self._write, args=(question,), daemon=True)
        writer.start()  # a program that does not read would block us
        try:
            answer = self.answers.get(timeout=timeout)
        except queue.Empty:
            raise Failed(f"no answer within {timeout:g} s") from None
        if isinstance(answer, _End):
            raise Failed(answer.why or self._ended())
        return answer

    def _write(self, question):
        try:
            self.stdin.write(question + "\n")
            self.stdin.flush()
        except (OSError, ValueError):
            pass  # it ended or was stopped; the reader says so

    def _ended(self) -> str:
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "the program closed its output"
        self.listener.join(timeout=1)
        last = _start("".join(self.complaints)[-300:].strip() or "it said nothing", 300)
        return f"the program ended with exit code {code}: {last}"

    def stop(self) -> None:
        """Kill the process and what it started, and close the pipes."""
        stop_group(self.process)
        while not self.answers.empty():  # a reader that waits for room ends
            self.answers.get_nowait()
        for stream in (self.stdin, self.stdout, self.stderr):
            try:
                stream.close()
            except (OSError, ValueError):
                pass


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str], IO[str]]:
    """The three pipes that it was started with."""
    assert process.stdin and process.stdout and process.stderr
    return process.stdin, process.stdout, process.stderr


def stop_group(process: subprocess.Popen) -> None:
    """Kill a process that was started in a session of its own, with its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, OSError):  # no such call on Windows; or gone already
        process.kill()
    process.wait()
