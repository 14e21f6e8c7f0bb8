# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine with a guest: Linux, busybox and qemu-ga out of Debian's packages, in an initramfs. Its disks have ext4 and are mounted.

The packages are downloaded (28 MB, once) and unpacked below build/. Nothing is installed, and nothing of them runs on the host. QEMU runs
without KVM.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Sequence

import pytest

from .guest import Qmp

PLACE = Path(__file__).resolve().parents[2] / "build" / "live-guest"
NEEDED = ("apt-get", "apt-cache", "dpkg-deb", "ldd", "mkfs.ext4", "dumpe2fs", "debugfs", "e2fsck")
KERNEL = "linux-image-cloud-amd64"
MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk", "virtio_console")  # in this order
BOOT = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check random.trust_cpu=on cryptomgr.notests"
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin LD_LIBRARY_PATH=/lib
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run
for module in MODULES; do [ -e /modules/$module.ko ] && insmod /modules/$module.ko; done
for disk in a b; do [ -b /dev/vd$disk ] && mkdir -p /$disk && mount -t ext4 /dev/vd$disk /$disk; done
while true; do /bin/qemu-ga -m virtio-serial -p $(echo /dev/vport*) -t /run -f /run/agent.pid; sleep 1; done
"""


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def made() -> Path:
    """The directory with the kernel (``vmlinuz``) and the ``initrd``. They are made where they are not there yet."""
    os.environ["PATH"] += os.pathsep + os.pathsep.join(("/usr/sbin", "/sbin"))
    missing = [program for program in NEEDED if not shutil.which(program)]
    if missing:
        pytest.skip(f"a real guest needs {', '.join(missing)}")
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (PLACE / "initrd").exists():
            try:
                _make()
            except OSError as error:
                pytest.skip(f"a real guest cannot be made: {error}")
    return PLACE


def _make() -> None:
    kernel = re.findall(r"Depends: (linux-image-\S+)", _run("apt-cache", "depends", KERNEL))
    if not kernel:
        raise OSError(f"apt knows no package {KERNEL}")
    with tempfile.TemporaryDirectory(dir=PLACE) as name:
        place = Path(name)
        _run("apt-get", "download", "-q", "busybox-static", "qemu-guest-agent", kernel[0], cwd=place)
        for package in place.glob("*.deb"):
            _run("dpkg-deb", "-x", str(package), "tree", cwd=place)
        tree = place / "tree"
        files = {"init": INIT.replace("MODULES", " ".join(MODULES)).encode()}
        files["bin/busybox"] = next(path for path in (tree / "bin/busybox", tree / "usr/bin/busybox") if path.exists()).read_bytes()
        agent = tree / "usr/sbin/qemu-ga"
        files["bin/qemu-ga"] = agent.read_bytes()
        for path in re.findall(r"(/\S+) \(0x", _run("ldd", str(agent))):
            files[path.lstrip("/") if "ld-linux" in path else f"lib/{os.path.basename(path)}"] = Path(path).read_bytes()
        for module in tree.rglob("*.ko"):
            if module.stem in MODULES:
                files[f"modules/{module.name}"] = module.read_bytes()
        shutil.copy(next(tree.glob("boot/vmlinuz-*")), PLACE / "vmlinuz")
        (place / "initrd").write_bytes(_archive(files))
        (place / "initrd").replace(PLACE / "initrd")  # last: from now on it is made


def _archive(files: dict[str, bytes]) -> bytes:
    """A cpio archive (newc) of files that anybody may run, and of the directories that a guest needs."""
    folders = {"dev", "proc", "sys", "run", "var", "var/run", "etc"}
    folders |= {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    entries = [(name, 0o040755, b"") for name in sorted(folders)] + [(name, 0o100755, data) for name, data in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    archive = bytearray()
    for number, (name, mode, data) in enumerate(entries, 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        archive += b"070701" + "".join(f"{field:08X}" for field in fields).encode() + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4) + data
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


class Talking(ABC):
    """A guest with an agent that runs programs."""

    @abstractmethod
    def ask(self, command: str, **arguments: Any) -> Any:
        """A command of its agent."""

    def run(self, line: str) -> str:
        """A line for the guest's shell. Returns what it prints."""
        number = self.ask("guest-exec", path="/bin/sh", arg=["-c", line], capture_output=True)["pid"]
        while True:
            told = self.ask("guest-exec-status", pid=number)
            if told["exited"]:
                assert told["exitcode"] == 0, (line, told)
                return base64.b64decode(told.get("out-data", "")).decode()
            time.sleep(0.02)

    @staticmethod
    def request(command: str, arguments: dict[str, Any]) -> str:
        """A command as the agent reads it."""
        return json.dumps({"execute": command, "arguments": {name.replace("_", "-"): value for name, value in arguments.items()}})


