# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads a share that may never answer.

A system call on a dead server cannot be interrupted, and a thread that waits in one keeps its process from ending. So a copy of this process reads.
It is given up, and killed, when nothing was heard of it for too long.
"""

from __future__ import annotations

import pickle
import select
import time
from typing import Callable, TypeVar

from . import errors, process_copies

Alive = Callable[[], None]
Found = TypeVar("Found")
_SHORTEST = 0.1  # seconds that are waited in any case
_SLICE = 1.0  # seconds after which given up copies are looked at
_SIGNS = 0.1  # seconds from one sign of life to the next one


def heard_by_nobody() -> None:
    """What a reader calls whose time nobody limits."""


def within(seconds: float, read: Callable[[Alive], Found], subject: str) -> Found:
    """What ``read`` returns. A copy of this process calls it, which has no descriptor of this process and dies with it.

    :param seconds: how long nothing may be heard of the copy.
    :param read: gets a function to call whenever something was read. The time begins anew then, so that a large share has more of it than a dead one.
        It changes nothing in this process. What it returns must be known to pickle. Copies that it starts may call that function, too.
    :param subject: what is read, for messages.
    :raises ShareNotMounted: nothing was heard of it for that long. :raises ToolFailed: the copy died, or ``read`` has a fault.
    :raises StorageError, OSError: as ``read``; an OSError also if no copy can be started.
    """
    copy = process_copies.start_apart(lambda send: send(_answer(read, send, subject)))
    try:
        answer = _await(copy, max(seconds, _SHORTEST))
    except EOFError:
        raise errors.ToolFailed(subject, "the process that read it was killed", "see the kernel log of this host, and run the task again") from None
    finally:
        copy.give_up()
    if answer is None:
        raise errors.ShareNotMounted(subject, f"it does not answer within {seconds:.0f} s", "check its server, or mount it again with state: remounted")
    found, error = pickle.loads(answer)
    if error is not None:
        raise error
    return found


def _await(copy: process_copies.Copy, seconds: float) -> bytes | None:
    """The copy's answer. None: nothing was heard of it for that long. :raises EOFError: it has ended without one."""
    poll = select.poll()
    poll.register(copy.pipe, select.POLLIN)
    end = time.monotonic() + seconds
    while True:
        left = end - time.monotonic()
        if left <= 0:
            return None
        if poll.poll(int(min(left, _SLICE) * 1000) + 1):
            end = time.monotonic() + seconds
            for message in copy.take():
                if message:  # one without a byte is a sign of life
                    return message
        process_copies.reap_given_up()


def _answer(read: Callable[[Alive], object], send: process_copies.Send, subject: str) -> bytes:
    """Runs in the copy: what was read and None, or None and the error."""
    told = time.monotonic()

    def alive() -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _SIGNS:
            told = now
            send(b"")

    try:
        return pickle.dumps((read(alive), None))
    except (errors.StorageError, OSError) as error:
        return pickle.dumps((None, error))
    except Exception as error:  # a fault, of which only the text can be sent for sure
        return pickle.dumps((None, errors.as_storage_error(error, subject)))
