#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount shares, keep them in fstab, and remove them again."""
from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_share
short_description: Mount shares that hold volumes
version_added: 1.0.0
description:
  - Mounts shares, keeps them in fstab, changes their options and removes them again. A plain directory is a share too.
  - The module reads from the kernel what is mounted and with which options. If another source is mounted at the path, the task fails
    and does not unmount it. If an option differs from the desired one, that is a change. The share is remounted in place if the file system
    can do that. Otherwise it is unmounted and mounted again.
  - A share that is in use is never unmounted by force or lazily. The data on a share is never deleted.
  - If autofs manages the path (an automount daemon, or C(x-systemd.automount) in fstab), the task accesses it and reads what autofs mounted.
    It never adds a second mount on top. A warning names options that only the automounter's own table can change.
author:
  - remotefs.storage contributors (@remotefs)
requirements:
  - root, except for O(fstype=directory)
  - nfs-common, cifs-utils, glusterfs-client, sshfs, ceph-common or ceph-fuse (names of Debian's packages), for what is mounted;
    vstorage-client is a package of Virtuozzo, quobyte-client one of Quobyte; 9p and virtiofs need none
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.change
  - remotefs.storage.attributes.action_group
attributes:
  idempotent:
    support: partial
    details: O(state=remounted) mounts again each time.
options:
  src:
    description:
      - The source of the share, such as V(nas1:/vols), V(//nas1/vols), V(user@host:/dir) or V(/srv/volumes).
      - Different spellings that a server treats alike are the same source. Doubled slashes, C(/./), a trailing slash and the letter case of
        a host do not matter. For SMB, backslashes and the letter case of the share's name do not matter either.
      - It may be left out if O(path) is given and the mount table or fstab has the source, for O(state=unmounted), O(state=absent)
        and O(state=remounted).
    type: str
  path:
    description:
      - The directory where it is mounted. It is created if missing.
      - The default is a directory under O(mount_base), named by the MD5 of the exact source, as in OpenStack's os-brick.
        If the share is already mounted in the directory of another spelling of its source, that directory is used.
      - For O(fstype=directory) it is O(src) itself.
    type: path
  mount_base:
    description: The directory under which shares are mounted unless O(path) is given.
    type: path
    default: /var/lib/remotefs/mnt
  fstype:
    description:
      - The file system.
      - With V(auto), what is mounted at the path or listed in fstab decides. If there is nothing, the form of O(src) decides.
        V(//host/share) is V(cifs), V(user@host:/dir) is V(sshfs), V(host:/dir) is V(nfs), V(host:6789:/dir) and V(user@fsid.name=/dir)
        are V(cephfs), V(quobyte://host/volume) is V(quobyte), V(vstorage://cluster) is V(vzstorage).
        A directory is V(bind) if O(path) names another directory and V(directory) otherwise.
        All others must be named, since their sources are plain words or look like those of NFS.
      - V(cephfs) is mounted by the kernel, V(ceph-fuse) by the program of that name, which needs no kernel module for Ceph.
      - V(9p) and V(virtiofs) mount a directory of the machine's own host. O(src) is the tag in the machine's definition.
      - V(vzstorage) is Virtuozzo Storage. O(src) is the name of the cluster.
      - V(other) is any file system that has no value here. Its type goes into O(type). Nothing is known of it, so that locks of other hosts do not count
        as seen there, and tasks that change an image need C(assume_unused).
    type: str
    choices: [auto, directory, bind, nfs, cifs, glusterfs, sshfs, cephfs, ceph-fuse, vzstorage, quobyte, 9p, virtiofs, other]
    default: auto
  type:
    version_added: 1.1.0
    description:
      - The type of the file system for C(mount -t) and for fstab, such as V(lustre) or V(fuse.juicefs), if O(fstype=other).
      - It is refused with any other O(fstype). A type that has a value of O(fstype) is refused too.
    type: str
  opts:
    description:
      - Mount options, as a list or separated by commas.
      - NFS is mounted with C(hard), which is the kernel's default. C(soft) gives a warning, because writes that the server answers late are lost.
      - If no version of NFS is named, 4.2, 4.1, 4.0 and 3 are tried in this order. A warning tells if only a version that the task named itself worked,
        because mount.nfs does not find it at the next boot.
      - For V(9p), C(trans=virtio) and C(version=9p2000.L) are added unless others are given. For V(ceph-fuse), the options that hold O(src).
      - For V(cifs), C(nobrl) is added unless C(brl) is given, because C(qemu-img) cannot create qcow2 files without it.
      - If options contradict each other, the last one counts, as for mount(8).
      - The kernel does not show every option. An option that it does not show counts as being in force if the share was mounted with exactly
        the same options. These are in fstab, and until the next boot in C(/run/remotefs/mounts/).
      - A password among the options is refused. See O(credentials).
      - If this option is left out with O(state=remounted), the options in fstab stay.
    type: list
    elements: str
  credentials:
    description:
      - The user who mounts, and the password. They are never part of a command line, of fstab or of a result.
      - For V(cifs) they are written to a file that only root can read. It lies in C(/etc/remotefs/credentials/), its name is the MD5 of the path,
        and the mount options name it. If credentials are left out, a file from an earlier task for this path stays in use. If they change,
        the share is unmounted and mounted again.
      - For V(cephfs) and V(ceph-fuse) only O(credentials.password) is allowed, and it is the key of the user. It is written to such a file too.
        The user goes into O(opts) (C(name=USER), for V(ceph-fuse) C(ceph.id=USER)), or into O(src) if that is V(user@fsid.name=/dir).
      - For V(sshfs) only O(credentials.password) is allowed. It is given to ssh when the share is mounted. It cannot be stored for the next boot,
        so it requires O(persist=false). A key (C(IdentityFile=) in O(opts)) has no such limit.
    type: dict
    suboptions:
      username:
        description: The user. For V(sshfs) it is part of O(src) instead, for V(cephfs) and V(ceph-fuse) of O(opts).
        type: str
      password:
        description: The password.
        type: str
      domain:
        description: The domain or workgroup.
        type: str
  state:
    description:
      - V(mounted) mounts the share and, with O(persist), writes it to fstab.
      - V(present) only writes it to fstab. A plain directory is created.
      - V(unmounted) unmounts it and leaves fstab alone.
      - V(absent) unmounts it and removes its line from fstab and its credentials. It also removes its mount directory, if that is empty and
        under O(mount_base). If a share is mounted several times at the path, each mount is unmounted. An automounter's own table is not changed.
      - V(remounted) unmounts it if it is mounted, and mounts it. This is always a change. It repairs a share whose server came back with stale file handles.
      - A plain directory is not touched by V(unmounted), V(absent) and V(remounted).
    type: str
    choices: [mounted, present, unmounted, absent, remounted]
    default: mounted
  persist:
    description: Whether to keep the share in fstab. With V(false) fstab is not written, and its options are not used.
    type: bool
    default: true
  fstab:
    description: The table to edit. The new file replaces the old one in one step. Comments, the order and all other lines stay as they are.
    type: path
    default: /etc/fstab
  attempts:
    description: How many times mounting is tried within O(timeout). The pauses in between start at one second and grow.
    type: int
    default: 3
  timeout:
    description: Seconds that one share may take in all. If its server does not answer in this time, the task fails.
    type: int
    default: 60
  maintenance:
    version_added: 1.1.0
    description:
      - V(true) puts the share into maintenance. No new volume is placed there, whether it is empty, a clone, an image, a replica or one that moves there.
        Such a task takes another of its candidate shares, or fails with C(no_eligible_share). All that is there already can be used and changed as before.
      - V(false) ends that. If this option is left out, nothing changes.
      - The mark is a file on the share, so it counts for the tasks of all hosts. It needs the share to be mounted, so it goes with
        O(state=mounted) and O(state=remounted), and with a plain directory.
      - On a full share the mark takes room that the collection keeps for that. Where there is none left, the task fails with C(no_space). Taking the
        mark away needs no room.
    type: bool
  shares:
    description:
      - Many shares in one task. The task's own values are the defaults of each share.
      - The task attempts all shares, and fails at the end if one of them failed.
    type: list
    elements: dict
    suboptions:
      src: {description: See O(src)., type: str}
      path: {description: See O(path)., type: path}
      mount_base: {description: See O(mount_base)., type: path}
      fstype:
        description: See O(fstype).
        type: str
        choices: [auto, directory, bind, nfs, cifs, glusterfs, sshfs, cephfs, ceph-fuse, vzstorage, quobyte, 9p, virtiofs, other]
      type: {description: See O(type)., type: str, version_added: 1.1.0}
      opts: {description: See O(opts)., type: list, elements: str}
      credentials:
        description: See O(credentials).
        type: dict
        suboptions:
          username: {description: See O(credentials.username)., type: str}
          password: {description: See O(credentials.password)., type: str}
          domain: {description: See O(credentials.domain)., type: str}
      state: {description: See O(state)., type: str, choices: [mounted, present, unmounted, absent, remounted]}
      persist: {description: See O(persist)., type: bool}
      fstab: {description: See O(fstab)., type: path}
      attempts: {description: See O(attempts)., type: int}
      timeout: {description: See O(timeout)., type: int}
      maintenance: {description: See O(maintenance)., type: bool, version_added: 1.1.0}
  shares_file:
    description:
      - A file on the managed host with one share per line, in the format of Cinder's remotefs drivers. A line is C(SOURCE) or C(SOURCE -o OPTIONS).
        It is split at its first blank, as Cinder does. Comments start with C(#) in the first column, and C(\040) in the source stands for a space.
      - A line of another form is skipped, and a warning names its number. If a source is listed twice, the last line counts.
      - It can be combined with O(shares), whose items come first.
    type: path
seealso:
  - module: remotefs.storage.remotefs_share_info
  - module: ansible.posix.mount
"""

EXAMPLES = r"""
- name: A plain directory is a share
  remotefs.storage.remotefs_share:
    src: /srv/volumes

- name: An NFS export, at its default path and in fstab
  remotefs.storage.remotefs_share:
    src: nas1:/vols
    opts: [vers=4.2, hard, nofail]
  register: vols

- name: Where it is and how much room there is
  ansible.builtin.debug:
    msg: "{{ vols.share.path }} has {{ vols.share.free }} bytes free"

- name: A Windows share, with credentials in a file that only root can read
  remotefs.storage.remotefs_share:
    src: //nas1/vols
    path: /mnt/vols
    opts: vers=3.1.1,file_mode=0660
    credentials:
      username: backup
      password: "{{ vault_nas1_password }}"

- name: Several at once
  remotefs.storage.remotefs_share:
    fstype: glusterfs
    opts: [backup-volfile-servers=gl2]
    shares:
      - src: gl1:/vols
      - src: gl1:/archive
        opts: [ro]

- name: A CephFS, with the key of its user in a file that only root can read
  remotefs.storage.remotefs_share:
    src: mon1:6789,mon2:6789:/vols
    opts: [name=volumes, _netdev]
    credentials:
      password: "{{ vault_ceph_key }}"

- name: A directory of the host of this virtual machine
  remotefs.storage.remotefs_share:
    src: vols
    fstype: virtiofs
    path: /mnt/vols

- name: A file system that the collection does not know
  remotefs.storage.remotefs_share:
    src: mds1@tcp:/vols
    fstype: other
    type: lustre
    path: /mnt/vols

- name: Every share that Cinder uses
  remotefs.storage.remotefs_share:
    shares_file: /etc/cinder/nfs_shares

- name: Place no new volumes there, because the server is going to be replaced
  remotefs.storage.remotefs_share:
    src: nas1:/vols
    maintenance: true

- name: Unmount and forget it
  remotefs.storage.remotefs_share:
    src: nas1:/vols
    state: absent
"""

RETURN = r"""
share:
  description: The share after the task. In check mode, what is known about it before. Not with O(shares) or O(shares_file).
  returned: success, for a single share
  type: dict
  contains: &share
    src:
      description: Its source.
      type: str
      sample: nas1:/vols
    path:
      description: The directory where it is mounted or would be mounted.
      type: str
      sample: /var/lib/remotefs/mnt/15e1e4a2e0c67b0d4ae2ac2f33eb35e8
    fstype:
      description: The file system.
      type: str
      sample: nfs
    opts:
      description: The options in force, without secrets. Empty for a directory and for what is not mounted.
      type: str
      sample: rw,relatime,vers=4.2,hard
    mounted:
      description: Whether it is mounted. For a plain directory, whether it exists.
      type: bool
    total:
      description: Its size in bytes. This key and the next four are null for what is not mounted.
      type: int
    free:
      description: Bytes that can still be stored.
      type: int
    used:
      description: Bytes in use.
      type: int
    writable:
      description: Whether the user of the task may write to it, as far as the kernel and the server report that before a write.
      type: bool
    maintenance:
      description: Whether no new volumes are placed there. See O(maintenance).
      type: bool
shares:
  description: The shares in input order, without those that failed.
  returned: with O(shares) or O(shares_file)
  type: list
  elements: dict
  contains: *share
results:
  description: One result for each share, in input order.
  returned: with O(shares) or O(shares_file)
  type: list
  elements: dict
  contains:
    name:
      description: The source, or the path where only that was given.
      type: str
    src:
      description: The source.
      type: str
    changed:
      description: Whether this share changed.
      type: bool
    failed:
      description: Whether it failed.
      type: bool
    error_code:
      description: Why it failed, as a code for programs.
      type: str
      returned: when it failed
    msg:
      description: Why it failed, for people.
      type: str
      returned: when it failed
    actions:
      description: As at the top level.
      type: list
      elements: dict
    share:
      description: As at the top level. Null if it failed.
      type: dict
cmd:
  description: The program that failed, such as mount. RV(rc) is its exit status and RV(stderr) its error output. For many shares these are in RV(results).
  returned: when a program failed
  type: str
rc:
  description: The exit status of the program that failed.
  returned: when a program failed
  type: int
stderr:
  description: The error output of the program that failed.
  returned: when a program failed
  type: str
traceback:
  description: The place in the code where an unexpected error happened.
  returned: when there was one
  type: str
actions:
  description:
    - The steps that were done, in order. In check mode, the steps that would be done.
    - C(step) is one of C(create_directory), C(write_credentials), C(mount), C(remount), C(unmount), C(write_fstab),
      C(remove_fstab), C(remove_credentials), C(remove_directory) and C(set_maintenance).
  returned: always
  type: list
  elements: dict
  sample:
    - {step: create_directory, path: /mnt/vols}
    - {step: mount, path: /mnt/vols, src: "nas1:/vols", fstype: nfs, opts: vers=4.2}
error_code:
  description:
    - Why the task failed, as a code for programs. One of C(invalid_parameter), C(conflict) (another source is at the path), C(mount_failed),
      C(share_not_mounted) (it does not answer, or nothing is mounted at a directory that is meant for a mount),
      C(share_not_writable), C(in_use), C(tool_missing), C(no_space) and C(tool_failed).
  returned: failure
  type: str
"""

from ..module_utils import changes, errors, model
from ..module_utils.mounts import planner, tables, types


def _share_spec(with_defaults: bool) -> dict:
    """The argument spec of one share. Items of ``shares`` have no defaults of their own, so that they take the task's values."""
    defaults = {
        "mount_base": model.MOUNT_BASE,
        "fstype": types.AUTO,
        "state": "mounted",
        "persist": True,
        "fstab": tables.FSTAB,
        "attempts": 3,
        "timeout": 60,
    }
    spec = {
        "src": {"type": "str"},
        "path": {"type": "path"},
        "mount_base": {"type": "path"},
        "fstype": {"type": "str", "choices": types.choices()},
        "type": {"type": "str"},
        "opts": {"type": "list", "elements": "str"},
        # Only the password is secret: no_log on the whole option would remove the user's name everywhere in the result.
        "credentials": {
            "type": "dict",
            "no_log": False,
            "options": {"username": {"type": "str"}, "password": {"type": "str", "no_log": True}, "domain": {"type": "str"}},
        },
        "state": {"type": "str", "choices": list(planner.STATES)},
        "persist": {"type": "bool"},
        "fstab": {"type": "path"},
        "attempts": {"type": "int"},
        "timeout": {"type": "int"},
        "maintenance": {"type": "bool"},
    }
    if with_defaults:
        for name, value in defaults.items():
            spec[name]["default"] = value
    return spec


def main() -> None:
    """Run the module: one use case, one exit."""
    spec = _share_spec(with_defaults=True)
    spec["shares"] = {"type": "list", "elements": "dict", "options": _share_spec(with_defaults=False)}
    spec["shares_file"] = {"type": "path"}
    module = changes.make_module(
        spec,
        required_one_of=[("src", "path", "shares", "shares_file")],
        mutually_exclusive=[("src", "shares"), ("src", "shares_file"), ("path", "shares"), ("path", "shares_file")],
    )
    from ..module_utils.operations import shares

    many = module.params["shares"] is not None or module.params["shares_file"] is not None
    try:
        result = shares.ensure_all(module.params, module.check_mode) if many else shares.ensure(module.params, module.check_mode)
    except Exception as error:  # an unexpected exception also becomes a failure with a code
        known = errors.as_storage_error(error, "this task")
        result = {"failed": True, "changed": False, "actions": [], "msg": str(known), "error_code": known.error_code, **known.details}
    for warning in result.pop("warnings", []):
        module.warn(warning)
    if not many:
        for key in ("name", "src"):
            result.pop(key, None)
    if not module._diff:
        result.pop("diff", None)
    if result.pop("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
