# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Divides reading among forked copies of this process, which send their results through pipes.

No result is lost if a copy dies or fails: this process does the parts that did not arrive whole, and so raises the original error,
if there was one. Copies end with this process, because writing to a closed pipe ends them.
"""

from __future__ import annotations

import marshal
from functools import partial
from typing import Callable, Iterator, Sequence, TypeVar

from ... import process_copies

Part = TypeVar("Part")


def in_processes(parts: Sequence[Part], work: Callable[[Part], list], processes: int) -> Iterator[list]:
    """Yield the list that ``work`` returns for each part, in any order.

    :param work: changes nothing, and returns a list of plain values (that marshal can write).
    :param processes: how many copies of this process work at the same time.
    """
    left = set(range(len(parts)))
    shares = [[(number, parts[number]) for number in range(first, len(parts), processes)] for first in range(processes)]
    with process_copies.started([partial(_hand_over, share, work) for share in shares]) as copies:
        for message in process_copies.messages(copies):
            number, found = marshal.loads(message)
            left.discard(number)
            yield found
    for number in sorted(left):
        yield work(parts[number])


def _hand_over(parts: list[tuple[int, Part]], work: Callable[[Part], list], send: process_copies.Send) -> None:
    for number, part in parts:
        send(marshal.dumps((number, work(part))))
