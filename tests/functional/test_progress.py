# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress of work that takes long: what people see, that the result is the same, and that nothing is lost when it is interrupted.

The work is slowed down by ``speed``. The first half calls modules as the action plugins do, the second half runs playbooks.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterator

import pytest
from ansible.module_utils.common.parameters import PASS_VARS

from ansible_collections.remotefs.storage.tests.benchmark.measuring import environment, module_call
from ansible_collections.remotefs.storage.tests.property.world import World

MIB = 1 << 20
INVOCATION = {"_ansible_inject_invocation": True} if "inject_invocation" in PASS_VARS else {}  # older ones always tell it
LONG = {"seconds": 0.4, "patience": 60}
FULL = os.environ.get("PROGRESS") == "full"  # in the nightly run


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A raw volume with 4 MiB in its base, and 4 MiB in the overlay of ``s1``; its deletion is a commit."""
    for name in ("share", "scratch"):
        (tmp_path / name).mkdir()
    made = World(tmp_path / "share", tmp_path / "scratch", "raw", 64 * MIB)
    made.write(0, 4 * MIB, 1)
    made.snapshot()
    made.write(2 * MIB, 4 * MIB, 2)
    return made


def deletion(world: World, **more: object) -> dict:
    return {
        "share": [str(world.share)],
        "volume": "vol",
        "name": "s1",
        "state": "absent",
        "speed": "1M",
        "lock_timeout": 20,
        **INVOCATION,
        **more,
    }


def start(module: str, parameters: dict, **more: str) -> subprocess.Popen:
    argv, given = module_call(module, parameters)
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(**more))
    assert process.stdin is not None
    process.stdin.write(given)
    process.stdin.close()
    process.stdin = None
    return process


def call(module: str, parameters: dict, **more: str) -> dict:
    out, err = start(module, parameters, **more).communicate(timeout=60)
    assert not err, err
    return json.loads(out)


def left(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith("remotefs-")]


def wait_for(what: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def working(world: World, tmp_path: Path) -> Iterator[Path]:
    """The directory of a deletion that is at work, with no task that waits for it; it has the process, too."""
    (tmp_path / "tmp").mkdir()
    answer = call("remotefs_snapshot", deletion(world, speed="256K", _progress={"seconds": 0.6, "patience": 2}), TMPDIR=str(tmp_path / "tmp"))
    assert set(answer) == {"changed", "_continue", "invocation"} and not answer["changed"] and "_progress" not in answer["invocation"]["module_args"]
    place = Path(answer["_continue"]["place"])
    pid = int((place / "process").read_text().split()[0])
    yield place
    if process_is_there(pid):
        os.kill(pid, signal.SIGKILL)


def process_is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(one for child in children for one in descendants(child))]


def require_ended(world: World, recovered: bool = True) -> None:
    """The next task ends the deletion, and all is right."""
    told = call("remotefs_snapshot", deletion(world, speed="0"))
    assert bool(told["recovered"]) == recovered and not told["volume"]["pending"] and not told["volume"]["snapshots"]
    del world.points["s1"]
    world.check(leaks=True)


# -- as the action plugin calls modules ---------------------------------------------------------------------------------


SHORT = {
    "done": {"state": "present", "name": "t"},
    "done in a copy": {"volume": None, "snapshots": [{"volume": "vol"}], "state": "present", "name": "t"},
    "failed in a copy": {"volume": None, "snapshots": [{"volume": "none"}]},
    "failed": {"volume": "none"},
    "refused": {"state": "present", "keep": {"last": "x"}},
    "refused by Ansible": {"snapshots": [{"volume": "vol"}]},
}


@pytest.mark.parametrize("asked", SHORT.values(), ids=SHORT)
def test_a_short_task_answers_as_it_would_alone(world: World, asked: dict) -> None:
    told = []
    for progress in ({"_progress": {"seconds": 30, "patience": 60}}, {}):
        if told and "t" in asked.values():
            assert call("remotefs_snapshot", {**deletion(world), "name": "t", "speed": "0"})["changed"], told
        parameters = {key: value for key, value in {**deletion(world, **asked), **progress}.items() if value is not None}
        process = start("remotefs_snapshot", parameters)
        out, err = process.communicate(timeout=30)
        answer = json.loads(out)
        told.append((process.returncode, err, answer.get("failed"), answer.get("msg"), sorted(answer), sorted(answer["invocation"]["module_args"])))
    assert told[0] == told[1] and told[0][2] == (None if "t" in asked.values() else True)


def test_only_what_takes_long_is_done_in_a_copy(world: World) -> None:
    """A task that is short makes no copy of its process; nor does one that nobody watches."""
    for number, (progress, speed, copies) in enumerate([(LONG, "0", 0), ({}, "2M", 0), (LONG, "2M", 1)]):
        world.snapshot()
        world.write(8 * MIB, 5 * MIB, 3 + number)
        name = list(world.points)[-1]
        argv, given = module_call("remotefs_snapshot", deletion(world, name=name, speed=speed, **({"_progress": progress} if progress else {})))
        program = f"import os, sys; os.register_at_fork(after_in_parent=lambda: print('copied', file=sys.stderr)); sys.argv = {argv[2:]!r}; "
        program += f"import runpy; runpy.run_module({argv[2]!r}, run_name='__main__')"
        done = subprocess.run([argv[0], "-c", program], input=given, capture_output=True, env=environment(), timeout=60, check=True)
        assert done.stderr.count(b"copied") == copies, (progress, speed, done.stderr)
        place = json.loads(done.stdout).get("_continue", {}).get("place")
        assert bool(place) == bool(copies)
        if place:
            shutil.rmtree(place, ignore_errors=True)  # the copy ends itself when that is gone, and may write a last time meanwhile


def test_a_long_task_goes_on_and_is_collected(world: World, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    where = {"TMPDIR": str(tmp_path / "tmp")}
    answer = call("remotefs_snapshot", deletion(world, _progress=LONG), **where)
    place = Path(answer["_continue"]["place"])
    assert "_continue" in answer, answer
    figures = answer["_continue"]["progress"]
    assert 0 < figures["done"] < figures["total"] < 5 * MIB and (figures["begun"], figures["items"], figures["unknown"]) == (1, 1, 0)
    again = call("remotefs_snapshot", deletion(world, _progress={"place": str(place)}), **where)
    assert again["_continue"]["place"] == str(place)  # it still works
    locked = call("remotefs_snapshot", deletion(world, lock_timeout=0.2))
    assert locked["error_code"] == "lock_timeout"  # the work holds its lock, although the module has ended
    wait_for((place / "result").exists)
    told = call("remotefs_snapshot", deletion(world, _progress={"place": str(place)}), **where)
    assert told["changed"] and not told["recovered"] and told["invocation"]["module_args"]["speed"] == "1M"
    last = json.loads((place / "progress").read_text())
    assert last["done"] == last["total"] == sum(step.get("bytes", 0) for step in told["actions"])
    shutil.rmtree(place)
    wait_for(lambda: not left(tmp_path / "tmp"))
    del world.points["s1"]
    world.check(leaks=True)


def test_work_that_is_not_wanted_any_more_ends(world: World, working: Path) -> None:
    """The action plugin removes the directory when the playbook is interrupted."""
    pid = int((working / "process").read_text().split()[0])
    shutil.rmtree(working)
    wait_for(lambda: not process_is_there(pid), 5)
    require_ended(world)


def test_work_that_nobody_asks_after_ends(world: World, working: Path) -> None:
    pid = int((working / "process").read_text().split()[0])
    for _time in range(3):
        time.sleep(1)
        os.utime(working / "seen")
    assert process_is_there(pid) and not (working / "result").exists()
    wait_for(lambda: not process_is_there(pid), 10)
    assert not working.exists()
    require_ended(world)


def test_work_whose_process_was_killed_is_told(world: World, working: Path) -> None:
    os.kill(int((working / "process").read_text().split()[0]), signal.SIGKILL)
    told = call("remotefs_snapshot", deletion(world, _progress={"place": str(working)}))
    assert told["failed"] and told["error_code"] == "tool_failed" and "run the task again" in told["msg"]
    require_ended(world)


def test_a_task_that_is_killed_before_it_is_long_takes_its_work_with_it(world: World) -> None:
    process = start("remotefs_snapshot", deletion(world, _progress={"seconds": 30, "patience": 60}))
    wait_for(lambda: Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    (child,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    wait_for(lambda: any(json.loads(path.read_bytes().split(b"\n")[0]).get("intent") for path in world.share.glob(".remotefs/volumes/*")))
    process.kill()
    process.communicate()
    wait_for(lambda: not process_is_there(child), 5)
    require_ended(world)


def test_items_in_copies_of_the_process_are_counted(tmp_path: Path) -> None:
    (tmp_path / "share").mkdir()
    share = [str(tmp_path / "share")]
    names = [f"v{number}" for number in range(64)]
    task = {"share": share, "size": "128K", "preallocation": "full", "speed": "16K", "parallel": 2, "volumes": [{"name": name} for name in names]}
    answer = call("remotefs_volume", {**task, "_progress": {"seconds": 3.5, "patience": 60}})
    assert "_continue" in answer, answer
    figures = answer["_continue"]["progress"]
    assert figures["items"] == 64 and 2 <= figures["begun"] < 64 and 0 < figures["done"] <= figures["total"] < 64 * 128 << 10
    shutil.rmtree(answer["_continue"]["place"])


# -- playbooks ----------------------------------------------------------------------------------------------------------

LINE = re.compile(r"(\w+): remotefs_volume: (\d+) %, ([\d.]+) MiB of 6\.0 MiB, ([\d.]+ [KM]iB)/s(, \d+ s left)?$")
MODULE = "remotefs.storage.remotefs_volume"


class Hosts:
    """Playbooks about clones of a volume with 6 MiB, which are made at 1.2 MiB a second. Each host makes the clone of its name."""

    def __init__(self, path: Path, temporary: Path, environment: dict) -> None:
        self.path, self.temporary, self.share = path, temporary, path / "share"
        self.environment = {**environment, "ANSIBLE_ASYNC_DIR": str(path / "jobs")}  # else its place depends on how Ansible reads HOME
        self.share.mkdir()
        self.data = os.urandom(6 * MIB)

    def book(self, hosts: dict[str, dict], **task: object) -> list[str]:
        """The command of a playbook. :param hosts: variables of each. :param task: keywords of the task."""
        for name in hosts:
            (self.share / f"golden-{name}").write_bytes(self.data)
        golden = [{"name": f"golden-{name}"} for name in hosts]
        call("remotefs_volume", {"share": [str(self.share)], "format": "raw", "volumes": golden})
        every = {name: {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **own} for name, own in hosts.items()}
        (self.path / "hosts.json").write_text(json.dumps({"all": {"hosts": every}}))
        options = {"share": str(self.share), "name": "{{ inventory_hostname }}", "source": {"volume": "golden-{{ inventory_hostname }}"}}
        module = {MODULE: {**options, "speed": "{{ speed | default('1200K') }}", "progress": "{{ progress | default(true) }}"}, "register": "told"}
        keywords = {"async": "{{ seconds | default(0) }}", "poll": 1, "become": "{{ other | default(false) }}", "become_method": "su"}
        kept = {"ansible.builtin.copy": {"content": "{{ told | to_json }}", "dest": f"{self.path}/{{{{ inventory_hostname }}}}.json"}}
        play = {"hosts": "all", "gather_facts": False, "tasks": [{**module, **keywords, "no_log": "{{ secret | default(false) }}", **task}, kept]}
        (self.path / "book.json").write_text(json.dumps([play]))
        return ["ansible-playbook", "-i", str(self.path / "hosts.json"), str(self.path / "book.json")]

    def told(self, host: str) -> dict:
        return json.loads((self.path / f"{host}.json").read_text())

    def run(self, argv: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=120, check=False)

    def start(self, argv: list[str]) -> subprocess.Popen:
        """With standard error in a file, until progress stands there."""
        with (self.path / "err").open("wb") as err:
            process = subprocess.Popen(argv, env=self.environment, stdout=subprocess.DEVNULL, stderr=err, start_new_session=True)
        wait_for(lambda: b" %, " in (self.path / "err").read_bytes() or process.poll() is not None, 40)
        assert process.poll() is None, (self.path / "err").read_text()
        return process

    def require_whole(self, *names: str) -> None:
        for name in names:
            assert (self.share / name).read_bytes() == self.data


@pytest.fixture
def hosts(tmp_path: Path, sockets: Path, ansible_environment: dict) -> Hosts:
    return Hosts(tmp_path, sockets, {**ansible_environment, "TMPDIR": str(sockets)})  # Ansible makes a socket there


@pytest.mark.slow
def test_who_sees_progress_and_who_does_not(hosts: Hosts) -> None:
    """Hosts at the same time: each line is whole, and the results are the same."""
    others = {
        "seen": {},
        "quiet": {"progress": False},
        "secret": {"secret": True},
        "later": {"seconds": 60},
        **({"other": {"other": True}} if os.geteuid() == 0 and shutil.which("su") else {}),
    }
    done = hosts.run([*hosts.book(others), "--forks", "8"])
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if "remotefs" in line]
    shown = [found for found in map(LINE.match, lines) if found]
    seen = {name for name in others if name in ("seen", "other")}
    assert {found.group(1) for found in shown} == seen and all(0 < int(found.group(2)) < 100 for found in shown)
    assert {line for line in lines if "done, " in line} == {line for line in lines if not LINE.match(line)}
    assert sorted(line.split(":")[0] for line in lines if "done, 6.0 MiB in " in line) == sorted(seen)
    assert "MiB/s" not in done.stdout and "_continue" not in done.stdout
    hosts.require_whole(*others)
    results = {name: json.loads(json.dumps(hosts.told(name)).replace(name, "NAME")) for name in others if name != "later"}
    for told in results.values():
        told.pop("ansible_facts", None)
        told["volume"].pop("created")
        told.pop("invocation", None)
    assert all(told == results["quiet"] for told in results.values())
    assert set(hosts.told("later")) >= set(results["quiet"]) and hosts.told("later")["finished"]
    wait_for(lambda: not left(hosts.temporary), 5)
    assert not list((hosts.temporary).glob("ansible_*payload*"))


@pytest.mark.slow
def test_a_terminal_has_one_line(hosts: Hosts) -> None:
    shown = bytearray()
    parent, child = pty.openpty()
    process = subprocess.Popen(hosts.book({"seen": {}}), env=hosts.environment, stdin=child, stdout=child, stderr=child, start_new_session=True)
    os.close(child)
    while True:
        try:
            shown += os.read(parent, 4096)
        except OSError:
            break
    os.close(parent)
    assert process.wait() == 0, shown.decode()
    (line,) = (line for line in shown.decode().split("\n") if "remotefs_volume: " in line)
    states = [state.removesuffix("\x1b[K") for state in line.rstrip("\r").split("\r") if state]
    assert len(states) >= 3 and all(map(LINE.match, states[:-1])) and re.match(r"seen: remotefs_volume: done, 6\.0 MiB in \d+ s$", states[-1]), states
    percents = [int(found.group(2)) for found in map(LINE.match, states[:-1]) if found]
    assert percents == sorted(set(percents))
    hosts.require_whole("seen")


def test_check_mode_is_silent(hosts: Hosts) -> None:
    done = hosts.run([*hosts.book({"seen": {}}), "--check"])
    assert done.returncode == 0 and "changed=2" in done.stdout and "remotefs_volume: " not in done.stderr, done.stdout + done.stderr
    assert not (hosts.share / "seen").exists()


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, *([signal.SIGTERM, signal.SIGKILL] if FULL else [])], ids=lambda end: end.name)
def test_a_playbook_that_is_interrupted(hosts: Hosts, end: signal.Signals) -> None:
    """Ctrl-C dismisses the work at once. Nobody tells of a kill, so the work ends a minute later. The next task waits for its lock."""
    process = hosts.start(hosts.book({"seen": {"speed": "50K"}}))
    (place,) = (hosts.temporary).glob("remotefs-*")
    worker = int((place / "process").read_text().split()[0])
    if end == signal.SIGKILL:
        for pid in descendants(process.pid):
            os.kill(pid, end)
    process.send_signal(end)
    process.wait(30)
    wait_for(lambda: not process_is_there(worker), 10 if end != signal.SIGKILL else 80)
    wait_for(lambda: not left(hosts.temporary), 5)
    assert not (hosts.share / "seen").exists()
    done = hosts.run(hosts.book({"seen": {"speed": "0"}}))
    assert done.returncode == 0 and "changed=" in done.stdout, done.stdout + done.stderr
    hosts.require_whole("seen")
    assert not [path.name for path in hosts.share.iterdir() if "~" in path.name]


@pytest.mark.slow
def test_the_time_limit_of_a_task_ends_its_work(hosts: Hosts) -> None:
    done = hosts.run(hosts.book({"seen": {"speed": "50K"}}, timeout=9))
    assert done.returncode == 2 and "remotefs_volume: " in done.stderr and not (hosts.share / "seen").exists(), done.stdout + done.stderr
    wait_for(lambda: not left(hosts.temporary), 5)
