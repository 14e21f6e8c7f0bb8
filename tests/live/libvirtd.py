# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A libvirtd of the tests' own, in a mount namespace of its own, and machines without a guest that it runs."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ansible_collections.remotefs.storage.plugins.module_utils.apply.libvirt import definition
from ansible_collections.remotefs.storage.plugins.module_utils.attachments import Attachment

from .guest import CLUSTER, Guest, Live

_PLACES = ("/etc/libvirt", "/run/libvirt", "/var/cache/libvirt", "/var/lib/libvirt", "/var/log/libvirt")
_QEMU = 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\ncgroup_controllers = []\nnamespaces = []\nstdio_handler = "file"\n'
_STARTED = 60  # seconds
DISK = "/machine/peripheral/virtio-disk{}/virtio-backend"
_DOMAIN = """<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <metadata><app:kept xmlns:app='urn:somebody:else'>yes</app:kept></metadata>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <on_poweroff>destroy</on_poweroff>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}<graphics type='vnc' passwd='secret'><listen type='none'/></graphics></devices>
  <seclabel type='none'/>
  <qemu:commandline><qemu:arg value='-no-user-config'/></qemu:commandline>
</domain>"""
_ONE = (
    "<disk type='file' device='disk'><driver name='qemu' type='{format}'{cache}/><source file='{path}'/>"
    "<target dev='{target}' bus='virtio'/>{more}</disk>"
)


def one_disk(name: str, path: str, image_format: str, cache: str = "", more: str = "") -> str:
    """The XML of a domain with one disk. :param more: further elements of that."""
    cached = f" cache='{cache}'" if cache else ""
    return _DOMAIN.format(name=name, disks=_ONE.format(format=image_format, path=path, target="vda", cache=cached, more=more))


