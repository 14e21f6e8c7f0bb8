# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task imports: on the host Ansible compiles every module of the collection anew in each task, from an archive.

So the way to a fast task is to import little. Counted are modules, not seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .measuring import environment, run_module

_PREFIX = "ansible_collections.remotefs.storage.plugins."
_PROGRAM = f"""
import atexit, json, runpy, sys
import ansible.module_utils.basic
before = set(sys.modules)
atexit.register(lambda: print(json.dumps(sorted(set(sys.modules) - before)), file=sys.stderr))
runpy.run_module({_PREFIX!r} + "modules.MODULE", run_name="__main__")
"""
_SLOW = {"asyncio", "concurrent.futures", "difflib", "multiprocessing", "pwd", "resource", "socketserver", "unittest"}


def imported(module: str, parameters: dict) -> set[str]:
    """What the module imports beyond Ansible's own part, until the task ends well."""
    given = json.dumps({"ANSIBLE_MODULE_ARGS": parameters})
    program = _PROGRAM.replace("MODULE", module)
    ran = subprocess.run([sys.executable, "-c", program], input=given, text=True, capture_output=True, env=environment(), check=False)
    assert ran.returncode == 0 and not json.loads(ran.stdout)["changed"], ran.stdout + ran.stderr
    return set(json.loads(ran.stderr.splitlines()[-1]))


def own(names: set[str]) -> set[str]:
    return {name[len(_PREFIX) :] for name in names if name.startswith(_PREFIX) and "." in name[len(_PREFIX) :]}


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With one volume that has a snapshot."""
    path = str(tmp_path_factory.mktemp("share"))
    run_module("remotefs_volume", {"share": [path], "name": "vol", "size": "1M"})
    run_module("remotefs_snapshot", {"share": [path], "volume": "vol", "name": "s"})
    return path


@pytest.mark.parametrize("module", ["remotefs_volume_info", "remotefs_snapshot_info"])
def test_reading(share: str, module: str) -> None:
    found = imported(module, {"share": [share]})
    parts = {name.split(".")[1] for name in own(found) if name.startswith("module_utils.")}
    assert not parts & {"apply", "plan", "command"}, "reading needs nothing of what plans and applies"
    unwanted = {
        "module_utils.store.lock",
        "module_utils.operations.transaction",
        "module_utils.operations.volumes",
        "module_utils.mounts.probe",
    }
    assert not own(found) & unwanted and not found & _SLOW
    assert len(own(found)) <= 28, sorted(own(found))


@pytest.mark.parametrize(
    "module, parameters",
    [("remotefs_volume", {"name": "vol", "size": "1M"}), ("remotefs_snapshot", {"volume": "vol", "name": "s"})],
)
def test_nothing_to_change(share: str, module: str, parameters: dict) -> None:
    found = imported(module, {"share": [share], **parameters})
    unwanted = {"executor", "offline", "qemu_img", "allocate"}
    assert not own(found) & {f"module_utils.apply.{name}" for name in unwanted} and "module_utils.command" not in own(found)
    assert not found & (_SLOW - {"pwd"}) and "module_utils.operations.bulk" not in own(found)
    assert len(own(found)) <= 44, sorted(own(found))
