# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each attack of the corpus, each task on it: refused or handled as stated, nothing outside touched, no hang, bounded memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Iterator

import pytest

from . import runner, trace
from .corpus import ATTACKS
from .scene import LOOKING_AFTER, OK, SECRET, TASKS, Attack, Scene

# A replication that is refused has recorded identities, and what it sent before stays. So it is with a move.
STEPWISE = {"replicate": (".remotefs/volumes/", "replica"), "replicate_over": (".remotefs/volumes/",), "move": (".remotefs/volumes/", "target: ")}
# What is left of a lease stays under it, and under whoever collects it; the rest of its own goes. What is others' is compared in any case.
MINE = tuple(f"{place}{name}" for place in ("", ".remotefs/leases/", ".remotefs/volumes/", ".remotefs/tmp/@") for name in ("env", "ENV"))
STEPWISE.update(dict.fromkeys(("collect", "collect_golden", "release", "hold_less"), MINE), machine_start=("run: ",), machine_launch=("run: ",))


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Iterator[runner.Runner]:
    reason = runner.why_not()
    if reason:
        pytest.skip(reason)
    found = runner.Runner(tmp_path_factory.mktemp("runner"), checkout)
    yield found
    found.close()


def _parameters() -> list:
    marks = {attack.id: [pytest.mark.slow] * attack.slow + [pytest.mark.root] * attack.root for attack in ATTACKS}
    assert len(marks) == len(ATTACKS), "two attacks have one name"
    return [pytest.param(attack, id=attack.id, marks=marks[attack.id]) for attack in ATTACKS]


def _planted(attack: Attack, root: Path) -> Scene:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    scene = Scene(root)
    attack.plant(scene)
    return scene


@pytest.mark.parametrize("attack", _parameters())
def test_attack(attack: Attack, traced: runner.Runner, sockets: Path) -> None:
    with ExitStack() as stack:
        _run(attack, traced, sockets, stack)


def _run(attack: Attack, traced: runner.Runner, root: Path, stack: ExitStack) -> None:
    scene, before, harm = None, {}, {}
    for task, expected in attack.outcome.items():
        if scene is None:
            stack.close()
            scene = _planted(attack, root / "scene")
            stack.callback(scene.close)
            before, harm = scene.state(), scene.harm(names=not attack.loses_name)
        answer = traced.run(scene, task)
        code = answer.code(task)
        told = f"{task} on {attack.id}: {code}: {answer.said[-1500:]}"
        assert not answer.hung, told
        assert code in expected.split("|"), told
        assert "Traceback" not in answer.said and "unexpected fault" not in answer.said, told
        assert SECRET not in answer.said, told
        assert answer.peak <= runner.PEAK, f"{task} on {attack.id} took {answer.peak} bytes"
        assert not traced.offences(scene, answer), told
        assert scene.harm(names=not attack.loses_name) == harm, told
        after = scene.state()
        if code == OK:
            attack.checks.get(task, _nothing)(scene)
        elif code != "tool_failed" or TASKS[task][0] == "remotefs_machine":  # a merge that QEMU gave up stays on record
            changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
            assert all(name.startswith(STEPWISE.get(task, ())) for name in changed), f"{task} was refused and changed {sorted(changed)}"
        if after != before or code == OK:
            scene = None


def _few() -> list:
    """All of them, or a fifth where only a part of the tests runs: another one each day."""
    every, today = _parameters(), int(time.strftime("%j"))
    return every if "PART_OF_THE_TESTS" not in os.environ else [one for one in every if zlib.crc32(one.id.encode()) % 5 == today % 5]


@pytest.mark.parametrize("attack", _few())
def test_who_looks_after_the_share(attack: Attack, traced: runner.Runner, sockets: Path) -> None:
    """What tells of shares as wholes, and what tidies them up, meets everything. They end well, or with a code; they harm nobody, and nothing but
    leftovers goes, however old all of it is. No file changes but those of which it says so."""
    for task in LOOKING_AFTER:
        scene = _planted(attack, sockets / "scene")
        try:
            for path in scene.share.joinpath(".remotefs").glob("**/*"):
                os.utime(path, (1, 1), follow_symlinks=False)
            before, harm = scene.state(), scene.harm(names=not attack.loses_name)
            answer = traced.run(scene, task)
            told = f"{task} on {attack.id}: {answer.said[-1500:]}"
            assert answer.result and not answer.hung and answer.peak <= runner.PEAK, told
            assert "Traceback" not in answer.said and "unexpected fault" not in answer.said and SECRET not in answer.said, told
            assert not traced.offences(scene, answer), told
            assert scene.harm(names=not attack.loses_name) == harm, told
            after = scene.state()
            changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
            gone = {one["file"] for one in answer.result.get("removed") or []}
            gone |= {one["file"] for one in answer.result.get("leaked_clusters") or [] if not one["why"]}
            of = tuple(one["volume"] for one in answer.result.get("empty_overlays") or [] if not one["why"])
            changed = {name for name in changed if not (of and name.startswith(of))}  # a deletion, which other tests judge
            changed = {name for name in changed if not name.startswith("run: ")}  # what plays a machine there begins on its own
            assert task == "housekeeping" or not changed, f"{sorted(changed)} changed; {told}"
            assert all(name in gone or name.startswith((".remotefs/locks", ".remotefs/volumes/")) for name in changed), f"{sorted(changed)}; {told}"
        finally:
            scene.close()


