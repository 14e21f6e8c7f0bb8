# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A removal that was killed between two files reads as pending, says what to do, and is ended by the next task."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading

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
