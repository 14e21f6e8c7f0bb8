# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real QEMU without a guest, whose disk the test writes as a guest would, and a model of what the disk must hold.

Tasks get one monitor, the test has another, so that the disk is written while a task works.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, TypeVar

from ansible_collections.remotefs.storage.plugins.module_utils.attachments import Attachment
from ansible_collections.remotefs.storage.plugins.module_utils.model import Share
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import Candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

MIB = 1 << 20
SIZE = 4 * MIB
CLUSTER = 1 << 16
W = TypeVar("W", bound="Writer")
DEVICE = "/machine/peripheral/d0/virtio-backend"


def may_mount() -> bool:
    """Whether this process may mount: root can be without that in a container."""
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


def qemu_version() -> tuple[int, ...]:
    """The version of the QEMU that runs machines here, such as (7, 2, 0)."""
    told = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.findall(r"version ([0-9.]+)", told)[0].split(".")))


class Refused(Exception):
    """QEMU refused a command."""


class Qmp:
    """The test's own client of a monitor; it shares no code with the one that it tests."""

    def __init__(self, path: str) -> None:
        until = time.monotonic() + 20
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(path)
                break
            except OSError:
                self._socket.close()
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)
        self._socket.settimeout(60)
        self._lines = self._socket.makefile("r")
        self.events: list[dict] = []
        assert "QMP" in json.loads(self._lines.readline())
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        request = {"execute": command, "arguments": {name.replace("_", "-"): value for name, value in arguments.items()}}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            line = self._lines.readline()
            if not line:
                raise EOFError("the monitor closed")
            answer = json.loads(line)
            if "error" in answer:
                raise Refused(answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]
            self.events.append(answer)

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def flags(kind: str, path: Path, image_format: str) -> list[str]:
    """How a machine of this kind is told of its disk."""
    device = ["-device", "virtio-blk-pci,id=d0,drive=disk0"]
    file = {"driver": "file", "filename": str(path)}
    node = {"driver": image_format, "node-name": "disk0", "file": file}
    if kind == "drive":
        return ["-drive", f"file={path},if=none,id=disk0,format={image_format}", *device]
    if kind == "relative":
        return ["-drive", f"file={path.name},if=none,id=disk0,format={image_format}", *device]
    if kind == "bare":  # without a format layer, as newer libvirt has raw disks
        if image_format != "raw":
            raise ValueError("only a raw disk can do without a format layer")
        return ["-blockdev", json.dumps({**file, "node-name": "disk0"}), *device]
    if kind == "direct":
        cache = {"direct": True, "no-flush": False}
        return ["-blockdev", json.dumps({**node, "cache": cache, "file": {**file, "cache": cache}}), *device]
    if kind == "direct drive":
        return ["-drive", f"file={path},if=none,id=disk0,format={image_format},cache=none", *device]
    if kind == "direct file":  # the option stands at the file's node alone
        return ["-blockdev", json.dumps({**node, "file": {**file, "cache": {"direct": True, "no-flush": False}}}), *device]
    if kind == "part":  # of the base
        base = {"driver": "raw", "offset": MIB, "file": {"driver": "file", "filename": str(path.parent / "v")}}
        return ["-blockdev", json.dumps({**node, "backing": base}), *device]
    if kind == "raw above":
        return ["-blockdev", json.dumps({"driver": "raw", "node-name": "disk0", "file": {**node, "node-name": "below"}}), *device]
    if kind == "debug below":
        below = {"driver": "blkdebug", "image": file}
        return ["-blockdev", json.dumps({**node, "file": below}), *device]
    if kind == "iothread":
        return ["-object", "iothread,id=io0", "-blockdev", json.dumps(node), "-device", "virtio-blk-pci,id=d0,drive=disk0,iothread=io0"]
    if kind == "usb":  # can be unplugged without the guest's help
        return ["-blockdev", json.dumps(node), "-device", "qemu-xhci", "-device", "usb-storage,id=d0,drive=disk0"]
    if kind == "cd":
        return ["-blockdev", json.dumps(node), "-device", "ide-cd,id=d0,drive=disk0"]
    if kind == "read only":
        return ["-blockdev", json.dumps({**node, "read-only": True}), *device]
    if kind == "unlocked":  # as with libvirt's shareable disks, or with locks switched off
        return ["-blockdev", json.dumps({**node, "file": {**file, "locking": "off"}}), *device]
    if kind == "compressing":
        return ["-blockdev", json.dumps({"driver": "compress", "node-name": "disk0", "file": {**node, "node-name": "below"}}), *device]
    if kind == "watched":
        target = {"driver": "null-co", "size": SIZE, "read-zeroes": True}
        above = {"driver": "copy-before-write", "node-name": "disk0", "file": {**node, "node-name": "below"}, "target": target}
        return ["-blockdev", json.dumps(above), *device]
    if kind == "filter":
        group = ["-object", json.dumps({"qom-type": "throttle-group", "id": "limits"})]
        above = {"driver": "throttle", "node-name": "disk0", "throttle-group": "limits", "file": {**node, "node-name": "below"}}
        return [*group, "-blockdev", json.dumps(above), *device]
    return ["-blockdev", json.dumps(node), *device]


