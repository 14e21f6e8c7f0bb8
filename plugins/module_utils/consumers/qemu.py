# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines of QEMU on this host, without any service: they are started, found and ended.

A machine is known by its process, whose command line names the machine's folder. So it is found whatever task started it, and whenever that
was killed. Its folder has been made before, with a record.
"""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Callable, Sequence

from .. import command, errors
from ..apply import quiescing
from ..apply.live import client
from . import answering, described, processes, run_directory
from .command_line import CONSOLE, CONSOLE_SIZE, command_line
from .processes import Process, has_ended, runs

_START = 60.0  # seconds for QEMU to open its disks, which may be on a slow share
_END = 15.0  # seconds for QEMU to end by itself, and again for the kernel to end it
_PAUSE = 0.02  # seconds
_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s+\S+\s+(\d+)")  # what ``info usernet`` prints of a forwarded port
_LINES, _LONGEST_LINE = 8, 200  # how much of a console a message shows
_LAST_LINES = 3  # and of QEMU's own words
_HALTED = {"internal-error", "io-error", "guest-panicked", "shutdown", "watchdog"}  # QEMU's states (RunState) in which nothing goes on by itself
_NO_DAEMON = "leave out arguments such as -daemonize, -runas and -chroot"
_TAKEN, _NO_SANDBOX = "host forwarding rule", "sandbox"  # in QEMU's words, when a port is taken, and when it has no sandbox


def find(place: run_directory.Place, pid: int = 0) -> Process | None:
    """The machine of this folder, if it runs. :param pid: its process as it was known last, which is looked at first."""
    return processes.find(partial(_is_of, place), place.folder, pid)


def _is_of(place: run_directory.Place, words: Sequence[bytes]) -> bool:
    marks = [number for number, word in enumerate(words) if word == b"-pidfile"]
    return any(words[number + 1 : number + 2] == [os.fsencode(place.pid)] for number in marks)


def start(wanted: described.Wanted, emulator: described.Emulator, place: run_directory.Place, ports: dict[int, int], warn: Callable[[str], None]) -> None:
    """Start a machine, and return when QEMU has opened its disks. It outlives this task. :raises ToolFailed: it cannot be started, with QEMU's own words.

    :raises InUse: a disk of it is open elsewhere. :param ports: of the host, by those of the guest, which are taken if they are free.
    """
    for name in (place.pid, place.monitor, place.agent):
        try:
            os.unlink(name)  # what a machine that was killed has left
        except FileNotFoundError:
            pass
        except OSError as error:
            raise errors.ToolFailed(
                f"machine {place.name}", f"{name} is in the way and cannot be removed ({error.strerror})", f"remove {place.folder}"
            ) from error
    sandbox, known = True, ports
    while True:
        failed = _launched(place, command_line(wanted, emulator, place, known, sandbox))
        if failed is None:
            return
        if known and _TAKEN in failed.err:
            known = {}
        elif sandbox and _NO_SANDBOX in failed.err:
            sandbox = False
            warn(f"{emulator.program} was built without a sandbox, so that machines run without one")
        else:
            raise _not_started(wanted, failed)


def _launched(place: run_directory.Place, argv: list[str]) -> command.Result | None:
    """Start QEMU, which outlives this task, and return when its monitor answers; or what it said if it has ended. :raises ToolFailed: neither."""
    process, until = command.Detached(argv), time.monotonic() + _START
    try:
        while True:
            failed = process.ended()
            if failed is not None:
                return failed
            if _greets(place, process.pid):
                return None
            if time.monotonic() > until:
                os.kill(process.pid, signal.SIGKILL)
                raise _mute(place)
            time.sleep(_PAUSE)
    finally:
        process.let_go()


def _await_monitor(place: run_directory.Place, process: Process) -> None:
    """Wait for a machine that another task had only just started when it was killed. :raises ToolFailed: it does not come to answer."""
    until = time.monotonic() + _START
    while runs(process) and not _greets(place, process.pid):
        if time.monotonic() > until:
            raise _mute(place)
        time.sleep(_PAUSE)


def _mute(place: run_directory.Place) -> errors.ToolFailed:
    return errors.ToolFailed(f"machine {place.name}", f"QEMU does not answer within {_START:g} s of its start", "look at the share's server")


def _greets(place: run_directory.Place, pid: int) -> bool:
    """Whether the monitor is that of this process, which has opened its disks then."""
    try:
        monitor = client.connect(place.monitor)
    except (errors.InUse, errors.ToolFailed):
        return False
    if monitor is None:
        return False
    with monitor:
        return monitor.pid == pid


def _not_started(wanted: described.Wanted, result: command.Result) -> errors.ToolFailed | errors.InUse:
    subject = f"machine {wanted.name}"
    if "Failed to get" in result.err and "lock" in result.err:
        return errors.InUse(subject, f"a disk of it is open elsewhere ({result.reason})", "end what has it open, and run the task again", result.details)
    if result.rc == -signal.SIGSYS:
        return errors.ToolFailed(subject, "QEMU's sandbox ended it, because it was to do what no machine needs", _NO_DAEMON, result.details)
    said = " / ".join(quiescing.shown(line, _LONGEST_LINE) for line in result.err.splitlines()[-_LAST_LINES:])
    if not said:
        problem = f"{os.path.basename(result.argv[0])} ended at once (status {result.rc}) and said nothing"
        return errors.ToolFailed(subject, problem, "see whether it is QEMU, and look at board, accelerators and arguments", result.details)
    return errors.ToolFailed(subject, f"QEMU does not start: {said}", "mend what it names (memory, accelerators, board, listen, arguments)", result.details)


def stop(place: run_directory.Place, process: Process, patience: float) -> None:
    """End a machine, and return when its process is gone.

    :param patience: seconds for the guest to shut down; 0: it is not asked. :raises InUse: the kernel cannot end its process.
    """
    if patience > 0 and _tell(place, process, "system_powerdown") and has_ended(process, patience):
        return
    if _tell(place, process, "quit") and has_ended(process, _END):
        return
    if runs(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    if not has_ended(process, _END):
        problem = f"its process {process.pid} does not end, because the kernel waits for a server"
        raise errors.InUse(f"machine {place.name}", problem, "bring the share's server back, or restart this host")


def _tell(place: run_directory.Place, process: Process, verb: str) -> bool:
    """Whether the monitor took a command that ends the machine."""
    try:
        monitor = client.connect(place.monitor)
        if monitor is None:
            return False
        with monitor:
            if monitor.pid != process.pid:
                return False
            monitor.run(verb)
        return True
    except client.Lost:
        return True  # it may have ended before it could answer
    except (errors.InUse, errors.ToolFailed, client.QmpError, client.Strange):
        return False


def ask(place: run_directory.Place, verb: str, **arguments: Any) -> Any:
    """The answer of a machine's monitor. :raises ToolFailed: it gives none. :raises InUse: another program is connected to it."""
    subject = f"machine {place.name}"
    try:
        monitor = client.connect(place.monitor)
        if monitor is None:
            raise errors.ToolFailed(subject, "its monitor is not there any more", "run the task again")
        with monitor:
            return monitor.run(verb, **arguments)
    except (client.Lost, client.QmpError, client.Strange) as error:
        raise errors.ToolFailed(subject, f"its monitor gives no answer ({error})", "run the task again") from error


