"""Runs a program and ends every process that came of it; `program` starts it, as a process.

It ends them when the program ends, when SIGTERM tells it to, and when nobody holds the other end of
its stdin any more: when the kit is gone, however it went. On Linux it is the subreaper of whatever
the program starts, so that neither a new session nor a double fork gets away; elsewhere it ends the
program's process group. It is a process of its own, for a kit that was killed can end nothing, and
imports little, for it is started with every program.
"""

import os
import select
import signal
import time
from typing import NoReturn

SET_PARENT_DEATH_SIGNAL, SET_DUMPABLE, SET_CHILD_SUBREAPER = 1, 4, 36  # of Linux's prctl


def prctl(option: int, value: int) -> None:
    """Linux's prctl; nothing elsewhere."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


def main(command: list[str]) -> NoReturn:
    """Run the command and end as it does, once no process of it is left."""
    prctl(SET_CHILD_SUBREAPER, 1)
    woken, wake = os.pipe()  # of which a signal wakes us
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    watcher, program = os.getpid(), os.fork()
    if program == 0:
        become(command, watcher)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)  # whoever reads these is to see them end with the program
    os.dup2(nothing, 2)
    waiting = select.poll()
    waiting.register(0, 0)  # tells of a closed other end alone
    waiting.register(woken, select.POLLIN)
    status = None
    while status is None and not told and 0 not in dict(waiting.poll()):
        os.read(woken, 1000)
        status = reaped(program)
    end_all(program)
    code = os.waitstatus_to_exitcode(status or 0)
    if code < 0:
        prctl(SET_DUMPABLE, 0)  # the program's core is enough
        if -code in (signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def become(command: list[str], watcher: int) -> NoReturn:
    """The program, in a session of its own."""
    os.setsid()
    prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != watcher:
        os._exit(1)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]} does not start: {error.strerror}\n".encode(errors="replace"))
    os._exit(127)


def reaped(program: int) -> int | None:
    """Take in whatever has ended; the program's status if it is among that.

    Raises ChildProcessError where there is nothing left.
    """
    while (ended := os.waitpid(-1, os.WNOHANG))[0]:
        if ended[0] == program:
            return ended[1]
    return None


def end_all(program: int) -> None:
    """Kill children until there are none: theirs become ours as they die."""
    pause = 0.001
    try:
        while True:
            for process in children(program):
                try:
                    os.kill(process, signal.SIGKILL)
                except OSError:
                    pass  # it has ended
            reaped(0)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
    except ChildProcessError:
        pass


def children(program: int) -> list[int]:
    """Our children, or the program's group where the system does not say."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return [-program]
