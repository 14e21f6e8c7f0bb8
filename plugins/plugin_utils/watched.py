# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the action plugins of modules share whose work can take long: they show how far it is, on the controller's standard error.

The module is called as always, and told how long to wait for its own end. If its work takes longer, it answers ``_continue``, and the work
goes on in a process of its own on the host (see module_utils/background.py). Then this looks at files of that process with a small shell
command that waits on the host, and at last calls the module again for the result. A task that is short is called once, and no more.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import time
from contextlib import contextmanager, suppress
from typing import Iterator

from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import merge_hash

from ansible_collections.remotefs.storage.plugins.plugin_utils.progress_lines import Teller

IS_TERMINAL = os.isatty(2)  # asked before Ansible starts the processes that run tasks, which have no terminal
_SECONDS = 3.0  # after which work is long
_LOOK, _LOOK_SELDOM = 2, 10  # seconds for which one look waits on the host, on a terminal and elsewhere
_NAPS = 5  # looks at the files in a second of that
_PATIENCE = 60.0  # seconds without a look, after which the work is given up
_ATTEMPTS = 50.0  # seconds to try again if the connection is lost
_PAUSE = 2.0  # seconds between two attempts
_STUCK = 30.0  # seconds without news after which the module is asked whether its process is there
_END = "END"
_FILES = "seen process progress progress.new result result.new"  # what a host says is its directory is not removed with all that is in it
_LOST = (
    "{error}\nThe connection was lost while the module worked. Its work on the host is given up a minute after the last look at it. "
    "Run the task again; it ends what was begun."
)


class _Interrupted(BaseException):
    """Somebody ends the playbook."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class WatchedAction(ActionBase):
    """Runs the module of the task, and shows its progress where that is wanted."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp=None, task_vars=None):
        """Run the module and return its result. It is the same as without progress."""
        result = super().run(tmp, task_vars)
        wrap_async = self._task.async_val and not self._connection.has_native_async
        if self._is_wanted():
            own = self._watched(task_vars or {})
        else:
            own = self._execute_module(task_vars=task_vars, wrap_async=wrap_async)
        result = merge_hash(result, own)
        if not wrap_async:
            self._remove_tmp_path(self._connection._shell.tmpdir)
        return result

    def _is_wanted(self) -> bool:
        said = boolean(self._task.args.get("progress", True), strict=False)
        return said and not (self._task.check_mode or self._task.no_log or self._task.async_val)

    def _call(self, task_vars: dict, **asked) -> dict:
        return self._execute_module(module_args={**self._task.args, "_progress": asked}, task_vars=task_vars)

    def _watched(self, task_vars: dict) -> dict:
        result = self._call(task_vars, seconds=_SECONDS, patience=_PATIENCE)
        if "_continue" not in result:
            return result
        told = result["_continue"]
        try:
            with _interruptible():
                return self._rest(task_vars, str(told["place"]), told["progress"])
        except _Interrupted as error:
            os.kill(os.getpid(), error.number)  # the handler that is there again does the rest
            raise

    def _rest(self, task_vars: dict, directory: str, figures: dict) -> dict:
        """Show the progress of work in this directory of the host, and return its result."""
        teller, result = self._teller(task_vars), None
        try:
            teller.tell(figures)
            while result is None or "_continue" in result:
                figures = self._until_ended(directory, teller, figures)
                result = self._patiently(lambda: self._call(task_vars, place=directory))
        finally:
            teller.end(figures if result is not None and not result.get("failed") else None)
            self._dismiss(directory)
        return result

    def _teller(self, task_vars: dict) -> Teller:
        host = str(task_vars.get("inventory_hostname", ""))
        delegated = f" -> {self._task.delegate_to}" if self._task.delegate_to else ""
        display = Display()
        alone = IS_TERMINAL and len(task_vars.get("ansible_play_batch") or [host]) == 1

        def write(text: str) -> None:
            display.display(text, stderr=True, newline=False, screen_only=alone)

        return Teller(f"{host}{delegated}: {self._task.action.rpartition('.')[2]}", write, display.columns if alone else None)

    def _until_ended(self, directory: str, teller: Teller, figures: dict) -> dict:
        """Look at the work until it has ended, or until there is no news of it. Returns the last figures."""
        since = time.monotonic()
        while time.monotonic() - since < _STUCK:
            found = self._patiently(lambda: self._look(directory))
            told, _sep, end = found.partition("\n")
            try:
                now = json.loads(told)
            except ValueError:
                return figures
            if not isinstance(now, dict):
                return figures
            if now != figures:
                since = time.monotonic()
            figures = now
            if end.strip() == _END:
                break
            teller.tell(figures)
        return figures

    def _look(self, directory: str) -> str:
        """What the work says of itself, after some seconds or when it has ended. Empty if it is not there any more."""
        naps = _NAPS * (_LOOK if IS_TERMINAL else _LOOK_SELDOM)
        wait = f"n=0; while [ ! -e result ] && [ $n -lt {naps} ]; do sleep {1 / _NAPS}; n=$((n+1)); done"
        end = f"if [ -e result ]; then echo {_END}; fi"
        command = f"cd {shlex.quote(directory)} && touch -c seen && {{ {wait}; cat progress && echo && {end}; }}"
        return self._low_level_execute_command(command)["stdout"]

    def _dismiss(self, directory: str) -> None:
        """Tell the host that nobody waits for the work any more. What is still at work there is killed, and the next task ends it."""
        with suppress(Exception):
            self._low_level_execute_command(f"cd {shlex.quote(directory)} && rm -f {_FILES}; rmdir {shlex.quote(directory)}")

    def _patiently(self, call):
        """The result of ``call``, which is tried again for a while if there is no connection."""
        until = time.monotonic() + _ATTEMPTS
        while True:
            try:
                return call()
            except AnsibleConnectionFailure as error:
                if time.monotonic() > until:
                    raise AnsibleConnectionFailure(_LOST.format(error=error)) from error
                time.sleep(_PAUSE)


@contextmanager
def _interruptible() -> Iterator[None]:
    """A context in which the signals that end a playbook raise an exception instead, so that the work on the host can be dismissed."""

    def interrupt(number: int, _frame: object) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # Ansible sends both
        raise _Interrupted(number)

    before = dict.fromkeys((signal.SIGINT, signal.SIGTERM))
    before = {number: signal.signal(number, interrupt) for number in before}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
