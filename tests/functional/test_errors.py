# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors that help: the page lists them all, what the world lacks is named, programs' words come along, and nothing ends in a traceback."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import changes, command, errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply import executor
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import qemu_img
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline.engine import OfflineEngine
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import tables
from ansible_collections.remotefs.storage.plugins.module_utils.operations import locking, reading, snapshots, transaction, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.bulk import runner
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory
from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes import chains

MIB = 1 << 20
CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs" / "errors.md"
PREFIX = "ansible_collections.remotefs.storage.plugins.modules."


def kinds() -> set[type]:
    return {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.StorageError)} - {errors.StorageError}


def test_the_page_lists_all_codes() -> None:
    told = re.findall(r"^\| `(\w+)` \|", PAGE.read_text().partition("| ---")[2], re.MULTILINE)
    assert len(told) == len(set(told)) and set(told) == {kind.error_code for kind in kinds()}


def test_the_page_has_the_words_of_the_types() -> None:
    """The first two columns are made of the classes, in their order. With WRITE_ERRORS=1 they are written; what to do is written by hand."""
    head, line, rest = PAGE.read_text().partition("| --- | --- | --- |\n")
    table, _empty, rest = rest.partition("\n\n")
    advice = dict(re.findall(r"^\| `(\w+)` \| .*? \| (.*) \|$", table, re.MULTILINE))
    in_order = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind in kinds()]
    rows = [f"| `{kind.error_code}` | {sentence(kind)} | {advice.get(kind.error_code, '')} |" for kind in in_order]
    if os.environ.get("WRITE_ERRORS"):
        PAGE.write_text(head + line + "\n".join(rows) + "\n\n" + rest)
    assert table.splitlines() == rows and all(advice[kind.error_code] for kind in in_order)


def sentence(kind: type) -> str:
    """What a type says of itself, in Markdown."""
    told = " ".join(kind.__doc__.split("\n\n")[0].split()).replace("``", "`")
    assert told.endswith(".") and "|" not in told
    return told


def test_each_code_has_one_type() -> None:
    codes = [kind.error_code for kind in kinds()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_each_error_of_the_kernel_is_a_sentence(number: int) -> None:
    for reader in (None, 1000):
        told = errors.from_os_error(OSError(number, os.strerror(number)), "file v on nas:/vols", reader)
        assert re.fullmatch(r"file v on nas:/vols: .*; .*\.", str(told))
        assert reader is None or not isinstance(told, errors.ShareNotWritable) or number == errno.EROFS
    if number in (errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.EHOSTDOWN):
        assert told.error_code == "share_not_mounted"


# -- modules, as processes --------------------------------------------------------------------------------------------


def module(name: str, parameters: dict, verbosity: int = 0, program: str = "", **environment: str) -> dict:
    """The result of a module; ``program`` runs before it in its process."""
    given = json.dumps({"ANSIBLE_MODULE_ARGS": {**parameters, "_ansible_verbosity": verbosity}})
    code = f"{program}\nimport runpy; runpy.run_module({PREFIX + name!r}, run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", code], input=given, text=True, capture_output=True, env={**os.environ, **environment}, check=False)
    assert "Traceback" not in ran.stderr, ran.stderr
    return json.loads(ran.stdout)


def patched(name: str, attribute: str, raising: str) -> str:
    """Python that makes a function of the collection raise."""
    room = "ansible_collections.remotefs.storage.plugins.module_utils." + name
    return f"import importlib\ndef fault(*a, **k): raise {raising}\nsetattr(importlib.import_module({room!r}), {attribute!r}, fault)"


MODULES: dict[str, dict] = {
    "remotefs_volume": {"name": "v", "size": "1M"},
    "remotefs_snapshot": {"volume": "v", "name": "s"},
    "remotefs_volume_info": {},
    "remotefs_snapshot_info": {},
    "remotefs_share_info": {},
}