def forwarded(place: run_directory.Place) -> dict[int, int]:
    """The ports of the host at which those of the guest can be reached, by the latter. :raises ToolFailed, InUse: as :func:`ask`."""
    told = ask(place, "human-monitor-command", command_line="info usernet")
    return {int(inside): int(outside) for outside, inside in _FORWARD.findall(told if isinstance(told, str) else "")}


def console(place: run_directory.Place) -> str:
    """The last lines that the guest wrote to its console since somebody asked, harmless for a terminal. Empty if nobody can tell."""
    try:
        told = ask(place, "ringbuf-read", device=CONSOLE, size=CONSOLE_SIZE, format="utf8")
    except (errors.ToolFailed, errors.InUse):
        return ""
    lines = [line.strip() for line in told.splitlines() if line.strip()] if isinstance(told, str) else []
    return " / ".join(quiescing.shown(line, _LONGEST_LINE) for line in lines[-_LINES:])


class Qemu:
    """The :class:`consumer.Consumer` of QEMU alone. :param emulator: how machines are started; None: none is."""

    name = described.QEMU

    def __init__(self, emulator: described.Emulator | None, warn: Callable[[str], None]) -> None:
        self._emulator, self._warn = emulator, warn

    def runs(self, place: run_directory.Place, record: described.Record) -> bool:
        """See :meth:`consumer.Consumer.runs`."""
        return find(place, record.pid) is not None

    def prepared(self, record: described.Record) -> described.Record:
        """See :meth:`consumer.Consumer.prepared`."""
        return replace(record, listen=self._emulator.listen if self._emulator is not None else None)

    def start(self, wanted: described.Wanted, place: run_directory.Place, record: described.Record) -> described.Record:
        """See :meth:`consumer.Consumer.start`."""
        if self._emulator is None:
            raise AssertionError("nobody said how machines are started")
        emulator = replace(self._emulator, program=command.find(self._emulator.program, "of QEMU for this architecture, such as qemu-system-x86"))
        start(wanted, emulator, place, {int(inside): outside for inside, outside in record.ports.items()}, self._warn)
        return self.known(place, record)

    def known(self, place: run_directory.Place, record: described.Record) -> described.Record:
        """See :meth:`consumer.Consumer.known`."""
        process = find(place, record.pid)
        if process is None or process.pid == record.pid:
            return record
        _await_monitor(place, process)
        return replace(record, pid=process.pid, ports={str(inside): outside for inside, outside in forwarded(place).items()})

    def stop(self, place: run_directory.Place, record: described.Record, patience: float) -> None:
        """See :meth:`consumer.Consumer.stop`."""
        process = find(place, record.pid)
        if process is not None:
            stop(place, process, patience)

    def told(self, place: run_directory.Place, record: described.Record) -> dict:
        """See :meth:`consumer.Consumer.told`."""
        process = find(place, record.pid)
        return {
            "kind": described.QEMU,
            "pid": process.pid if process is not None else None,
            "qmp": place.monitor,
            "agent": place.agent,
            "host": record.listen,
            "ports": dict(record.ports),
            "port": record.ports.get(str(described.SSH_PORT)),
        }

    def usual_sign(self, wanted: described.Wanted) -> str:
        """See :meth:`consumer.Consumer.usual_sign`."""
        return answering.SSH

    def answers(self, place: run_directory.Place, record: described.Record, sign: str) -> Callable[[], bool]:
        """See :meth:`consumer.Consumer.answers`."""
        if sign == answering.AGENT:
            return partial(answering.agent_answers, place.agent)
        port = record.ports.get(str(described.SSH_PORT))
        if port is None:
            problem = "no port of this host leads to port 22 of the guest"
            raise errors.InvalidParameter("option wait_for", problem, "add 22 to ports and start it anew, or wait for agent or none")
        return partial(answering.says_ssh, record.listen or "", port)

    def halted(self, place: run_directory.Place, record: described.Record) -> str:
        """See :meth:`consumer.Consumer.halted`."""
        try:
            status = ask(place, "query-status")
        except (errors.ToolFailed, errors.InUse):
            return ""
        told = status.get("status") if isinstance(status, dict) else None
        return told if told in _HALTED else ""

    def last_words(self, place: run_directory.Place) -> str:
        """See :meth:`consumer.Consumer.last_words`."""
        return console(place)
