# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every qemu-img that reads somebody's images works under limits, which leave room for honest ones; a met limit is told."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import command, errors
from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import qemu_img
from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Share
from ansible_collections.remotefs.storage.plugins.module_utils.store.files.directory import ShareDirectory

from . import images
from .scene import Scene

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    found = Scene(tmp_path)
    found.honest()
    return found


CHAIN = (Image("vol.s1", "qcow2", images.SIZE, backing_file="vol"), Image("vol", "raw", images.SIZE))


def opened(scene: Scene, chain: tuple = CHAIN, writable: tuple = ()) -> qemu_img.OpenedChain:
    return qemu_img.OpenedChain(ShareDirectory(Share(str(scene.share), str(scene.share), "directory")), chain, writable)


def spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let a program take qemu-img's place that tells its limits before it becomes qemu-img."""
    told = tmp_path / "limits"
    program = tmp_path / "qemu-img"
    program.write_text(f'#!/bin/sh\ncat /proc/self/limits >> {told}\nexec {command.find("qemu-img", "qemu-utils")} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(qemu_img, "_version_checked", [str(program)])
    return told


def limits_of(told: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    for line in told.read_text().splitlines():
        if line.startswith("Limit "):
            found.append({})
        else:
            found[-1][line[:26].strip()] = line[26:47].strip()
    return found


def test_every_call_on_images_is_limited(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = spy(tmp_path, monkeypatch)
    target = os.open(tmp_path / "converted", os.O_RDWR | os.O_CREAT)
    os.ftruncate(target, images.SIZE)
    with opened(scene, writable=("vol.s1", "vol")) as chain:
        wanted = chain.limits()
        qemu_img.convert(chain, target, "raw", ())
        qemu_img.resize(chain, "vol.s1", images.SIZE, ())
        qemu_img.rebase(chain, "vol.s1", None, None, ())
        qemu_img.rebase(chain, "vol.s1", "vol", "raw", ())
        qemu_img.commit(chain, "vol.s1", "vol", ())
    os.close(target)
    found = limits_of(told)
    assert len(found) == 5
    for limits in found:
        assert int(limits["Max cpu time"]) >= wanted.cpu_seconds
        assert limits["Max cpu time"] != "unlimited"
        assert int(limits["Max address space"]) == wanted.memory
        assert int(limits["Max file size"]) >= wanted.file_size
        assert limits["Max core file size"] == "0"


def test_limits_grow_with_what_there_is_to_do(scene: Scene) -> None:
    """The figures that docs/hostile-content.md gives."""
    with opened(scene) as chain:
        small, large = chain.limits(), chain.limits(16 * TIB)
    assert small.cpu_seconds == 300 and small.memory == 10 * GIB + 2 * 128 * MIB
    assert images.SIZE * 17 // 16 + 64 * MIB <= small.file_size <= 4 * images.SIZE + 64 * MIB
    assert large.file_size >= 17 * TIB
    with opened(scene) as chain:
        assert chain.limits(2**63 - 512).file_size is None  # more than any file can be needs no limit
    (scene.share / "vol").write_bytes(os.urandom(8 * MIB))
    with opened(scene) as chain:
        assert chain.limits().cpu_seconds >= 300 + 8 * 4
    os.truncate(scene.share / "vol", 1024 * GIB)
    with opened(scene) as chain:
        assert chain.limits().cpu_seconds >= 300 + 1024 * 16, "flattening onto holes reads all of them"


@pytest.mark.parametrize(
    "limits, script, words",
    [
        (command.Limits(cpu_seconds=1), "while True: pass", "more than 1 s of processor time"),
        (command.Limits(file_size=MIB), "import os; os.ftruncate(os.open('{path}', 66), 2 << 20)", f"file of more than {MIB} bytes"),
        (
            command.Limits(file_size=MIB),
            "import os, signal; signal.signal(25, signal.SIG_IGN); os.ftruncate(os.open('{path}', 66), 2 << 20)",
            f"file of more than {MIB} bytes",
        ),
        (
            command.Limits(memory=GIB),
            "import mmap\ntry: mmap.mmap(-1, 2 << 30)\nexcept OSError as e: raise SystemExit(str(e))",
            f"more than {GIB} bytes of memory",
        ),
    ],
)
def test_a_met_limit_is_told(tmp_path: Path, limits: command.Limits, script: str, words: str) -> None:
    path = tmp_path / "file"
    before = "import signal; signal.signal(25, signal.SIG_DFL)\n" if "SIG_IGN" not in script else ""
    result = command.run([sys.executable, "-c", before + script.replace("{path}", str(path))], limits=limits, timeout=20)
    with pytest.raises(errors.ToolFailed) as caught:
        command.require_success(result, "merge of a into b")
    assert words in str(caught.value) and "docs/hostile-content.md" in str(caught.value)
    assert not path.exists() or path.stat().st_size <= MIB


def test_a_stricter_limit_of_the_task_stays() -> None:
    """An unprivileged task under ulimit -v works, because nothing is raised."""
    script = "import os, resource; from ansible_collections.remotefs.storage.plugins.module_utils import command, process_copies\n"
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
    script += "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
    script += "print(command.run(['/bin/cat', '/proc/self/limits'], limits=command.Limits(10, 1 << 34, 1 << 40)).out)"
    told = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True, cwd="/", check=False)
    lines = [line.split() for line in told.stdout.splitlines() if line.startswith("Max file size")]
    assert [line[3] for line in lines] == [str(1 << 20)], told


def test_a_bomb_is_stopped(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 TiB of data in less than a mebibyte: the copy ends with the limit, not with the data."""
    monkeypatch.setattr(qemu_img, "_CPU_SECONDS", 1)
    used, cluster = images.USED, images.CLUSTER
    clusters = {5: images.l2(*[used | 6 * cluster] * 8192), 6: b"x" * cluster}
    images.qcow2(scene.share / "vol", size=2**42, l1=(used | 5 * cluster,) * 8192, clusters=clusters)
    target = os.open(scene.root / "converted", os.O_RDWR | os.O_CREAT)
    os.ftruncate(target, 2**42)
    with opened(scene, (Image("vol", "qcow2", 2**42),)) as chain, pytest.raises(errors.ToolFailed, match="processor time"):
        qemu_img.convert(chain, target, "raw", ())
    os.close(target)
