# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenStack os-brick's own connectors, given the `connection` of volumes as modules return them, and what a machine would read through the path."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import contextmanager
from typing import Any, Iterator

from os_brick import exception
from os_brick.initiator.connector import InitiatorConnector
from os_brick.initiator.connectors.remotefs import RemoteFsConnector
from oslo_concurrency import processutils

from ansible_collections.remotefs.storage.plugins.module_utils.model import MOUNT_BASE
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.candidates import find_candidates
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

SIZE, BLOCK = 4 << 20, 64 << 10


class Brick:
    """A connector for one `connection`, made as Cinder and Nova make theirs. It runs the commands that it is told to, as root, and keeps them."""

    def __init__(self, connection: dict) -> None:
        self.data, self.commands = connection["data"], []
        protocol = connection["driver_volume_type"]
        if protocol == "smbfs":
            assert not self._factory_has(protocol), "docs/attach.md says that the factory has no smbfs"
            self.connector: Any = RemoteFsConnector("cifs", None, conn=connection, execute=self._run, smbfs_mount_point_base=connection["mount_point_base"])
        else:
            self.connector = InitiatorConnector.factory(protocol, None, conn=connection, execute=self._run)

    @staticmethod
    def _factory_has(protocol: str) -> bool:
        try:
            InitiatorConnector.factory(protocol, None)
        except exception.InvalidConnectorProtocol:
            return False
        return True

    def _run(self, *command: str, **options: Any) -> tuple[str, str]:
        self.commands.append([str(word) for word in command])
        return processutils.execute(*command, **options)

    def mounts(self) -> list[list[str]]:
        """The mount commands that it ran."""
        return [command for command in self.commands if command[0] == "mount"]

    @contextmanager
    def attached(self) -> Iterator[str]:
        """The path at which os-brick gives the volume to a machine."""
        told = self.connector.connect_volume(self.data)
        yield told["path"]
        self.connector.disconnect_volume(self.data, told)


def content_at(path: str, image_format: str) -> bytes:
    """What a machine reads that opens ``path`` in this format, and only in this one."""
    if image_format == "raw":
        with open(path, "rb") as stream:
            return stream.read()
    with tempfile.NamedTemporaryFile(prefix="remotefs-brick-") as flat:
        subprocess.run(["qemu-img", "convert", "-U", "-f", image_format, "-O", "raw", path, flat.name], check=True)
        return flat.read()


class Volumes:
    """Volumes of one share, each with what it holds; made by the use cases behind the modules."""

    def __init__(self, share: str, assume_unused: bool = False) -> None:
        self.where, self.options = find_candidates([share], MOUNT_BASE), Options(assume_unused=assume_unused)
        self.contents: dict[str, bytes] = {}

    def make(self, name: str, image_format: str, snapshot: bool) -> None:
        """With data at the beginning and at the end, and with a snapshot between the two writes if there is one."""
        desired = DesiredVolume(name, SIZE, image_format, mode=0o666)
        volumes.ensure_present(updating.VolumeRequest(self.where, desired), self.options)
        self._write(name, 0, 7)
        if snapshot:
            snapshots.take(snapshots.SnapshotRequest(self.where, name, DesiredSnapshot("s1")), self.options)
        self._write(name, SIZE - BLOCK, 9)
        self.contents[name] = bytes([7]) * BLOCK + bytes(SIZE - 2 * BLOCK) + bytes([9]) * BLOCK

    def _write(self, name: str, offset: int, value: int) -> None:
        (volume,) = reading.list_volumes(self.where.shares[0], [name])
        if volume["format"] == "raw":
            with open(volume["path"], "r+b") as stream:
                stream.seek(offset)
                stream.write(bytes([value]) * BLOCK)
            return
        subprocess.run(["qemu-io", "-f", volume["format"], "-c", f"write -q -P {value} {offset} {BLOCK}", volume["path"]], check=True)

    def told(self) -> list[dict]:
        """The volumes as remotefs_volume_info returns them."""
        found = reading.list_volumes(self.where.shares[0], sorted(self.contents))
        assert [volume["name"] for volume in found] == sorted(self.contents)
        return found

    def require_attached(self, volume: dict) -> Brick:
        """os-brick finds the volume where the modules say that it is, and a machine reads its content there in the format of `connection`."""
        brick = Brick(volume["connection"])
        with brick.attached() as path:
            assert path == volume["path"], (path, volume["path"])
            assert content_at(path, volume["connection"]["data"]["format"]) == self.contents[volume["name"]], path
        assert os.path.exists(path), "to disconnect is not to unmount: other machines may use the share"
        return brick
