# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Instants of a task at which something is killed: before and after each command to QEMU that changes something, and each change of the share."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, nullcontext
from typing import Any, Callable, ContextManager, Iterator, NamedTuple
from unittest import mock

from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.client import Monitor
from ansible_collections.remotefs.storage.plugins.module_utils.apply.live.guardian import Guardian
from ansible_collections.remotefs.storage.plugins.module_utils.store.files import directory as directories

_ASKING = ("query-", "x-debug-query", "qmp_capabilities", "qom-list", "qom-get")
VICTIMS = ("module", "group", "machine", "both", "guardian too")


class Instant(NamedTuple):
    """The ``number``-th instant of a task, and what it is."""

    number: int
    what: str


class Counting:
    """Calls ``reached`` at each instant."""

    def __init__(self, reached: Callable[[Instant], None]) -> None:
        self._reached, self._count = reached, 0

    def _at(self, what: str) -> None:
        self._reached(Instant(self._count, what))
        self._count += 1

    def around(self, original: Callable, name_of: Callable[..., str | None]) -> Callable:
        def called(*args: Any, **kwargs: Any) -> Any:
            what = name_of(*args, **kwargs)
            if what is None:
                return original(*args, **kwargs)
            self._at(f"before {what}")
            done = original(*args, **kwargs)
            self._at(f"after {what}")
            return done

        return called


More = Callable[[Counting], ContextManager[None]]


def _nothing_more(_count: Counting) -> ContextManager[None]:
    return nullcontext()


@contextmanager
def watched(reached: Callable[[Instant], None], more: More = _nothing_more) -> Iterator[None]:
    """A context in which ``reached`` is called at each instant of a task. ``more`` finds further ones."""
    count = Counting(reached)
    share, folder = directories.ShareDirectory, directories.Directory
    run = count.around(Monitor.run, lambda _self, command, **_arguments: None if command.startswith(_ASKING) else command)
    replace = count.around(share.replace, lambda _self, _temporary, name, *_more: f"rename of {name}")
    publish = count.around(share.publish, lambda _self, _temporary, name: f"publishing {name}")
    unlink = count.around(folder.unlink, lambda _self, name: f"removal of {name}" if "~" not in name else None)
    with mock.patch.object(Monitor, "run", run), mock.patch.object(share, "replace", replace), more(count):
        with mock.patch.object(share, "publish", publish), mock.patch.object(folder, "unlink", unlink):
            yield


def instants(task: Callable[[], object], more: More = _nothing_more) -> list[Instant]:
    """All instants of a task, which is done."""
    found: list[Instant] = []
    with watched(found.append, more):
        task()
    return found


def killed_at(task: Callable[[], object], number: int, victim: str, machine: int, more: More = _nothing_more, kind: type = Guardian) -> None:
    """Do a task in a child process, and kill one or several of those who take part at an instant of it.

    :param machine: the process of QEMU. :param more: finds further instants. :param kind: of the guardian.
    """
    guardians: list[int] = []
    task_pid = 0
    made = kind.__init__

    def noted(self: Any, *args: Any) -> None:
        made(self, *args)
        guardians.append(self.pid)

    def reached(instant: Instant) -> None:
        if instant.number != number or os.getpid() != task_pid:  # a guardian has instants of its own
            return
        if victim in ("machine", "both"):
            os.kill(machine, signal.SIGKILL)
        if victim == "guardian too":
            for guardian in guardians:
                os.kill(guardian, signal.SIGKILL)
        if victim == "group":
            os.killpg(0, signal.SIGKILL)
        if victim != "machine":
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        task_pid = os.getpid()
        try:
            os.setpgid(0, 0)
            with watched(reached, more), mock.patch.object(kind, "__init__", noted):
                task()
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.waitpid(child, 0)
