# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenStack Cinder's own NFS driver on a plain directory, without a service.

The driver, its locks, its image inspection and qemu-img are real. Instead of a database there are objects that remember
what the driver saves; mounting does nothing; what it would do as root it does as this user.
"""

from __future__ import annotations

import contextlib
import types
import uuid
from pathlib import Path
from unittest import mock

import cinder.privsep
from cinder import coordination, objects, utils
from cinder.volume import configuration
from cinder.volume.drivers import nfs, remotefs
from oslo_config import cfg

EXPORT = "nas1:/vols"
BACKEND = configuration.SHARED_CONF_GROUP


class Context:
    """The request context, of which the driver wants two names."""

    user_id = project_id = "interop"

    def elevated(self) -> Context:
        return self


class CinderVolume:
    """A volume as Cinder's database knows it. ``size`` is in GiB, ``admin_metadata`` holds the formats."""

    encryption_key_id = volume_type = volume_type_id = None
    status = "available"
    attach_status = "detached"

    def __init__(self, size: int, known: dict) -> None:
        self.id = str(uuid.uuid4())
        self.name = f"volume-{self.id}"
        self.size = size
        self.provider_location = EXPORT
        self.admin_metadata: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.obj_context = Context()
        known[self.id] = self

    def __getitem__(self, key: str) -> object:
        return getattr(self, key)

    def obj_as_admin(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def save(self) -> None:
        """The object itself is what is remembered."""


class CinderSnapshot:
    """A snapshot as Cinder's database knows it."""

    encryption_key_id = None
    status = "available"

    def __init__(self, volume: CinderVolume, name: str | None = None, display_name: str = "") -> None:
        self.id = name or str(uuid.uuid4())
        self.volume, self.volume_id, self.display_name = volume, volume.id, display_name
        self.obj_context = self._context = Context()

    def create(self) -> None:
        """Nothing to do without a database; so are the other two."""

    save = destroy = create


class Cinder:
    """The driver, set up as in cinder.conf, and the "database" of volumes by id."""

    def __init__(self, directory: Path, qcow2: bool) -> None:
        self.volumes: dict[str, CinderVolume] = {}
        self.directory = directory
        self._configure(directory, qcow2)
        self._database = contextlib.ExitStack()
        self._enter_database()
        self.driver = nfs.NfsDriver(configuration=configuration.Configuration([], config_group=BACKEND))
        self.driver._execute = utils.execute
        self.driver._remotefsclient.mount = mock.Mock()
        self.share = Path(self.driver._get_mount_point_for_share(EXPORT))
        self.share.mkdir(parents=True)
        self.driver.do_setup(Context())
        self.driver._ensure_shares_mounted()

    def _configure(self, directory: Path, qcow2: bool) -> None:
        (directory / "shares").write_text(EXPORT + "\n")
        configuration.CONF([], project="cinder", default_config_files=[])
        wanted = {
            "nfs_shares_config": str(directory / "shares"),
            "nfs_mount_point_base": str(directory / "mnt"),
            "nfs_snapshot_support": True,
            "nfs_qcow2_volumes": qcow2,
            "nas_secure_file_operations": "false",
            "nas_secure_file_permissions": "false",
        }
        for name, value in wanted.items():
            cfg.CONF.set_override(name, value, group=BACKEND)
        cfg.CONF.set_override("state_path", str(directory))
        cfg.CONF.set_override("image_conversion_dir", str(directory))
        cfg.CONF.set_override("backend_url", f"file://{directory}/coordination", group="coordination")
        coordination.COORDINATOR.stop()
        coordination.COORDINATOR.start()
        cinder.privsep.sys_admin_pctxt.set_client_mode(False)

    def _enter_database(self) -> None:
        execute = utils.execute

        def as_this_user(*command: str, **options: object) -> tuple:
            """Without the Python that Cinder starts around every qemu-img to limit its memory."""
            options.update(run_as_root=False, prlimit=None)
            return ("", "") if command[0] == "mount.nfs" else execute(*command, **options)

        def snapshot(context: Context, volume_id: str, display_name: str, **_rest: object) -> CinderSnapshot:
            return CinderSnapshot(self.volumes[volume_id], display_name=display_name)

        database = types.SimpleNamespace(get_by_id=lambda _context, key: self.volumes[key])
        for patch in (
            mock.patch.object(utils, "execute", as_this_user),
            mock.patch.object(remotefs.compute, "API", mock.Mock()),
            mock.patch.object(objects, "Snapshot", snapshot, create=True),
            mock.patch.object(objects, "Volume", database, create=True),
        ):
            self._database.enter_context(patch)

    def close(self) -> None:
        self._database.close()
        coordination.COORDINATOR.stop()

    # -- what a user of OpenStack asks for ---------------------------------------------------------------------------

    def create_volume(self, size: int) -> CinderVolume:
        volume = CinderVolume(size, self.volumes)
        self.driver.create_volume(volume)
        return volume

    def delete_volume(self, volume: CinderVolume) -> None:
        self.driver.delete_volume(volume)
        del self.volumes[volume.id]

    def create_snapshot(self, volume: CinderVolume, name: str) -> None:
        self.driver.create_snapshot(CinderSnapshot(volume, name))

    def delete_snapshot(self, volume: CinderVolume, name: str) -> None:
        self.driver.delete_snapshot(CinderSnapshot(volume, name))

    def extend(self, volume: CinderVolume, size: int) -> None:
        self.driver.extend_volume(volume, size)
        volume.size = size

    def from_snapshot(self, volume: CinderVolume, name: str) -> CinderVolume:
        made = CinderVolume(volume.size, self.volumes)
        self.driver.create_volume_from_snapshot(made, CinderSnapshot(volume, name))
        return made

    def clone(self, volume: CinderVolume) -> CinderVolume:
        made = CinderVolume(volume.size, self.volumes)
        self.driver.create_cloned_volume(made, volume)
        return made

    # -- what Cinder would show --------------------------------------------------------------------------------------

    def attached(self, volume: CinderVolume) -> tuple[str, str]:
        """(path, format) with which Cinder would attach the volume to a virtual machine."""
        data = self.driver.initialize_connection(volume, {})["data"]
        return str(self.share / data["name"]), data["format"]

    def point(self, volume: CinderVolume, name: str) -> tuple[str, str]:
        """(path, format) of what Cinder reads for a volume made from the snapshot."""
        files = self.driver._read_info_file(self.driver._local_path_volume_info(volume))
        below = self.driver._qemu_img_info(str(self.share / files[name]), volume.name).backing_file
        path = str(self.share / below)
        return path, self.driver._qemu_img_info(path, volume.name).file_format

    def snapshots(self, volume: CinderVolume) -> list[str]:
        return sorted(self.driver._get_volume_snapshots(volume))

    # -- what an operator tells the database after others have worked on the share -------------------------------------

    def told(self, volume: CinderVolume, size: int, active_format: str, base_format: str) -> None:
        volume.size = size
        volume.admin_metadata.update(format=active_format, base_format=base_format)
