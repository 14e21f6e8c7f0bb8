# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Divides reading among forked copies of this process, which send their results through pipes.

No result is lost if a copy dies or fails: this process does the parts that did not arrive whole, and so raises the original error,
if there was one. Copies end with this process, because writing to a closed pipe ends them.
"""

from __future__ import annotations

import gc
import marshal
import os
import select
import struct
from typing import Callable, Iterator, Sequence, TypeVar

Part = TypeVar("Part")
_HEAD = struct.Struct("=QQ")  # number of the part, bytes that follow
_AT_ONCE = 1 << 20  # bytes


class _Copy:
    """A copy of this process: its process id, the reading end of its pipe, and the bytes that arrived of the next part."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid, self.pipe, self._come = pid, pipe, bytearray()

    def take(self) -> Iterator[tuple[int, list]]:
        """Read from the pipe once, waiting if it is empty, and yield each whole result: (number of the part, list of results).

        :raises EOFError: the copy has ended.
        """
        data = os.read(self.pipe, _AT_ONCE)
        if not data:
            raise EOFError
        self._come += data
        while len(self._come) >= _HEAD.size:
            number, length = _HEAD.unpack_from(self._come)
            end = _HEAD.size + length
            if len(self._come) < end:
                return
            found = marshal.loads(memoryview(self._come)[_HEAD.size : end].tobytes())
            del self._come[:end]
            yield number, found

    def end(self) -> None:
        """Close the pipe and wait. A copy that is still at work ends at its next write."""
        os.close(self.pipe)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # the parent of this task made it ignore SIGCHLD, so the kernel has removed the child already


def in_processes(parts: Sequence[Part], work: Callable[[Part], list], processes: int) -> Iterator[list]:
    """Yield the list that ``work`` returns for each part, in any order.

    :param work: changes nothing, and returns a list of plain values (that marshal can write).
    :param processes: how many copies of this process work at the same time.
    """
    left = set(range(len(parts)))
    copies: list[_Copy] = []
    gc.freeze()  # otherwise the garbage collector would write to memory that the copies share
    try:
        try:
            for first in range(processes):
                copies.append(_start(copies, [(number, parts[number]) for number in range(first, len(parts), processes)], work))
        except OSError:
            pass  # no more processes or descriptors: this process does the remaining parts
        for number, found in _come_in(list(copies)):
            left.discard(number)
            yield found
    finally:
        for copy in copies:
            copy.end()
        gc.unfreeze()
    for number in sorted(left):
        yield work(parts[number])


def _come_in(copies: list[_Copy]) -> Iterator[tuple[int, list]]:
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


def _start(others: list[_Copy], parts: list[tuple[int, Part]], work: Callable[[Part], list]) -> _Copy:
    reading, writing = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if pid:
        os.close(writing)
        return _Copy(pid, reading)
    code = 1
    try:
        for fd in (reading, *(other.pipe for other in others)):
            os.close(fd)
        _hand_over(writing, parts, work)
        code = 0
    finally:
        os._exit(code)  # a copy must never return into the code of its parent


def _hand_over(pipe: int, parts: list[tuple[int, Part]], work: Callable[[Part], list]) -> None:
    for number, part in parts:
        data = marshal.dumps(work(part))
        _write(pipe, _HEAD.pack(number, len(data)))
        _write(pipe, data)


def _write(pipe: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(pipe, rest) :]