def _nothing(_scene: Scene) -> None:
    """Nothing more is known of this task."""


# -- the instruments: a test that cannot fail proves nothing ----------------------------------------------------------


def test_the_trace_sees_what_an_unsafe_tool_does(traced: runner.Runner, tmp_path: Path) -> None:
    """What qemu-img does with hostile files when nobody is careful is told as an offence, each of its kinds."""
    scene = Scene(tmp_path)
    judge = trace.Judge(str(scene.share), str(traced.scratch / "tmp"), "/nowhere")
    text = f"""7 openat(AT_FDCWD</>, "{scene.victim}", O_RDONLY) = 3<{scene.victim}>
7 openat(5<{scene.share}>, "../victim", O_RDWR) = 3<{scene.root}/victim>
7 openat(5<{scene.share}>, "vol", O_RDWR) = 3<{scene.victim}>
7 openat(5<{scene.share}>, "../gone", O_RDONLY) = -1 ENOENT (No such file or directory)
7 linkat(5<{scene.share}>, "vol", 6<{scene.outside}>, "x", 0) = 0
7 unlinkat(AT_FDCWD</>, "/etc/passwd", 0) = 0
7 connect(3<socket:[1]>, {{sa_family=AF_INET, sin_port=htons(10809), sin_addr=inet_addr("127.0.0.1")}}, 16) = 0
7 execve("/bin/sh", ["sh", "-c", "x"], 0x1 /* 2 vars */) = 0
7 openat(AT_FDCWD</>, "{scene.outside}/new", O_WRONLY|O_CREAT <unfinished ...>
8 openat(AT_FDCWD</>, "/usr/lib/x.so", O_RDONLY) = 3</usr/lib/x.so>
7 <... openat resumed>, 0666) = 4<{scene.outside}/new>
8 openat(AT_FDCWD</>, "/usr/lib/x.so", O_RDWR) = 3</usr/lib/x.so>
8 openat(5<{scene.share}>, "vol", O_RDWR|O_NOFOLLOW) = 3<{scene.share}/vol>
"""
    found = trace.calls(text.splitlines())
    assert len(found) == 12
    offences = judge.offences(found)
    assert len(offences) == 10, offences
    signals = """7 kill(1, SIGTERM) = 0
7 kill(8, SIGKILL) = 0
8 kill(7, 0) = 0
8 kill(9, 0) = 0
8 tgkill(9, 9, SIGTERM) = 0
8 kill(-1, SIGKILL) = -1 ESRCH (No such process)
8 kill(10, SIGKILL) = 0
"""
    judge = trace.Judge(str(scene.share), str(traced.scratch / "tmp"), "/nowhere", mine=(10,))
    assert len(judge.offences(trace.calls(signals.splitlines()))) == 3, "whoever ends another's process is not noticed"


def test_the_trace_sees_a_task(traced: runner.Runner, tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.honest()
    compressed = ["qemu-io", "-f", "qcow2", "-c", "write -q -c 0 64k", str(scene.share / "vol.s1")]
    subprocess.run(compressed, check=True)  # is left to qemu-img, so that a program is started
    answer = traced.run(scene, "delete")
    assert answer.code("delete") == OK
    names = {call.name for call in answer.calls}
    opened = {
        os.path.relpath(call.opened, scene.share) for call in answer.calls if call.opened and call.opened.startswith(str(scene.share))
    }
    assert {"execve", "unlinkat", "openat"} <= names and {"vol", "vol.s1", "vol.info", ".remotefs/volumes/vol.json"} <= opened
    strict = trace.Judge(str(scene.share / "elsewhere"), str(traced.scratch / "tmp"), str(traced.scratch))
    assert strict.offences(answer.calls), "a task that works somewhere else is not noticed"


def test_a_task_that_hangs_is_noticed(traced: runner.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path)
    scene.honest()
    monkeypatch.setattr(runner, "TIMEOUT", 0)
    assert traced.run(scene, "info").hung