class RealGuest(Talking):
    """A machine whose guest has these disks (paths and formats), mounted at /a and /b. ``monitor`` is for tasks, ``qmp`` is the test's."""

    def __init__(self, disks: Sequence[tuple[str, str]]) -> None:
        kernel = made()
        self.directory = Path(tempfile.mkdtemp(prefix="vm-"))
        self.monitor, self.channel, own = (str(self.directory / name) for name in ("task", "qga", "test"))
        machine = ["qemu-system-x86_64", "-machine", "pc,usb=off", "-accel", "tcg,tb-size=128", "-cpu", "qemu64", "-m", "128", "-nodefaults", "-no-user-config"]
        machine += ["-display", "none", "-no-reboot", "-kernel", str(kernel / "vmlinuz"), "-initrd", str(kernel / "initrd"), "-append", BOOT]
        machine += ["-chardev", f"file,id=console,path={self.directory}/console", "-serial", "chardev:console", "-device", "virtio-serial-pci"]
        machine += ["-chardev", f"socket,id=channel,path={self.channel},server=on,wait=off"]
        machine += ["-device", "virtserialport,chardev=channel,name=org.qemu.guest_agent.0"]
        machine += ["-qmp", f"unix:{self.monitor},server=on,wait=off", "-qmp", f"unix:{own},server=on,wait=off"]
        for number, (path, image_format) in enumerate(disks):
            node = {"driver": image_format, "node-name": f"disk{number}", "file": {"driver": "file", "filename": path}}
            machine += ["-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive=disk{number}"]
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(machine, stdout=log, stderr=log)
        try:
            self.qmp = Qmp(own)
            self._wait()
        except BaseException:
            self.process.kill()
            self.process.wait(30)
            raise

    def _wait(self) -> None:
        until = time.monotonic() + 60
        while not any(one["label"] == "channel" and one["frontend-open"] for one in self.qmp("query-chardev")):
            assert time.monotonic() < until and self.process.poll() is None, (self.directory / "console").read_text(errors="replace")[-2000:]
            time.sleep(0.1)

    def ask(self, command: str, **arguments: Any) -> Any:
        """See :meth:`Talking.ask`. The test takes the channel for it."""
        number = int.from_bytes(os.urandom(4), "big")
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(60)
            stream.connect(self.channel)
            stream.sendall(b"\xff" + json.dumps({"execute": "guest-sync-delimited", "arguments": {"id": number}}).encode() + b"\n")
            lines = stream.makefile("rb")
            while f'{{"return": {number}}}'.encode() not in lines.readline():
                pass
            stream.sendall(self.request(command, arguments).encode() + b"\n")
            answer = json.loads(lines.readline())
            assert "return" in answer, answer
            return answer["return"]

    def end(self) -> None:
        """Kill the machine."""
        self.process.kill()
        self.process.wait(30)
        self.qmp.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class Point:
    """What a point of a volume holds, read out of a copy: whether its ext4 ``needs_recovery``, and its files."""

    def __init__(self, path: str, image_format: str, copy: Path) -> None:
        self.copy = copy
        subprocess.run(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", path, str(copy)], check=True, capture_output=True)
        self.needs_recovery = "needs_recovery" in _run("dumpe2fs", "-h", str(copy))

    def read(self, name: str) -> bytes:
        """A file, as far as it is there."""
        out = self.copy.with_suffix(".file")
        out.write_bytes(b"")
        subprocess.run(["debugfs", "-R", f"dump {name} {out}", str(self.copy)], capture_output=True, check=False)
        return out.read_bytes()

    def is_clean(self) -> bool:
        """Whether e2fsck finds nothing to do, without a replay of the journal."""
        return subprocess.run(["e2fsck", "-fn", str(self.copy)], capture_output=True, check=False).returncode == 0
