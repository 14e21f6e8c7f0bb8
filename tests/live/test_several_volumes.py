# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine that is named for several volumes, each by itself, and has only some of them: it counts for those, and nobody has the others."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import InUse
from ansible_collections.remotefs.storage.plugins.module_utils.operations import snapshots

from .guest import Guest, Live, digest, digest_of
from .libvirtd import LiveDomain
from .test_domain_refusals import refused
from .test_guide import play


def points(live: Live, name: str) -> set[str]:
    return {file.name for file in live.path.glob(f"{name}.*") if file.suffix != ".info"}


def test_tasks_on_a_group_that_a_machine_has_in_part(make: Callable[..., Live], tmp_path: Path, ansible_environment: dict) -> None:
    """What was taken as a group is thinned out, deleted and grown with the same words."""
    live = make("qcow2")
    common = {"share": str(live.path), "volumes": ["v", "other"]}
    made = {"share": str(live.path), "name": "other", "size": "4M", "format": "qcow2"}
    play([{"hosts": "localhost", "gather_facts": False, "tasks": [{"remotefs.storage.remotefs_volume": made}]}], tmp_path, ansible_environment)
    guest = live.start()
    guest.scribble(1)
    common["attachment"] = {"qmp": guest.socket}
    tasks: list[dict] = [{"remotefs.storage.remotefs_snapshot": {**common, "name": name}} for name in ("a", "b", "c")]
    tasks.append({"remotefs.storage.remotefs_snapshot": {**common, "name": "a", "state": "absent"}})
    tasks.append({"remotefs.storage.remotefs_snapshot": {**common, "keep": {"match": "*", "last": 1}}})
    grown = {**common, "size": "8M", "volumes": [{"name": "v"}, {"name": "other"}]}
    tasks.append({"remotefs.storage.remotefs_volume": grown})
    assert "changed=6" in play([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}], tmp_path, ansible_environment)
    assert "changed=0" in play([{"hosts": "localhost", "gather_facts": False, "tasks": tasks[3:]}], tmp_path, ansible_environment)
    assert points(live, "v") == {"v.c"} and points(live, "other") == {"other.c"}
    guest.data += bytes(4 << 20)
    guest.scribble(2)
    guest.kill()
    assert digest(str(live.path / "v.c"), "qcow2") == digest_of(guest.data)


def test_an_item_with_a_machine_of_its_own(make: Callable[..., Live], tmp_path: Path, ansible_environment: dict) -> None:
    """There the user says who has the volume, and that is checked."""
    live = make("qcow2")
    guest = live.start()
    made = {"share": str(live.path), "name": "other", "size": "4M", "format": "qcow2"}
    item = {"volume": "other", "name": "s", "attachment": {"qmp": guest.socket}}
    tasks = [{"remotefs.storage.remotefs_volume": made}]
    tasks.append({"remotefs.storage.remotefs_snapshot": {"share": str(live.path), "snapshots": [item]}, "register": "done", "ignore_errors": True})
    tasks.append({"ansible.builtin.assert": {"that": "done.results[0].error_code == 'in_use'"}})
    play([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}], tmp_path, ansible_environment)
    assert points(live, "other") == set()


def test_a_volume_that_another_machine_has(make: Callable[..., Live]) -> None:
    live = make("qcow2")
    live.snapshot("s")
    live.start()
    (live.path / "free").write_bytes(bytes(4096))
    other = Guest(str(live.path / "free"), "raw", bytearray(4096))
    try:
        for check in (True, False):
            with pytest.raises(InUse, match="has it open"):
                live.delete("s", attachment=other.socket, of_all=True, check=check)
        assert points(live, "v") == {"v.s"}
    finally:
        other.kill()


@pytest.mark.parametrize("runs", [True, False], ids=["running", "off"])
def test_a_domain_that_has_none_of_it(make_domain: Callable[..., LiveDomain], runs: bool) -> None:
    """A volume of nobody: the work is done on its files. Another domain's volume is refused, because its definition would not follow."""
    live, free, other = make_domain(), make_domain(), make_domain()
    live.run() if runs else live.define()
    mine = {"attachment": live.attachment, "of_all": True}
    free.snapshot("s", **mine)
    free.scribble(1)
    assert free.delete("s", **mine).changed
    free.snapshot("t", **mine)
    free.scribble(2)
    assert snapshots.revert(free.where, "v", "t", False, free.options(**mine)).changed
    assert digest(free.info()["path"], free.info()["format"]) == free.points["t"]
    other.define()
    told = refused(other, lambda **mode: other.take("s", **mine, **mode))
    assert f"domain {other.name} has it as a disk, and {live.attachment} does not" in told
    live.take("s", **mine)
    assert live.defined()[0] == "v.s"