@pytest.mark.parametrize("name", MODULES)
def test_what_nobody_foresaw_is_a_failure_with_a_code(name: str, tmp_path: Path) -> None:
    parameters = {**MODULES[name], "share": str(tmp_path)} if name != "remotefs_share_info" else {}
    told = module(name, parameters, program=patched("mounts.tables", "read_mounts", "ZeroDivisionError('by chance')"))
    assert told["failed"] and told["error_code"] == "tool_failed" and "ZeroDivisionError: by chance" in told["msg"]
    assert "read_mounts" in told["traceback"]


_WITHOUT_PROC = """
import builtins
real = builtins.open
def without(path, *others, **names):
    if str(path).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory")
    return real(path, *others, **names)
builtins.open = without
"""


@pytest.mark.parametrize("name", [*MODULES, "remotefs_share"])
def test_a_host_without_proc(name: str, tmp_path: Path) -> None:
    parameters = {**MODULES.get(name, {}), "share": str(tmp_path)}
    if name.startswith("remotefs_share"):
        parameters = {"path": str(tmp_path / "new"), "fstype": "directory", "persist": False} if name == "remotefs_share" else {}
    told = module(name, parameters, program=_WITHOUT_PROC)
    assert told["failed"] and told["error_code"] == "tool_failed"
    assert "/proc/self/mountinfo" in told["msg"] and "mount /proc" in told["msg"]


def test_log_and_steps(tmp_path: Path) -> None:
    """``log_path`` has a line for each step, of root alone; ``-vvv`` shows the same; check mode writes nothing."""
    share, log = tmp_path / "share", tmp_path / "steps.log"
    share.mkdir()
    parameters = {"share": str(share), "name": "v", "size": "1M", "log_path": str(log)}
    told = module("remotefs_volume", {**parameters, "_ansible_check_mode": True}, 3)
    assert not log.exists() and told["log"] == []
    told = module("remotefs_volume", parameters, 3)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert told["log"] == lines and stat.S_IMODE(log.stat().st_mode) == 0o600
    assert {"lock", "create", "write_record"} <= {line["step"] for line in lines}
    for line in lines:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) and line["volume"] == "v" and line["seconds"] >= 0
        assert line["share"] == str(share)
    told = module("remotefs_snapshot", {"share": str(share), "log_path": str(log), "snapshots": [{"volume": "v", "name": "s"}]}, 2)
    assert "log" not in told and len(log.read_text().splitlines()) > len(lines), "appended"
    failures = [
        ("remotefs_volume", {"name": "v", "size": "512K"}, "v", "would_shrink"),
        ("remotefs_volume", {"volumes": [{"name": "v"}, {"name": "a b"}]}, "a b", "invalid_name"),
        ("remotefs_snapshot", {"volume": "v", "name": "none", "state": "reverted"}, "v", "snapshot_not_found"),
    ]
    for name, options, volume, code in failures:
        told = module(name, {"share": str(share), "log_path": str(log), **options})
        line = json.loads(log.read_text().splitlines()[-1])
        assert (line["step"], line["volume"], line["error_code"]) == ("fail", volume, code) and line["msg"] in told["msg"]
    refused = module("remotefs_volume", {**parameters, "name": "w", "log_path": str(tmp_path / "no" / "where")})
    assert refused["error_code"] == "invalid_parameter" and "log_path" in refused["msg"]


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    told = module("remotefs_volume", {"share": str(tmp_path), "name": "v", "size": "1M", "log_path": "/dev/full"})
    assert told["changed"] and "/dev/full" in str(told["warnings"])


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("state", ["present", "absent"])
def test_an_unexpected_fault_is_its_items_alone(tmp_path: Path, state: str, parallel: int) -> None:
    items = [{"name": f"v{number}"} for number in range(5)]
    if state == "absent":
        module("remotefs_volume", {"share": str(tmp_path), "size": "1M", "volumes": items})
    program = (
        "import ansible_collections.remotefs.storage.plugins.module_utils.operations.volumes as volumes\n"
        f"real = volumes.{'ensure_absent' if state == 'absent' else 'ensure_present'}\n"
        "def sick(first, *others):\n"
        "    if 'v2' in (getattr(getattr(first, 'desired', None), 'name', None), *others[:1]): raise MemoryError('no more')\n"
        "    return real(first, *others)\n"
        f"volumes.{'ensure_absent' if state == 'absent' else 'ensure_present'} = sick"
    )
    told = module("remotefs_volume", {"share": str(tmp_path), "size": "1M", "state": state, "parallel": parallel, "volumes": items}, program=program)
    assert told["failed"] and [one["failed"] for one in told["results"]] == [False, False, True, False, False]
    assert told["results"][2]["error_code"] == "tool_failed" and "MemoryError" in told["results"][2]["msg"]
    assert sorted(path.name for path in tmp_path.glob("v*")) == (["v2"] if state == "absent" else ["v0", "v1", "v3", "v4"])


