# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options and return values that the modules of volumes and snapshots share. Their specs are in module_utils/arguments.py."""
from __future__ import annotations


class ModuleDocFragment:
    """The options; each constant is a fragment of its own."""

    DOCUMENTATION = r"""
options:
  share:
    description:
      - The share, as the source string of a mounted share (V(nas1:/vols)) or as an absolute directory.
      - A list names several candidates. If one of them has the volume, that one is used.
      - Commas in a text belong to the name. Write several candidates as a YAML list.
      - A directory under O(mount_base), or one that fstab names as a mount point, counts only while something is mounted there.
    type: raw
  mount_base:
    description: The directory under which shares are mounted by default.
    type: path
    default: /var/lib/remotefs/mnt
"""

    SHARES = r"""
options:
  share:
    description:
      - The source of a mounted share, or an absolute directory, or a list of them. Commas in a text belong to the name.
      - Without this option, it is every mount of a network file system that this collection supports, and every mount under O(mount_base).
    type: raw
  mount_base:
    description: The directory under which shares are mounted by default. A directory below it is a share only while something is mounted there.
    type: path
    default: /var/lib/remotefs/mnt
  fstab:
    description: The administrator's table of mounts. A directory that it names as a mount point is a share only while something is mounted there.
    type: path
    default: /etc/fstab
  timeout:
    description:
      - Seconds that a share may be silent, while it is asked for its space, and then while what it holds is read.
      - A share of which nothing was heard for that long counts as one that cannot be read. The task goes on with the others.
      - A large share may take longer than that altogether, because each volume and each lease that was read is heard of.
    type: int
    default: 10
"""

    ATTACHMENT = r"""
options:
  attachment:
    version_added: 1.1.0
    description:
      - The machine that has the volume as a disk. Without it, an image that anybody has open is refused with C(in_use).
      - With it the machine's own QEMU does the work while the guest runs. See docs/live.md for what is possible and what is refused.
      - Give either O(attachment.qmp) or O(attachment.libvirt).
      - In an item it is the machine of that item's volume, and one that does not have it is refused. Given once for several volumes or items,
        it counts for those that the machine has. Nobody may have the others open. Those of other domains are refused.
      - If nobody listens at the monitor, the machine is taken to be off. Then the work is done on the files, if nobody else has them open.
      - If the domain is off, the work is done on the files, and then the domain's definition names the volume's active image.
      - Items of a task that name the same monitor, however they spell it, or are of domains of the same libvirt are done one after the other.
    type: dict
    suboptions:
      qmp:
        description:
          - The socket of a monitor (QMP) of QEMU or of qemu-storage-daemon on this host. No other program may use it meanwhile. Tasks of this
            collection wait for each other, for as long as O(lock_timeout) says.
        type: path
      libvirt:
        description:
          - A domain of libvirt on this host, whether it runs or is off. All is done through libvirt, and never behind its back.
          - This uses libvirt's binding for Python (C(python3-libvirt)). Where the module's Python does not have it, the module goes on under the
            Python of the system that has it. Where there is none, it uses C(virsh).
        type: dict
        suboptions:
          uri: {description: The URI of libvirt's QEMU driver on this host., type: str, default: 'qemu:///system'}
          domain:
            description:
              - The name or the UUID of the domain.
              - Without it, it is the domain that has the volume as a disk. If none has, the machine is taken to be off.
            type: str
      agent:
        description:
          - The socket of the channel of the machine's guest agent on this host (C(org.qemu.guest_agent.0)). If this is not said, the monitor is
            asked for it. No other program may be connected to it.
          - It is used to freeze the guest for a snapshot (O(remotefs.storage.remotefs_snapshot#module:quiesce)), and by each task that ends what
            such a task left which was killed.
          - Of a domain libvirt has the channel, and asks the agent. Beside O(attachment.libvirt) this option is refused.
        type: path
"""

    CHANGE = r"""
options:
  lock_timeout:
    description: Seconds to wait for another task that works on the same volume, on this host or another, or with the same running machine.
    type: float
    default: 90
  break_lock:
    description:
      - Take the lock from a task whose host died. Only one file system leaves such a lock behind (CIFS mounted with C(nobrl)).
      - Elsewhere the kernel releases the lock of a dead holder, and this option has no effect.
    type: bool
    default: false
  assume_unused:
    description:
      - Confirm that no program has the images open. This is needed where the file system cannot show that (CIFS mounted with C(nobrl), sshfs,
        and every file system that is neither supported nor known to belong to this host only, such as 9p, virtiofs or C(fuse.rclone)).
      - Elsewhere this option has no effect. An image that is open anywhere is refused.
    type: bool
    default: false
  speed:
    version_added: 1.1.0
    description:
      - How fast the data of a volume may move, in bytes a second, with or without a suffix such as V(50M) (IEC). It holds for each volume that is
        under way. Data moves when snapshots are deleted, when a volume is copied (a full clone, C(flatten)) or grown over old data, and when
        space is reserved by writing. With V(0) it moves as fast as it goes.
      - Where the file system or its server shares blocks instead of copying them, nothing moves.
    type: str
    default: "0"
  timeout:
    version_added: 1.1.0
    description:
      - Seconds for the data of a volume to move, counted from its first byte. Then the task fails with C(tool_failed).
      - Work that nothing shows yet is taken back. A deletion that has written into an older file stays C(pending), the message says so, and
        the next task that changes the volume ends it.
      - Without it there is no limit.
    type: float
  progress:
    version_added: 1.1.0
    description:
      - Whether to show how far the work is, on the standard error of the machine that runs Ansible, if a task takes longer than three seconds and
        data moves. It is percent, bytes, bytes a second and the time that is left. On a terminal, a play on one host writes over the same
        line. Otherwise each host has a new line every ten seconds.
      - Nothing is shown in check mode, with C(no_log) and with C(async) of the task.
      - If the playbook is interrupted or the connection is lost, the work on the host ends at once or within a minute. The next task ends what was begun.
        With V(false) the task is one plain call of the module, as other modules are.
    type: bool
    default: true
  log_path:
    version_added: 1.1.0
    description:
      - A file on the managed host to which the task appends each step. A step is one line of JSON with the time (UTC), the volume, its share,
        the step and the seconds that it took. If the work on a volume failed, a line has the step C(fail), the error code and the
        message. The file is created with mode 0600. In check mode nothing is written.
      - With C(-vvv) the same lines are in RV(log).
    type: path
"""

    MANY = r"""
options:
  parallel:
    description:
      - How many volumes a bulk task works on at a time. Volumes that wait for the disk or for a lock do not count. With them, up to 16 volumes
        are under way, or as many as this option says if that is more.
      - A task on 32 objects or more starts a copy of its process for each processor, but not more than this number, and divides the objects
        among them.
      - With V(1) the task finishes each volume before the next one, and each waits for the disk by itself.
      - The default is the number of processors, at most 8.
    type: int
  return_detail:
    description:
      - Whether a task about many objects returns all details of each. A volume with ten snapshots takes about four kilobytes, twice.
      - With V(false) RV(results) have no C(actions), C(retention) and C(volume), and each of RV(volumes) has only C(name), C(share),
        C(path), C(format), C(size) and C(allocated). Errors and recovered work are always returned.
      - A task about one object returns everything.
    type: bool
    default: true
"""
