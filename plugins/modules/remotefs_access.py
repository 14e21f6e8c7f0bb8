#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Open a point of a volume read-only, for restoring single files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_access
short_description: Open a point of a volume read-only, for restoring single files
version_added: 1.1.0
description:
  - Shows a snapshot of a volume, or its present, on this host. It is a file with the content of the disk (O(path)), or a socket of NBD (O(nbd)).
    Nobody can write there.
  - So single files can be copied out of a snapshot with programs that read images of disks, such as C(debugfs), C(mcopy) and C(7z). They need no
    mount, no loop device and no right on the volume.
  - C(qemu-storage-daemon) shows it. It goes on when the task has ended, and ends by itself when O(ttl) is over, whatever becomes of Ansible.
  - A snapshot can be opened while a machine runs on the volume, because its data never changes.
  - The files of an opened point are in use for whoever would change them. Deleting that snapshot or an older one, merging into those files,
    and removing the volume fail with C(in_use). Taking more snapshots is possible.
  - If the daemon is killed, nothing stays. If its guard is killed too, the next task of this module on the host takes away what they left.
author:
  - remotefs.storage contributors (@remotefs)
requirements:
  - C(qemu-storage-daemon) of QEMU 7.2 or newer. Debian has it in the package qemu-system-common.
  - FUSE for O(path), which is the device C(/dev/fuse). A user other than root also needs C(fusermount3). O(nbd) needs neither.
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.change
  - remotefs.storage.attributes.action_group_volumes
  - remotefs.storage.store
options:
  share:
    description:
      - The share of the volume, its source or its directory. It is required with V(state=opened), and beside O(volume) alone.
  volume:
    description: The name of the volume. It is required with V(state=opened).
    type: str
  snapshot:
    description:
      - The snapshot that is shown. Without it, it is the present of the volume, which nobody may write to as long as it is opened. A machine that
        has it open is C(in_use), and a machine does not start meanwhile.
    type: str
  path:
    description:
      - The file that shows the content, as an absolute path on this host. The file must not be there, and its directory must be. Only root and the
        user of the task may be able to change the directories of the path.
      - Only the user of the task can read the file.
    type: path
  nbd:
    description:
      - The socket of a server of NBD, as an absolute path of at most 107 bytes on this host. Otherwise it is as O(path).
      - The name of the export is C(VOLUME@SNAPSHOT), or C(VOLUME) for the present. RV(access.uri) has both.
    type: path
  state:
    description:
      - V(opened) shows the point. If it is shown already, its time begins anew (RV(renewed)), which is no change.
      - V(closed) ends that. Name O(path) or O(nbd), or O(share) and O(volume) for all points of a volume that are opened on this host.
      - Programs that read the point at that moment get errors.
    type: str
    choices: [opened, closed]
    default: opened
  ttl:
    description: For how long the point is shown. A whole number with V(s), V(m), V(h), V(d) or V(w).
    type: str
    default: 1h
  run_dir:
    description:
      - The directory in which opened points are recorded. It must belong to the user of the task alone, and to this host.
      - The default is C(/run/remotefs-access) for root, and C(remotefs-access) in C(XDG_RUNTIME_DIR) for others. Each task on a point needs the
        same one.
    type: path
  lock_timeout:
    description: Seconds to wait for another task that works with the same volume, or with the same O(path) or O(nbd).
    type: float
    default: 90
  break_lock:
    description: Take the lock of the volume from a task whose host died, where the file system leaves such a lock behind.
    type: bool
    default: false
  assume_unused:
    description:
      - Confirm that nobody writes to the present of the volume, where the file system cannot show that. It is not needed with O(snapshot).
    type: bool
    default: false
notes:
  - What keeps others from changing the files are QEMU's lock bytes. Where a share does not show the locks of others (NFS with C(nolock), SMB
    with C(nobrl), sshfs), a mark on the share keeps tasks of this collection away, until the point is closed or 15 minutes after its end. Other
    programs do not see it.
  - The daemon runs with the rights of the task's user, and reads what guests have written. It gets the opened files, each with its recorded format.
    So it follows no name that an image has within.
seealso:
  - module: remotefs.storage.remotefs_image
  - module: remotefs.storage.remotefs_volume
"""

EXAMPLES = r"""
- name: Show what a disk was on Tuesday
  remotefs.storage.remotefs_access:
    share: nas1:/vols
    volume: db01
    snapshot: tuesday
    path: /run/db01.img
    ttl: 30m
  register: opened

- name: Copy a file out of the disk's file system
  ansible.builtin.command:
    argv: [debugfs, -R, dump /etc/fstab /root/fstab.tuesday, "{{ opened.access.path }}"]
    creates: /root/fstab.tuesday

- name: Close it
  remotefs.storage.remotefs_access:
    path: /run/db01.img
    state: closed

- name: Show it to programs that speak NBD, without FUSE
  remotefs.storage.remotefs_access:
    share: nas1:/vols
    volume: db01
    snapshot: tuesday
    nbd: /run/db01.nbd
  register: opened

- name: Copy it from there
  ansible.builtin.command:
    argv: [qemu-img, convert, -f, raw, -O, qcow2, "{{ opened.access.uri }}", /var/tmp/db01.qcow2]
    creates: /var/tmp/db01.qcow2

- name: Close all points of the volume that are opened on this host
  remotefs.storage.remotefs_access:
    share: nas1:/vols
    volume: db01
    state: closed