class Guest:
    """A machine on an image, and ``data``: what its disk must show.

    ``written`` are counted writes that a thread makes while tasks work (see :meth:`busy`).
    """

    of: dict[str, Guest] = {}  # by the monitor that tasks get

    def __init__(self, path: str, image_format: str, data: bytearray, kind: str = "blockdev", more: tuple[str, ...] = (), unshare: bool = False) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="qmp-"))
        self.socket, own = str(self.directory / "task"), str(self.directory / "test")
        self.data, self._lock, self.written = data, threading.Lock(), 0
        self._paused = False
        Guest.of[self.socket] = self
        place, where = Path(path), "/"
        prefix: list[str] = []
        if kind == "relative":
            where = str(place.parent)
        if unshare:  # another mount namespace, where the share is at another place
            (self.directory / "there").mkdir()
            script = f"mount --bind {place.parent} {self.directory}/there && exec \"$@\""
            prefix, place = ["unshare", "--mount", "sh", "-c", script, "sh"], self.directory / "there" / place.name
        monitors = ["-qmp", f"unix:{self.socket},server=on,wait=off", "-qmp", f"unix:{own},server=on,wait=off"]
        machine = ["qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-m", "32", "-S", "-nodefaults", "-display", "none"]
        self._log, self._reader = (self.directory / "log").open("wb"), (self.directory / "log").open("rb")
        command = [*prefix, "stdbuf", "-o0", *machine, *monitors, *flags(kind, place, image_format), *more]
        self.process = subprocess.Popen(command, cwd=where, stdout=self._log, stderr=self._log)
        try:
            self.qmp = Qmp(own)
        except OSError:
            raise AssertionError((self.directory / "log").read_text()) from None

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def write(self, offset: int, length: int, pattern: int) -> None:
        """Write as the guest does, and flush as a careful one would."""
        with self._lock:
            self.qmp("human-monitor-command", command_line=f'qemu-io -d {DEVICE} "write -P {pattern} {offset} {length}"')
            told = self._told()
            assert f"wrote {length}/{length} bytes" in told, told
            self.data[offset : offset + length] = bytes([pattern]) * length
            self.qmp("human-monitor-command", command_line=f'qemu-io -d {DEVICE} "flush"')
            assert "rror" not in self._told()
            self.written += 1

    def wait_for_no_job(self) -> None:
        """Wait until the guardian of a killed task has decided. A write by a command would keep QEMU from hearing it."""
        until = time.monotonic() + 30
        while self.qmp("query-jobs"):
            assert time.monotonic() < until, "the guest's writes wait for ever"
            time.sleep(0.01)

    def wait_while_jobs_run(self) -> None:
        """Wait until jobs that a killed task left rest or have ended: one that runs changes files by itself."""
        while any(job["status"] in ("created", "running") for job in self.qmp("query-jobs")):
            time.sleep(0.01)

    def pause(self) -> None:
        """Let no write begin."""
        self._lock.acquire()
        self._paused = True

    def go_on(self) -> None:
        """Let writes begin again, if they were kept from it."""
        if self._paused:
            self._paused = False
            self._lock.release()

    def _told(self) -> str:
        """What the last command printed: qemu-io inside of QEMU writes to QEMU's own output."""
        return self._reader.read().decode()

    def scribble(self, seed: int, times: int = 3) -> None:
        """Some writes here and there: within clusters, whole ones, over several."""
        chance = random.Random(seed)
        for _time in range(times):
            length = chance.choice([512, 4096, CLUSTER, 3 * CLUSTER])
            self.write(chance.randrange(0, len(self.data) - length, 512), length, chance.randrange(1, 255))

    def busy(self) -> Busy:
        """A context in which the guest writes all the time."""
        return Busy(self)

    def flush(self) -> None:
        """Let QEMU write what it holds in memory, so that others can see it."""
        for node in self.qmp("query-named-block-nodes", flat=True):
            if node["drv"] in ("qcow2", "raw"):
                self.qmp("human-monitor-command", command_line=f'qemu-io {node["node-name"]} "flush"')

    def opened(self) -> list[str]:
        """Names of the files under the disk, by the graph's own account."""
        nodes = self.qmp("query-named-block-nodes", flat=True)
        return sorted(os.path.basename(node["file"]) for node in nodes if node["drv"] == "file")

    def quit(self) -> None:
        try:
            self.qmp("quit")
        except (EOFError, OSError):
            pass
        self.end()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def end(self) -> None:
        self.process.wait(30)
        self.qmp.close()
        self._log.close()