# -- programs and temporary files --------------------------------------------------------------------------------------


def test_a_failure_of_a_program_brings_its_words() -> None:
    result = command.run(["/bin/sh", "-c", "echo 'a reason' >&2; exit 3", "with a blank"])
    with pytest.raises(errors.ToolFailed) as failed:
        command.require_success(result, "merge")
    told = changes.failure(failed.value)
    assert (told["rc"], told["stderr"]) == (3, "a reason\n") and told["cmd"].startswith("/bin/sh -c ") and "'with a blank'" in told["cmd"]


def test_a_program_that_is_full_or_late_brings_them_too() -> None:
    with pytest.raises(errors.NoSpace) as full:
        command.require_success(command.run(["/bin/sh", "-c", "echo 'No space left on device' >&2; exit 1"]), "merge")
    assert full.value.details["rc"] == 1
    with pytest.raises(errors.ToolFailed) as late:
        command.run(["/bin/sh", "-c", "echo waiting >&2; sleep 30"], timeout=0.5)
    assert late.value.details["rc"] == -9 and "waiting" in late.value.details["stderr"] and "sleep 30" in late.value.details["cmd"]


def test_no_room_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """qemu-img's private directory cannot be made: the host's directory is named, and the share is not called full."""

    def full(*_arguments: object, **_names: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "tmp" / "remotefs-x"))

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    share = Share(str(tmp_path), str(tmp_path), "directory")
    with ShareDirectory(share) as directory, pytest.raises(errors.ToolFailed) as failed, qemu_img.OpenedChain(directory, ()):
        pass
    assert str(tmp_path / "tmp") in str(failed.value) and "TMPDIR" in str(failed.value) and "share" not in str(failed.value)


def test_output_needs_no_temporary_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_names: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert command.run(["/bin/echo", "said"]).out == "said\n"
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(errors.ToolFailed, match="temporary files"):
        command.run(["/bin/echo", "said"])


def test_a_mount_table_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(errors.ToolFailed, match="mount /proc"):
        tables.read_mounts(str(tmp_path / "mountinfo"))


# -- a share that goes away --------------------------------------------------------------------------------------------


