# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Work that outlasts the module that began it, so that the controller can show how far it is.

Most tasks are short, and do without all of this. If a task finds, under its locks, that its first change is going to move much data, it
gives the locks back, and its process makes a copy of itself. (A task that makes several changes does that at its beginning, because it
cannot begin anew after the first one.) The copy does the whole task, takes the locks, and makes the result, as the module alone would.
The first process waits for it, for a few seconds, and longer if hardly any data is left to move. If it ends in that time, the first
process passes the result on, byte for byte. If not, the first process ends, with a result that says where the work is (``_continue``).
The action plugin then looks at the files there, and at last calls the module again, which passes the result on.

Why not Ansible's ``async``? It would have to be decided before it is known how long a task takes, it costs more than a second, and
Ansible's wrapper goes on for ever if the controller dies. Why does the copy begin anew? Locks name the process that holds them, and a
lease that names one which has ended is taken away; threads are not copied; and the connection to a monitor belongs to one process.

The copy ends if nobody cares for it any more: at once if the first process is killed before it has ended, and after a minute if
nobody has looked in for so long, because the controller was killed or cannot be reached. It is killed like any task, at any instant,
and the next task ends what it began. A minute is less than the default of ``lock_timeout``. So the next task gets the lock.

The directory has these files: ``seen`` (touched by those who look in; if it is removed, the work is not wanted any more), ``process``,
``progress`` (JSON, anew each second) and ``result``.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import select
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from . import errors, progress

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

_LOOK = 1.0  # seconds between two notes of the progress
_SOON, _LONG, _AT_LATEST = 1.0, 5.0, 20.0  # seconds: what ends so soon is not handed over; what lasts or has taken so long is, whatever it does
_MUCH = 16 << 20  # bytes that are left, of which none have moved yet
_HANDED, _ENDED, _NAME = 0, 1, slice(2, 1024)  # in the memory that both share: two flags, and the name of the directory
_STDOUT, _STDERR = 1, 2  # descriptors
_CHILD_ENDS = {signal.SIGCHLD}


def begin(module: AnsibleModule, asked: dict) -> Worker | None:
    """Returns in the process that is to do the task. The first process ends here, with its result or with ``_continue``. If no copy can
    be made, None is returned in the first process, and that does the task.

    :param asked: ``seconds`` to wait for the end of the task, and ``patience``: seconds without a look, after which it is given up; or the
        ``place`` of one that was begun, whose result is wanted.
    """
    if "place" in asked:
        _collect(module, str(asked["place"]))
    began = time.monotonic()
    memory = mmap.mmap(-1, _NAME.stop + progress.SIZE)
    out, err = _scratch(), _scratch()
    attended, attending = os.pipe()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a parent may have made it ignored, and then nobody can wait
    gc.freeze()  # otherwise the garbage collector would write to memory that both share
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _CHILD_ENDS)  # it is waited for, and must not be lost until then
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(attended)
        os.close(attending)
        return None
    if pid:
        os.close(attended)
        _attend(module, pid, memory, (out, err), began, began + float(asked["seconds"]))
    os.close(attending)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.setsid()  # what ends the connection does not end the work
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, fd in enumerate((nothing, out, err)):
        os.dup2(fd, number)
    return Worker(memory, began, float(asked["patience"]), attended)


class Worker:
    """The copy that does the task. A context in which it ends: the result has been printed when that is left.

    ``meter`` notes how far the work is.
    """

    def __init__(self, memory: mmap.mmap, began: float, patience: float, attended: int) -> None:
        self._memory, self._began, self._patience, self._attended = memory, began, patience, attended
        self.meter = progress.Meter(memoryview(memory)[_NAME.stop :])
        self._has_ended, self._mutex = False, threading.Lock()
        self._watch = threading.Thread(target=self._be_watched, daemon=True)
        self._watch.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, _kind: object, error: object, _traceback: object) -> None:
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else int(error is not None)
        if error is not None and not isinstance(error, SystemExit):
            return  # Ansible makes a result of it, or Python a traceback
        sys.stdout.flush()
        sys.stderr.flush()
        self._memory[_ENDED] = 1
        if not self._memory[_HANDED]:
            os._exit(code)  # the first process cleans up
        self._note()
        with suppress(OSError):
            _write(self._directory, "result", b"%d\n%s" % (code, _content(_STDOUT)))
        self._has_ended = True
        self._watch.join()

    @property
    def _directory(self) -> str:
        return os.fsdecode(bytes(self._memory[_NAME]).rstrip(b"\0"))

    def _be_watched(self) -> None:
        """Note the progress, and look whether anybody cares. Runs in a thread of its own."""
        while not select.select([self._attended], [], [], _LOOK)[0]:
            self.meter.refresh()
        if not self._memory[_HANDED]:
            self._give_up()
        last, since = None, time.monotonic()
        while True:
            seen = _mark(self._directory)
            if seen is None or (seen == last and time.monotonic() - since > self._patience):
                break
            if seen != last:
                last, since = seen, time.monotonic()
            if not self._has_ended:
                self._note()
            time.sleep(_LOOK)
        shutil.rmtree(self._directory, ignore_errors=True)
        if not self._has_ended:
            self._give_up()

    def _note(self) -> None:
        self.meter.refresh()
        with self._mutex, suppress(OSError):
            _write(self._directory, "progress", json.dumps(_figures(self._memory, self._began)).encode())

    def _give_up(self) -> NoReturn:
        """Kill this process, its copies, and with them the programs that they run. The next task ends what was begun."""
        os.killpg(0, signal.SIGKILL)
        raise SystemExit  # not reached


