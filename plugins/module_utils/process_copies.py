# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Forked copies of this process, and the messages that they send to it through pipes.

A message arrives whole or not at all. Who starts copies must be ready for one that dies, or that cannot be started.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import struct
import time
from contextlib import contextmanager, suppress
from typing import Callable, Iterator, Sequence

HEAD = struct.Struct("=Q")  # bytes that follow
_AT_ONCE = 1 << 20  # bytes
_PR_SET_PDEATHSIG = 1
_LAST_PAUSE = 0.05  # seconds. A copy that was killed is looked at after pauses that double up to this one
Send = Callable[[bytes], None]
_given_up: set[int] = set()  # copies that were killed, and are stuck in the kernel


def dying_with_parent() -> Callable[[], None]:
    """What a child of this process calls first, so that the kernel kills it when the thread ends that has started it. Everything is
    looked up here, because little is safe between fork and exec."""
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def die() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(125)  # the parent died before the request took effect

    return die


class Copy:
    """A copy of this process: its process id, the reading end of its pipe, and the bytes that arrived of the next message."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid, self.pipe, self._come = pid, pipe, bytearray()

    def take(self) -> Iterator[bytes]:
        """Read from the pipe once, waiting if it is empty, and yield each whole message.

        :raises EOFError: the copy has ended.
        """
        data = os.read(self.pipe, _AT_ONCE)
        if not data:
            raise EOFError
        self._come += data
        while len(self._come) >= HEAD.size:
            end = HEAD.size + HEAD.unpack_from(self._come)[0]
            if len(self._come) < end:
                return
            message = memoryview(self._come)[HEAD.size : end].tobytes()
            del self._come[:end]
            yield message

    def end(self) -> None:
        """Close the pipe and wait. A copy that is still at work ends at its next message."""
        os.close(self.pipe)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # the parent of this task made it ignore SIGCHLD, so the kernel has removed the child already

    def give_up(self) -> None:
        """Kill it, whatever it does, and close the pipe. One that is stuck in the kernel ends later, when its system call returns. It is not waited for."""
        os.close(self.pipe)
        with suppress(ProcessLookupError):  # as in end()
            os.kill(self.pid, signal.SIGKILL)
        _given_up.add(self.pid)
        pause = 0.0002
        while pause <= _LAST_PAUSE:
            time.sleep(pause)
            pause *= 2
            reap_given_up()
            if self.pid not in _given_up:
                return


def reap_given_up() -> None:
    """Let those of the copies that were given up go that have ended meanwhile. Otherwise they would stay as zombies while this process lives."""
    for pid in tuple(_given_up):
        try:
            has_ended = os.waitpid(pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            has_ended = True  # the kernel has removed it already, see Copy.end
        if has_ended:
            _given_up.discard(pid)


@contextmanager
def started(parts: Sequence[Callable[[Send], None]]) -> Iterator[list[Copy]]:
    """Start a copy for each part, which does that and ends; fewer where no more processes or descriptors can be had. At the end all are
    ended."""
    copies: list[Copy] = []
    gc.freeze()  # otherwise the garbage collector would write to memory that the copies share
    try:
        try:
            for part in parts:
                copies.append(_start(copies, part))
        except OSError:
            pass
        yield copies
    finally:
        for copy in copies:
            copy.end()
        gc.unfreeze()


def messages(copies: Sequence[Copy]) -> Iterator[bytes]:
    """Yield what the copies send, as it comes, until all of them have ended."""
    waiting = {copy.pipe: copy for copy in copies}
    poll = select.poll()
    for pipe in waiting:
        poll.register(pipe, select.POLLIN)
    while waiting:
        for pipe, _event in poll.poll():
            try:
                yield from waiting[pipe].take()
            except EOFError:
                poll.unregister(pipe)
                del waiting[pipe]


def start_apart(part: Callable[[Send], None]) -> Copy:
    """Start a copy that may get stuck, does ``part`` and ends. It dies with this thread, and has only its own end of the pipe. With this process's standard
    output or a lock, it would keep those waiting who wait for their end. :raises OSError: no more processes or descriptors can be had."""
    reap_given_up()
    die_with_parent = dying_with_parent()

    def prepare(pipe: int) -> None:
        _given_up.clear()  # they are no children of the copy
        die_with_parent()
        _keep_only(pipe)

    return _start([], part, prepare)


def _keep_only(pipe: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd != pipe:
            try:
                os.close(fd)
            except OSError:
                pass  # that of the listing itself


def _start(others: list[Copy], part: Callable[[Send], None], prepare: Callable[[int], None] | None = None) -> Copy:
    reading, writing = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if pid:
        os.close(writing)
        return Copy(pid, reading)
    code = 1
    try:
        for fd in (reading, *(other.pipe for other in others)):
            os.close(fd)
        if prepare is not None:
            prepare(writing)
        part(lambda message: _send(writing, message))
        code = 0
    finally:
        os._exit(code)  # a copy must never return into the code of its parent


def _send(pipe: int, message: bytes) -> None:
    _write(pipe, HEAD.pack(len(message)))
    _write(pipe, message)


def _write(pipe: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(pipe, rest) :]
