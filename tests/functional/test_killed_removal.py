# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A removal that was killed between two files reads as pending, says what to do, and is ended by the next task."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.executor import Executor
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome

from .test_clones import write
from .test_refusals import MIB, Store


@pytest.mark.parametrize("last", ["vol.s2", "vol.s1", "vol", "vol.info"])
def test_a_killed_cascade_removal_is_pending(tmp_path: Path, last: str) -> None:
    store = Store(tmp_path)
    store.present(size=MIB)
    store.snapshot("s1")
    store.snapshot("s2")
    child = os.fork()
    if child == 0:
        unlink = os.unlink

        def killed(name: str, **where: int) -> None:
            unlink(name, **where)
            if name == last:
                os.kill(os.getpid(), signal.SIGKILL)

        os.unlink = killed
        store.absent(cascade=True)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    told = [one for one in reading.list_volumes(store.share, []) if one["name"] == "vol"]
    if told:  # the last name may be gone, and then there is no volume
        assert told[0]["pending"]["operation"] == "delete_volume"
        assert "error_code" not in told[0] or "delete_volume was interrupted" in told[0]["msg"]
    assert told or last == "vol.info"
    done = store.absent(cascade=True)
    assert done.changed and [one["operation"] for one in done.recovered] == ["delete_volume"]
    assert [path.name for path in store.path.iterdir()] == [".remotefs"]


def told(one: object) -> tuple:
    """What a task would do, or why it would not."""
    assert isinstance(one, (Outcome, errors.StorageError))
    if isinstance(one, errors.StorageError):
        return one.error_code, one.problem
    return one.changed, [(each["operation"], each["outcome"]) for each in one.recovered], [step["step"] for step in one.actions]


def result_of(action: Callable[[], object]) -> object:
    try:
        return action()
    except errors.StorageError as error:
        return error


NEXT: dict[str, Callable[[Store, bool], object]] = {
    "absent": lambda store, check: store.absent(check=check),
    "absent with all": lambda store, check: store.absent(cascade=True, check=check),
    "delete the other": lambda store, check: store.delete("s2", check=check),
    "revert": lambda store, check: store.revert("s2", discard=True, check=check),
    "grow": lambda store, check: store.present(size=2 * MIB, check=check),
}


@pytest.mark.slow
@pytest.mark.parametrize("then", NEXT)
@pytest.mark.parametrize("failing", ["write_intent", "commit", "pull", "repoint", "write_info", "write_record", "unlink"])
@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
@pytest.mark.parametrize("names", [("s1",), ("s1", "s2"), ("s2",)])
def test_check_mode_after_an_interrupted_deletion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], image_format: str, failing: str, then: str
) -> None:
    """The files of a half-done deletion are the volume's own, for a prediction as well as for the run."""
    store = Store(tmp_path)
    store.present(size=MIB, format=image_format)
    for name in ("s1", "s2"):
        write(store, "vol", 1)
        store.snapshot(name)
    logged = Executor._logged

    def fail(self: Executor, volume: str, entry: dict) -> object:
        if entry["step"] == failing:
            raise errors.ToolFailed("this test", "it planted a failure", "go on")
        return logged(self, volume, entry)

    monkeypatch.setattr(Executor, "_logged", fail)
    with suppress(errors.ToolFailed):
        store.delete(*names)
    monkeypatch.setattr(Executor, "_logged", logged)
    predicted = result_of(lambda: NEXT[then](store, True))
    assert told(predicted) == told(result_of(lambda: NEXT[then](store, False)))
