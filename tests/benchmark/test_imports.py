# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task imports: on the host Ansible compiles every module of the collection anew in each task, from an archive.

So the way to a fast task is to import little. Counted are modules and their lines of code, not seconds: a limit that is met exactly
is raised only with a reason. Comments and docstrings cost next to nothing, and are not counted.
"""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tokenize

import pytest

from .measuring import CHECKOUT, environment, run_module

_PREFIX = "ansible_collections.remotefs.storage.plugins."
_PROGRAM = f"""
import atexit, json, runpy, sys
import ansible.module_utils.basic
before = set(sys.modules)
atexit.register(lambda: print(json.dumps(sorted(set(sys.modules) - before)), file=sys.stderr))
runpy.run_module({_PREFIX!r} + "modules.MODULE", run_name="__main__")
"""
# Reading any directory asks the table of file systems that are a host's alone, the one that says what a mount of a server is, and which
# loop devices and their like the kernel has open.
# Whether a file is the recorded one is asked of every image without another one above it, and what cannot be read is waited for together.
# The folders of store/ are a package each, which is an empty file; locks and the verbs of a change have rooms of their own.
# What a change does and what check mode predicts are two classes with the same verbs (34 lines); the shapes of results are named (5).
# A task that is going to take long begins anew in a process that is watched, if anybody wants to see how far it is (25).
# A file that another host replaces at that moment is read again (1 module, 61).
# Each snapshot has an identity, and the record of its volume says of which files (25).
# A volume may have been made under a lease: a mark, which counts only for that file, two errors, and how times are written (31).
# The rows of file systems that have servers are not read for a directory.
MODULES_READ, LINES_READ = 34, 3140
# That a guest is to be frozen, and how its agent is reached, is an option, its check and its result (3). A machine can be a domain, for
# which the task may have to go on under another Python (24).
# A volume may be on its way from another share, and its points have checksums (25).
# A volume may be made from an image: two errors, its place in a request, and what goes at the end of the task (20).
# The row of each file system says what a mount helper takes of the options that its mount shows, or hides (9).
# Identities of snapshots, and where a source is that is not on the shares of its clone (60).
# A task may work under a lease (60).
# New volumes can be placed in three ways (2).
MODULES_UNCHANGED, LINES_UNCHANGED = 45, 3952
_SLOW = {"asyncio", "concurrent.futures", "difflib", "multiprocessing", "pwd", "resource", "socketserver", "unittest"}


def imported(module: str, parameters: dict, changed: bool = False) -> set[str]:
    """What the module imports beyond Ansible's own part, until the task ends well. :param changed: whether it changes anything."""
    given = json.dumps({"ANSIBLE_MODULE_ARGS": parameters})
    program = _PROGRAM.replace("MODULE", module)
    ran = subprocess.run([sys.executable, "-c", program], input=given, text=True, capture_output=True, env=environment(), check=False)
    assert ran.returncode == 0 and json.loads(ran.stdout)["changed"] == changed, ran.stdout + ran.stderr
    return set(json.loads(ran.stderr.splitlines()[-1]))


def lines(names: set[str]) -> int:
    """Lines of code of the collection's own modules among these."""
    files = [CHECKOUT.joinpath("plugins", *name.split(".")).with_suffix(".py") for name in own(names)]
    return sum(code_lines(path.read_text()) for path in files if path.exists())


def code_lines(text: str) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef)
    firsts = [node.body[0] for node in ast.walk(ast.parse(text)) if isinstance(node, holders) and ast.get_docstring(node, clean=False)]
    prose = {line for first in firsts for line in range(first.lineno, (first.end_lineno or 0) + 1)}
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    code = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in layout]
    return len({line for token in code for line in range(token.start[0], token.end[0] + 1)} - prose)


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
    unwanted = {"changes", "results", "store.locks.lock", "store.qcow2.writing", "store.qcow2.tables", "store.volumes.forked_readers"}
    unwanted |= {"mounts.probe", "mounts.fstab"}
    assert not own(found) & {f"module_utils.{name}" for name in unwanted} and not found & _SLOW
    assert not own(found) & {f"module_utils.operations.{name}" for name in ("transaction", "volumes", "placement")}
    assert len(own(found)) <= MODULES_READ, sorted(own(found))
    assert lines(found) <= LINES_READ, sorted(own(found))


@pytest.mark.parametrize(
    "module, parameters",
    [("remotefs_volume", {"name": "vol", "size": "1M"}), ("remotefs_snapshot", {"volume": "vol", "name": "s"})],
)
def test_nothing_to_change(share: str, module: str, parameters: dict) -> None:
    """A plan that has no steps needs no rules and no steps, and where no task was interrupted there is nothing to recover."""
    found = imported(module, {"share": [share], **parameters})
    parts = {name.partition(".")[2] for name in own(found) if name.startswith("module_utils.")}
    assert {name for name in parts if name.startswith("plan.")} <= {"plan.plan", "plan.desired"}
    assert {name for name in parts if name.startswith("apply.")} <= {"apply.interrupted"}
    unwanted = {"bulk.runner", "bulk.batch_locks", "creation", "groups", "cluster_tables", "placement", "reading", "refusals", "removal"}
    assert not parts & {f"operations.{name}" for name in unwanted}
    assert not parts & {"command", "results", "mounts.fstab", "store.qcow2.writing", "store.qcow2.tables"}
    assert not parts & {"store.volumes.listing", "store.volumes.forked_readers"}
    assert not found & (_SLOW - {"pwd"})
    assert len(own(found)) <= MODULES_UNCHANGED, sorted(own(found))
    assert lines(found) <= LINES_UNCHANGED, sorted(own(found))


def test_work_without_a_machine(share: str) -> None:
    """What is for running machines is not imported by tasks that change files only."""
    for state in ("present", "absent"):
        found = imported("remotefs_snapshot", {"share": [share], "volume": "vol", "name": "t", "state": state}, changed=True)
        parts = {name.partition(".")[2] for name in own(found)}
        assert "apply.offline.session" in parts and not {name for name in parts if name.startswith("apply.live")} and "socket" not in found