class Going:
    """A share that is removed when a task is in its middle."""

    def __init__(self, path: Path) -> None:
        self.path = path / "share"
        self.path.mkdir()
        self.where = Candidates((Share(str(self.path), str(self.path), "directory"),))
        volumes.ensure_present(updating.VolumeRequest(self.where, DesiredVolume("v", size=MIB)), Options())
        snapshots.take(snapshots.SnapshotRequest(self.where, "v", DesiredSnapshot("s")), Options())

    def goes_after(self, owner: object, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        real = getattr(owner, name)

        def go(*arguments: object, **names: object) -> object:
            found = real(*arguments, **names)
            shutil.rmtree(self.path, ignore_errors=True)
            return found

        monkeypatch.setattr(owner, name, go)


PLACES = (
    (locking.Locks, "take"),
    (transaction, "find_interrupted"),
    (chains, "observe"),
    (OfflineEngine, "session"),
    (executor.Executor, "record_intent"),
    (ShareDirectory, "create_temporary"),
)
TASKS: dict[str, Callable[[Candidates], object]] = {
    "snapshot": lambda where: snapshots.take(snapshots.SnapshotRequest(where, "v", DesiredSnapshot("t")), Options(lock_timeout=1)),
    "deletion": lambda where: snapshots.delete(where, "v", ["s"], Options(lock_timeout=1)),
    "revert": lambda where: snapshots.revert(where, "v", "s", True, Options(lock_timeout=1)),
}


MOMENTS = [
    pytest.param(task, place, id=f"{task}-{place[1]}")
    for task in TASKS
    for place in PLACES
    if (task, place[1]) != ("revert", "record_intent")  # a revert to the newest point has none
]


@pytest.mark.parametrize("task, place", MOMENTS)
def test_a_share_that_is_removed_meanwhile(tmp_path: Path, task: str, place: tuple[object, str], monkeypatch: pytest.MonkeyPatch) -> None:
    going = Going(tmp_path)
    path = Path(reading.list_volumes(going.where.shares[0], [])[0]["path"])
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -q 0 4096", str(path)], check=True)
    going.goes_after(*place, monkeypatch)
    with pytest.raises(errors.ShareNotMounted) as gone:
        TASKS[task](going.where)
    assert "remotefs_share" in str(gone.value)


def test_bulk_on_a_share_that_is_removed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going = Going(tmp_path)
    going.goes_after(executor.Executor, "record_intent", monkeypatch)
    items = [
        runner.Item(f"v{number}", frozenset([f"v{number}"]), lambda options: TASKS["deletion"](going.where))  # type: ignore[arg-type,return-value]
        for number in range(3)
    ]
    done = runner.run_all(items, 1, Options())
    assert {getattr(one, "error_code", None) for one in done} == {"share_not_mounted"}


LONG = "9" * 5000  # Python converts no number of so many digits


@pytest.mark.parametrize(
    "name, options",
    [
        ("remotefs_volume", {"name": "v", "size": LONG}),
        ("remotefs_volume", {"name": "v", "size": "1M", "max_chain": LONG}),
        ("remotefs_volume", {"name": "v", "size": "1M", "parallel": float("inf")}),
        ("remotefs_volume", {"name": "v", "size": "1M", "source": 5}),
        ("remotefs_volume", {"size": "1M", "volumes": [{"name": "v", "max_chain": LONG}]}),
        ("remotefs_volume", {"size": "1M", "volumes": [{"name": "v", "reserved_percentage": float("inf")}]}),
        ("remotefs_snapshot", {"volume": "v", "keep": {"match": "*", "last": LONG}}),
        ("remotefs_snapshot", {"volume": "v", "keep": {"match": "*", "within": LONG + "d"}}),
        ("remotefs_snapshot", {"volume": "v", "name": "s", "expires": LONG + "d"}),
        ("remotefs_snapshot", {"volume": "v", "name": "s", "lock_timeout": True, "keep": True}),
        ("remotefs_share", {"src": "/tmp", "timeout": float("inf")}),
        ("remotefs_share", {"src": "/tmp", "timeout": LONG}),
        ("remotefs_snapshot", {"volume": "v", "name": "s", "lock_timeout": LONG}),
    ],
)
def test_values_that_no_option_can_have(tmp_path: Path, name: str, options: dict) -> None:
    """They are refused with a code, whoever meets them first, and never as a fault that nobody foresaw."""
    share = {} if name == "remotefs_share" else {"share": str(tmp_path)}
    found = module(name, {**share, **options})
    assert found["failed"] and found["error_code"] in ("invalid_parameter", "invalid_size"), found
    assert "traceback" not in found and len(found["msg"]) < 1000


@pytest.mark.parametrize("kind", [errors.InUse, errors.ToolFailed, errors.NoSpace])
def test_no_control_character_reaches_a_terminal(kind: type) -> None:
    """Whoever chose the words: a server, a guest, somebody who named a file. Not after a copy to another process, either."""
    error = kind("file a\x1b[2J\nb", "it says \x07\u202e\ud800", "do this\r")
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert str(one).isprintable() and (one.subject, one.problem, one.remedy) == ("file a\\x1b[2J\\nb", "it says \\x07\\u202e\\ud800", "do this\\r")
    assert str(kind("über", "größer", "ok")) == "über: größer; ok."