"""

RETURN = r"""
access:
  description: The opened point.
  returned: success, with V(state=opened)
  type: dict
  contains:
    volume: {description: The name of the volume., type: str, returned: always}
    snapshot: {description: The snapshot; null for the present., type: str, returned: always}
    share: {description: The share of the volume., type: str, returned: always}
    path: {description: The file that shows it; null with O(nbd)., type: str, returned: always}
    nbd: {description: The socket of the server; null with O(path)., type: str, returned: always}
    export: {description: The name of the export at O(nbd)., type: str, returned: always}
    uri: {description: 'The address of the export at O(nbd), as QEMU and libnbd take it.', type: str, returned: always}
    format: {description: 'The format of what is shown, which is always V(raw).', type: str, returned: always}
    size: {description: Its size in bytes., type: int, returned: always}
    pid: {description: The process that shows it; null in check mode., type: int, returned: always}
    opened: {description: When it was opened (UTC)., type: str, returned: always}
    expires: {description: When it is closed by itself (UTC)., type: str, returned: always}
  sample:
    volume: db01
    snapshot: tuesday
    share: nas1:/vols
    path: /run/db01.img
    nbd: null
    export: null
    uri: null
    format: raw
    size: 21474836480
    pid: 4711
    opened: '2026-11-28T03:00:00Z'
    expires: '2026-11-28T04:00:00Z'
renewed:
  description: Whether the point was shown already, and only its time began anew.
  returned: success
  type: bool
closed:
  description: What was closed.
  returned: success
  type: list
  elements: dict
  sample: [{volume: db01, snapshot: tuesday, share: 'nas1:/vols', path: /run/db01.img, nbd: null, size: 21474836480, files: [db01]}]
cleaned:
  description: Where points had been shown whose processes were killed, and what was left of them was taken away.
  returned: success
  type: list
  elements: str
recovered:
  description: What an interrupted task had left on the volume, and how it was ended.
  returned: always
  type: list
  elements: dict
actions:
  description: The steps done, in order; in check mode those to be done. To renew is none.
  returned: always
  type: list
  elements: dict
  sample: [{step: open_point, point: db01@tuesday, path: /run/db01.img}]
error_code:
  description: The kind of failure, see docs/errors.md.
  returned: failure
  type: str
  sample: in_use
traceback:
  description: Where a fault that nobody foresaw happened.
  returned: when there was one
  type: str
"""

from ..module_utils import arguments, changes, errors

_SPEC = {
    "share": arguments.STORE["share"],
    "mount_base": arguments.STORE["mount_base"],
    "volume": {"type": "str"},
    "snapshot": {"type": "str"},
    "path": {"type": "path"},
    "nbd": {"type": "path"},
    "state": {"type": "str", "choices": ["opened", "closed"], "default": "opened"},
    "ttl": {"type": "str", "default": "1h"},
    "run_dir": {"type": "path"},
    "lock_timeout": changes.CHANGE["lock_timeout"],
    "break_lock": changes.CHANGE["break_lock"],
    "assume_unused": changes.CHANGE["assume_unused"],
}


def _done(params: dict, options):
    from ..module_utils.access import folders, guard, targets
    from ..module_utils.operations import opened_points
    from ..module_utils.operations.candidates import find_candidates
    from ..module_utils.plan.retention import parse_duration

    directory = folders.AccessDirectory(params["run_dir"] or folders.usual_directory())
    kind = guard.FUSE if params["path"] is not None else guard.NBD
    given = params["path"] if params["path"] is not None else params["nbd"]
    target = None if given is None else targets.target_at(kind, given)
    if params["state"] == "closed":
        if target is None:
            changes.require(params, "volume", "share")
        request = opened_points.CloseRequest(target, params["volume"], params["snapshot"], _known_as(params), directory)
        return opened_points.close_points(request, options)
    changes.require(params, "volume", "share")
    if target is None:
        raise errors.InvalidParameter("option path", "neither it nor nbd is given", "say where the point is to be shown")
    seconds = parse_duration(params["ttl"], "option ttl")
    found = find_candidates(params["share"], params["mount_base"])
    return opened_points.open_point(opened_points.OpenRequest(found, params["volume"], params["snapshot"], target, seconds, directory), options)


def _known_as(params: dict) -> frozenset:
    """The names and directories of the shares that are given. Whoever closes a point need not reach its share."""
    from ..module_utils.mounts.resolve import clean_path, is_directory_name, share_names
    from ..module_utils.operations.candidates import find_candidates

    if not params["share"]:
        return frozenset()
    found = {clean_path(name, "share") if is_directory_name(name) else name for name in share_names(params["share"])}
    try:
        found.update(name for share in find_candidates(params["share"], params["mount_base"]).shares for name in (share.source, share.path))
    except errors.StorageError:
        pass
    return frozenset(found)


def _result(done) -> dict:
    told = {"changed": done.changed, "renewed": done.renewed, "closed": list(done.closed), "cleaned": list(done.cleaned)}
    told.update(actions=list(done.actions), recovered=list(done.recovered), diff={"before": done.before, "after": done.after})
    return told if done.access is None else {**told, "access": done.access}


def main() -> None:
    module = changes.make_module(_SPEC, mutually_exclusive=[("path", "nbd")])
    try:
        result = _result(_done(module.params, changes.plain_options(module)))
    except Exception as error:  # one that nobody foresaw is a failure with a code too
        result = changes.failure(errors.as_storage_error(error, "this task"))
    changes.leave(module, result, str(module.params["path"] or module.params["nbd"] or module.params["volume"]))


if __name__ == "__main__":
    main()
