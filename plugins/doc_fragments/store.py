# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options and return values that the modules of volumes and snapshots share. Their specs are in module_utils/arguments.py."""
from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  share:
    description:
      - The share, as the source string of a mounted share (V(nas1:/vols)) or as an absolute directory.
      - A list names candidates. A volume that is on any of them is used there.
      - Commas in a text belong to the name; candidates want a real list.
      - A directory under O(mount_base), or one that fstab names as a mount point, counts only while something is mounted there.
    type: raw
  mount_base:
    description: The directory under which shares are mounted by default.
    type: path
    default: /var/lib/remotefs/mnt
"""

    CHANGE = r"""
options:
  lock_timeout:
    description: Seconds to wait for another task that works on the same volume, on this host or another.
    type: float
    default: 90
  break_lock:
    description:
      - Take the lock from a task whose host died, where the file system leaves such a lock behind (CIFS mounted with C(nobrl)).
      - Elsewhere the kernel frees the lock of a dead holder, and this changes nothing.
    type: bool
    default: false
  assume_unused:
    description:
      - Vouch that nobody has the images open, where the file system cannot tell (CIFS mounted with C(nobrl), sshfs, and every file system
        that is neither supported nor known to be this host's alone, such as 9p, virtiofs or C(fuse.rclone)).
      - Elsewhere an image that is open anywhere is refused all the same.
    type: bool
    default: false
  parallel:
    description:
      - How many volumes a bulk task works on at a time. Those that wait for the disk or for a lock do not count; up to 16 are under way,
        or as many as this says.
      - With V(1) they are done strictly one after the other, and each waits for the disk by itself.
      - The default is the number of processors, at most 8.
    type: int
  return_detail:
    description:
      - What a task about many objects returns of each. A volume with ten snapshots takes about four kilobytes, twice.
      - With V(false) RV(results) come without C(actions), C(retention) and C(volume), and each of RV(volumes) holds C(name), C(share),
        C(path), C(format), C(size) and C(allocated) only. Errors and what was recovered are always there.
      - A task about one object returns everything.
    type: bool
    default: true
  log_path:
    description:
      - A file on the managed host to which the task appends each step, one line of JSON with the time (UTC), the volume, its share, the step
        and the seconds that it took. A volume whose work failed has a line with the step C(fail), the error code and the
        message. The file is made with mode 0600. In check mode nothing is written.
      - With C(-vvv) the same lines are in RV(log).
    type: path
"""