def _attend(module: AnsibleModule, pid: int, memory: mmap.mmap, streams: tuple[int, int], began: float, until: float) -> NoReturn:
    """What the first process does: wait, and pass the result on, or say where the work is."""
    while True:
        left = until - time.monotonic()
        if left <= 0:
            if _goes_on(progress.read(memoryview(memory)[_NAME.stop :]), time.monotonic() - began):
                break
            left = _LOOK
        signal.sigtimedwait(_CHILD_ENDS, left)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            _pass_on(streams, status)
    directory = _hand_over(pid, memory, began)
    if memory[_ENDED] or directory is None:  # each of the two sets its flag before it looks at the other's
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        _pass_on(streams, os.waitpid(pid, 0)[1])
    try:
        _say_continue(module, directory, _figures(memory, began))
    except SystemExit:
        sys.stdout.flush()
    os._exit(0)  # without cleaning up: the archive that Ansible has made is the copy's now, which imports from it and removes it


def _goes_on(figures: progress.Figures, seconds: float) -> bool:
    """Whether a task that has run for so many seconds is worth watching: a second call of the module costs a slow host some seconds, too."""
    left = figures.total - figures.done
    waiting = (figures.items - figures.begun) * seconds / figures.begun  # seconds for items of which nobody knows the bytes yet
    if seconds > _AT_LATEST or figures.unknown or waiting > _LONG:
        return True
    return left * seconds / figures.done > _SOON if figures.done else left >= _MUCH


def _hand_over(pid: int, memory: mmap.mmap, began: float) -> str | None:
    """Make the directory. None if there is no room for one."""
    from .command import private_directory  # late: what short tasks do not need they do not import

    try:
        directory = private_directory()
        name = os.fsencode(directory)
        _write(directory, "process", f"{pid} {_started(pid)}".encode())
        _write(directory, "progress", json.dumps(_figures(memory, began)).encode())
        _write(directory, "seen", b"")
    except (errors.ToolFailed, OSError):
        return None
    memory[_NAME] = name.ljust(_NAME.stop - _NAME.start, b"\0")
    memory[_HANDED] = 1
    return directory


def _pass_on(streams: tuple[int, int], status: int) -> NoReturn:
    """End as the copy has ended, with what it has printed."""
    for number, fd in enumerate(streams, 1):
        _print(number, _content(fd))
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    raise SystemExit(os.WEXITSTATUS(status))


def _print(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _say_continue(module: AnsibleModule, directory: str, figures: dict) -> NoReturn:
    module.exit_json(changed=False, _continue={"place": directory, "progress": figures})
    raise AssertionError  # not reached


def _collect(module: AnsibleModule, directory: str) -> NoReturn:
    """Pass on the result of work that was begun before."""
    with suppress(OSError):
        code, _end, out = _read(directory, "result").partition(b"\n")
        _print(1, out)
        raise SystemExit(int(code))
    with suppress(OSError, ValueError):
        pid, started = _read(directory, "process").decode().split()
        if _started(int(pid)) == started:
            _say_continue(module, directory, json.loads(_read(directory, "progress")))
    error = errors.ToolFailed(
        "work of this task",
        "it was given up, because nobody had asked after it for a minute, or its process was killed",
        "run the task again; it ends what was begun",
    )
    module.fail_json(str(error), error_code=error.error_code, changed=False)
    raise AssertionError  # not reached


def _figures(memory: mmap.mmap, began: float) -> dict:
    """What is told of the progress. ``seconds``: for how long the task has run. :param began: monotonic."""
    return {**progress.read(memoryview(memory)[_NAME.stop :])._asdict(), "seconds": round(time.monotonic() - began, 3)}


def _started(pid: int) -> str:
    """When a process has started, as the kernel counts. Empty if it has ended, whether its parent knows or not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stream:
            words = stream.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return words[19] if words and words[0] not in "ZX" else ""


def _mark(directory: str) -> int | None:
    """When somebody has looked in last. None if the work is not wanted any more."""
    try:
        return os.stat(os.path.join(directory, "seen")).st_mtime_ns
    except OSError:
        return None


def _scratch() -> int:
    """The descriptor of a file without a name."""
    try:
        return os.memfd_create("remotefs-result")
    except (AttributeError, OSError):
        from .command import scratch_file

        with scratch_file("result") as stream:
            return os.dup(stream.fileno())


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _read(directory: str, name: str) -> bytes:
    with open(os.path.join(directory, name), "rb") as stream:
        return stream.read()


def _write(directory: str, name: str, data: bytes) -> None:
    """Write a file whole or not at all."""
    path = os.path.join(directory, name)
    with open(f"{path}.new", "wb") as stream:
        stream.write(data)
    os.replace(f"{path}.new", path)
