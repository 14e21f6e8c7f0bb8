# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shares reading out to copies of this process, which hand over what they found through pipes.

Nothing is lost with a copy that dies or fails: what it did not hand over whole is done in this process, which meets the error, if
it was one, in its own words. Copies end with this process: they have nobody to write to.
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
    """A copy of this process: its id, the end of a pipe that it writes to, and what came of a part so far."""

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid, self.pipe, self._come = pid, pipe, bytearray()

    def take(self) -> Iterator[tuple[int, list]]:
        """What has come whole: (number of the part, what was found). Waits for more of it to come.

        :raises EOFError: nothing more will come.
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
        """A copy that is still at work ends when it has something to write."""
        os.close(self.pipe)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # whoever started this task ignores the ends of children, and nothing is left of them


def in_processes(parts: Sequence[Part], work: Callable[[Part], list], processes: int) -> Iterator[list]:
    """What ``work`` finds in each part, in any order.

    :param work: changes nothing, and returns a list of plain values.
    :param processes: how many copies of this process work at the same time.
    """
    left = set(range(len(parts)))
    copies: list[_Copy] = []
    gc.freeze()  # or the collector would write to memory that the copies share
    try:
        try:
            for first in range(processes):
                copies.append(_start(copies, [(number, parts[number]) for number in range(first, len(parts), processes)], work))
        except OSError:
            pass  # no more processes or descriptors: what is left is done here
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
        os._exit(code)  # never back into what this process was about to do


def _hand_over(pipe: int, parts: list[tuple[int, Part]], work: Callable[[Part], list]) -> None:
    for number, part in parts:
        data = marshal.dumps(work(part))
        _write(pipe, _HEAD.pack(number, len(data)))
        _write(pipe, data)


def _write(pipe: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(pipe, rest) :]