class Writer:
    """Writes by a thread while the context lasts; at least one of them is made. ``_write`` ends soon after ``_stop``."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._failed: BaseException | None = None

    def _write(self) -> None:
        raise NotImplementedError

    def __enter__(self: W) -> W:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the guest's writes hang"
        if self._failed is not None:
            raise self._failed


class Busy(Writer):
    """Writes here and there."""

    def __init__(self, guest: Guest) -> None:
        super().__init__()
        self._guest = guest

    def _write(self) -> None:
        chance = random.Random(7)
        try:
            while True:
                offset = chance.randrange(0, len(self._guest.data) - CLUSTER, 512)
                self._guest.write(offset, chance.choice([512, 4096]), chance.randrange(1, 255))
                if self._stop.is_set():
                    return
        except (EOFError, OSError) as error:
            if self._guest.alive:
                self._failed = error


class Live:
    """A volume ``v`` on a share that is a directory, what its points must show, and tasks on it."""

    def __init__(self, path: Path, image_format: str = "raw", size: int = SIZE, where: Candidates | None = None) -> None:
        self.path = path
        self.where = where or Candidates((Share(str(path), str(path), "directory"),))
        (self.share,) = self.where.shares
        self.points: dict[str, str] = {}
        self.data = bytearray(size)
        self.guest: Guest | None = None
        self.common: dict = {}  # options of all tasks
        self.present(size=size, format=image_format)

    def give_back(self) -> None:
        """End the machine, and remove the share and the model: a sweep makes thousands of them in one test."""
        if self.guest is not None:
            if self.guest.alive:
                self.guest.kill()
            shutil.rmtree(self.guest.directory, ignore_errors=True)
        self.guest, self.data = None, bytearray()
        shutil.rmtree(self.path, ignore_errors=True)

    # -- the machine -------------------------------------------------------------------------------------------------

    def start(self, kind: str = "blockdev", path: str | None = None, more: tuple[str, ...] = (), unshare: bool = False) -> Guest:
        """Start a machine on what info calls the volume's path, or on another of its files."""
        told = self.info()
        file = path or told["path"]
        image_format = next(image["format"] for image in told["chain"] if image["file"] == os.path.basename(file))
        self.guest = Guest(file, image_format, self.data, kind, more, unshare)
        return self.guest

    # -- tasks -------------------------------------------------------------------------------------------------------

    def options(self, **changes: Any) -> Options:
        attachment = self.guest.socket if self.guest is not None else None
        changes = {"lock_timeout": 5, "attachment": attachment, **self.common, **changes}
        return Options(**{**changes, "attachment": named(changes["attachment"])})

    def present(self, **desired: Any):
        request = updating.VolumeRequest(self.where, DesiredVolume("v", **{key: value for key, value in desired.items() if key not in OPTIONS}))
        return volumes.ensure_present(request, self.options(**{key: value for key, value in desired.items() if key in OPTIONS}))

    def take(self, name: str, **options: Any):
        return snapshots.take(snapshots.SnapshotRequest(self.where, "v", DesiredSnapshot(name)), self.options(**options))

    def delete(self, *names: str, **options: Any):
        return snapshots.delete(self.where, "v", list(names), self.options(**options))

    def snapshot(self, name: str, **options: Any) -> None:
        """Take a snapshot, and note what it must show from now on. The guest writes nothing meanwhile."""
        self.points[name] = digest_of(self.data)
        assert self.take(name, **options).changed

    def forget(self, *names: str) -> None:
        """They are deleted."""
        for name in names:
            del self.points[name]

    def grow(self, size: int, **options: Any) -> None:
        assert self.present(size=size, **options).changed
        self.data += bytes(size - len(self.data))

    # -- what is there -----------------------------------------------------------------------------------------------

    def point_now(self) -> str:
        """What a snapshot must show that is taken now."""
        return digest_of(self.data)

    def left_open(self) -> list[str]:
        """Files that the machine has open and that are none of the volume's."""
        return sorted(set(self.guest.opened()) - {image["file"] for image in self.info()["chain"]}) if self.guest is not None else []

    def info(self) -> dict:
        (found,) = reading.list_volumes(self.share, ["v"])
        return found

    def tree(self) -> dict[str, tuple[int, int, str]]:
        """Every file with its inode, length and, of those that no machine writes, content."""
        found = {}
        for path in sorted(self.path.rglob("*")):
            if path.is_file() and ".remotefs/locks" not in str(path):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path.relative_to(self.path))] = (path.stat().st_ino, path.stat().st_size, content)
        return found

    def require_right(self) -> None:
        """Every point and the present show what the model says. The machine may run and must not write."""
        told = self.info()
        assert "error_code" not in told, told
        assert sorted(one["name"] for one in told["snapshots"]) == sorted(self.points)
        if self.guest is not None and self.guest.alive:
            self.guest.flush()
        by_file = {image["file"]: image for image in told["chain"]}
        assert digest(told["path"], told["format"]) == digest_of(self.data), "the present is wrong"
        for one in told["snapshots"]:
            below = by_file[by_file[one["file"]]["backing_file"]]
            assert digest(str(self.path / below["file"]), below["format"]) == self.points[one["name"]], f"snapshot {one['name']} is wrong"
        for image in told["chain"]:
            if image["format"] == "qcow2" and not (self.guest is not None and self.guest.alive):
                checked = subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(self.path / image["file"])], capture_output=True, check=False)
                assert checked.returncode in (0, 3), checked  # 3: leaked clusters, which a kill may leave

    def require_nothing_left(self) -> None:
        """No file but those of the chain, no pending work, no temporary file."""
        told = self.info()
        assert told["pending"] is None
        files = {image["file"] for image in told["chain"]} | {"v.info"}
        assert {path.name for path in self.path.iterdir() if path.is_file()} <= files
        temporary = self.path / ".remotefs" / "tmp"
        assert not temporary.exists() or not os.listdir(temporary)


def named(path: str | Attachment | None) -> Attachment | None:
    """What a task is told of a machine, of which the test may say the path of its monitor alone."""
    return Attachment(path) if isinstance(path, str) else path


OPTIONS = ("check", "attachment", "assume_unused", "lock_timeout", "drop_bitmaps", "discard", "task", "quiesce", "agent", "of_all")


def digest_of(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(path: str, image_format: str) -> str:
    """What an image shows, read by qemu-img whether it is in use or not."""
    with tempfile.NamedTemporaryFile() as copy:
        command = ["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", path, copy.name]
        subprocess.run(command, check=True, capture_output=True)
        return digest_of(Path(copy.name).read_bytes())