class Libvirtd:
    """A libvirt that no other program uses. ``uri`` reaches it."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="lv-", dir="/tmp"))
        self.uri = f"qemu+unix:///system?socket={self.directory}/libvirt-sock"
        (self.directory / "libvirtd.conf").write_text(f'auth_unix_rw="none"\nunix_sock_dir="{self.directory}"\n')
        (self.directory / "qemu.conf").write_text(_QEMU)
        made = " ".join(_PLACES)
        self._add_user()
        mounts = f"for one in passwd group; do mount --bind {self.directory}/$one /etc/$one; done; "
        mounts += f"mkdir -p {made}; for one in {made}; do mount -t tmpfs t $one; done; mkdir -p " + " ".join(f"{one}/qemu" for one in _PLACES[2:])
        self._inside = ["unshare", "--mount", "sh", "-c", f'set -e; {mounts}; cp {self.directory}/qemu.conf /etc/libvirt/; exec "$@"', "sh"]
        self.start()

    def _add_user(self) -> None:
        """The user that libvirt wants to exist, although it is not the one that machines run as. A package makes it that nothing else here needs."""
        for file, entry in (("passwd", "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin"), ("group", "libvirt-qemu:x:64055:")):
            text = Path("/etc", file).read_text()
            is_there = any(line.startswith("libvirt-qemu:") for line in text.splitlines())
            (self.directory / file).write_text(text if is_there else f"{text.rstrip()}\n{entry}\n")

    def start(self) -> None:
        """Start it in a namespace of its own."""
        self._log = (self.directory / "log").open("ab")
        self._launch(self._inside)

    def _launch(self, inside: list[str], kept: tuple[int, ...] = ()) -> None:
        command = [*inside, "libvirtd", "-f", f"{self.directory}/libvirtd.conf", "-p", f"{self.directory}/pid"]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, start_new_session=True, pass_fds=kept)
        until = time.monotonic() + _STARTED
        while subprocess.run(["virsh", "-c", self.uri, "version"], capture_output=True, check=False).returncode != 0:
            assert time.monotonic() < until and self.process.poll() is None, (self.directory / "log").read_text()
            time.sleep(0.1)

    def restart(self) -> None:
        """Kill it, and start it again in its namespace. Its domains go on, as they do when a host's libvirtd dies."""
        pid = self._pid()
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        os.kill(pid, 9)
        self.process.wait(30)
        self._launch(["nsenter", f"--mount=/proc/self/fd/{namespace}"], (namespace,))
        os.close(namespace)

    def _pid(self) -> int:
        return int((self.directory / "pid").read_text())

    def stop(self) -> None:
        for uuid in self("list", "--uuid").split():
            self("destroy", uuid)
        self.process.terminate()
        self.process.wait(30)
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __call__(self, *words: str, given: str | None = None) -> str:
        """What virsh prints."""
        done = subprocess.run(["virsh", "-q", "-c", self.uri, *words], input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout


class DomainGuest(Guest):
    """A domain that runs, and what its disks must show. It is written by commands to its QEMU, as a guest would."""

    def __init__(self, libvirtd: Libvirtd, name: str, data: bytearray) -> None:
        self.libvirtd, self.name, self.data = libvirtd, name, data
        self._lock, self._paused, self.written = threading.Lock(), False, 0
        self.socket = Attachment(uri=libvirtd.uri, domain=name)  # type: ignore[assignment]

    @property
    def alive(self) -> bool:
        return self.name in self.libvirtd("list", "--name").split()

    @property
    def pid(self) -> int:
        uuid = self.libvirtd("domuuid", self.name).strip().encode()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if uuid in words and words[0].endswith(b"qemu-system-x86_64"):
                return int(entry)
        raise AssertionError("it does not run")

    def write(self, offset: int, length: int, pattern: int, disk: int = 0) -> None:
        """Write as the guest does, and flush as a careful one would."""
        with self._lock:
            device = DISK.format(disk)
            self.libvirtd("qemu-monitor-command", self.name, "--hmp", f'qemu-io -d {device} "write -P {pattern} {offset} {length}"')
            self.data[offset : offset + length] = bytes([pattern]) * length
            self.libvirtd("qemu-monitor-command", self.name, "--hmp", f'qemu-io -d {device} "flush"')
            self.written += 1

    def flush(self) -> None:
        self.libvirtd("suspend", self.name)
        self.libvirtd("resume", self.name)

    def opened(self) -> list[str]:
        return sorted(os.path.basename(os.readlink(f"/proc/{self.pid}/fd/{fd}")) for fd in os.listdir(f"/proc/{self.pid}/fd") if self._is_image(fd))

    def _is_image(self, fd: str) -> bool:
        try:
            return "/share" in os.readlink(f"/proc/{self.pid}/fd/{fd}")
        except OSError:
            return False

    def kill(self) -> None:
        """The process ends as it would with the host's power."""
        os.kill(self.pid, 9)
        self._gone()

    def quit(self) -> None:
        self.libvirtd("destroy", self.name)
        self._gone()

    def _gone(self) -> None:
        until = time.monotonic() + 20
        while self.alive:
            assert time.monotonic() < until
            time.sleep(0.02)


class LiveDomain(Live):
    """A volume ``v``, and a domain that has it as its disk."""

    def __init__(self, libvirtd: Libvirtd, path: Path, image_format: str = "raw", **more: Any) -> None:
        self.libvirtd = libvirtd
        super().__init__(path, image_format, **more)
        self.name = f"d{os.urandom(4).hex()}"

    def xml(self, cache: str = "", more: str = "", path: str | None = None) -> str:
        told = self.info()
        file = path or told["path"]
        image_format = next(image["format"] for image in told["chain"] if image["file"] == os.path.basename(file))
        return one_disk(self.name, file, image_format, cache, more)

    def define(self, **how: str) -> Attachment:
        """A domain that is off."""
        self.libvirtd("define", "/dev/stdin", given=self.xml(**how))
        return self.attachment

    @property
    def attachment(self) -> Attachment:
        return Attachment(uri=self.libvirtd.uri, domain=self.name)

    def scribble(self, seed: int) -> None:
        """Some writes while nobody has the volume open."""
        chance, told = random.Random(seed), self.info()
        commands = []
        for _time in range(3):
            length = chance.choice([512, 4096, CLUSTER, 3 * CLUSTER])
            offset, pattern = chance.randrange(0, len(self.data) - length, 512), chance.randrange(1, 255)
            commands += ["-c", f"write -P {pattern} {offset} {length}"]
            self.data[offset : offset + length] = bytes([pattern]) * length
        subprocess.run(["qemu-io", "-f", told["format"], *commands, told["path"]], check=True, capture_output=True)

    def options(self, **changes: Any):
        return super().options(**{"attachment": self.attachment if hasattr(self, "name") else None, **changes})

    def run(self, transient: bool = False, define: bool = True, **how: str) -> DomainGuest:
        """Start the domain, on what its definition says."""
        if transient:
            self.libvirtd("create", "/dev/stdin", given=self.xml(**how))
        else:
            if define:
                self.define(**how)
            self.libvirtd("start", self.name)
        self.guest = DomainGuest(self.libvirtd, self.name, self.data)
        return self.guest

    def defined(self) -> list[str]:
        """The files of the disk, as the definition names them, and the format of the first."""
        (disk,) = definition.disks(self.libvirtd("dumpxml", "--inactive", self.name))
        return [os.path.basename(image.path) for image in disk.images] + [str(disk.images[0].format)]

    def remove(self) -> None:
        if self.guest is not None and self.guest.alive:
            self.libvirtd("destroy", self.name)
        if self.name in self.libvirtd("list", "--all", "--name").split():
            self.libvirtd("undefine", self.name, "--managed-save", "--snapshots-metadata", "--checkpoints-metadata")

    def give_back(self) -> None:
        self.remove()
        self.guest = None
        super().give_back()
