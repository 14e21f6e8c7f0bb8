#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Remove what killed tasks left on shares."""
from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_housekeeping
short_description: Remove what killed tasks left on a share, and give back room that nobody needs
version_added: 1.1.0
description:
  - Removes leftovers. A leftover is a temporary file of this collection, a part of an image that nobody has gone on with, or a file that a finished
    task was about to remove when it was killed. M(remotefs.storage.remotefs_share_info) tells them.
  - A leftover goes only if it is older than O(grace), if no task works at it, and if no process of this host has it open. All others stay, and the
    result says why.
  - Volumes do not depend on this. The next task that changes a volume removes what a killed task left of it. This module is for volumes that nobody
    changes any more, and for names that no volume ever got.
  - Nothing else is removed. Files that nobody on the share names are somebody's.
  - With O(leaked_clusters) qcow2 images give back clusters that they count and do not use. Contents stay as they are.
  - With O(empty_overlays) snapshots go that were taken for linked clones, when those are gone and nothing was written since.
  - With O(equal_blocks) images of volumes that have the same content at some places store it once. Contents stay as they are.
author:
  - remotefs.storage contributors (@remotefs)
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.change
  - remotefs.storage.attributes.action_group_volumes
options:
  share:
    description:
      - The source of a mounted share, or an absolute directory, or a list of them. Commas in a text belong to the name.
    type: raw
    required: true
  mount_base:
    description: The directory under which shares are mounted by default. A directory below it is a share only while something is mounted there.
    type: path
    default: /var/lib/remotefs/mnt
  grace:
    description:
      - How old a leftover must be. A number with V(s), V(m), V(h), V(d) or V(w).
      - The clock of the share counts. Check mode writes nothing there, so it takes the clock of its host, and says so.
    type: str
    default: 1d
  leftovers:
    description: Remove leftovers.
    type: bool
    default: true
  equal_blocks:
    description:
      - Find blocks that are equal in several images of the share, and let its file system store them once. XFS and Btrfs can do that, and NFS 4.2 and SMB
        cannot. The kernel compares the blocks itself while nobody writes to them, so contents stay as they are, and machines go on.
      - All data of the share is read each time. The block is 128 KiB, and larger where the images have more than 64 GiB together.
      - The next write to such a block takes room of its own. So an active raw image without holes is left out, because somebody may have allocated it in
        advance.
      - Check mode reads the same, and tells how much it would be at most.
    type: bool
    default: false
  leaked_clusters:
    description:
      - Give back leaked clusters. A machine or a merge that was killed may have counted clusters of a qcow2 image that it did not come to use. They take
        room, and nothing frees them.
      - The tables of all qcow2 images are read each time, and no data. An image with leaks is mended by C(qemu-img check -r leaks), under the lock of its
        volume, while nobody has it open. If that is killed, the image is as good as before.
      - An image stays as it is while somebody has it open, while its file system does not show whether anybody has, if it has dirty bitmaps, and if it is
        damaged. RV(leaked_clusters[].why) says so.
    type: bool
    default: false
  empty_overlays:
    description:
      - Drop empty overlays. A linked clone of the present content of a volume rests on a snapshot C(clone-NAME), which is taken for it and stays when the
        clone is removed. So each such clone makes the chain of its source longer.
      - Such a snapshot goes if no volume is called C(NAME), if nobody has given it another description, labels, protection or an end, if its overlay is
        empty, and if no clone rests on the overlay or on the file below it. It shows what the next point shows, so no content is lost, and no data is
        moved. Where the overlay is the active image, the volume has another active image afterwards.
      - Volumes that have replicas, are replicas, or were made under a lease, are left alone.
    type: bool
    default: false
  speed:
    description: How many bytes are read in a second at most for O(equal_blocks), such as V(50M) (IEC). With V(0) it goes as fast as it can.
    type: str
    default: "0"
  timeout:
    description:
      - Seconds for O(leaked_clusters), again for O(empty_overlays), and again for O(equal_blocks), on each share. Then the task fails with C(tool_failed), and
        what is done stays so.
    type: float
  lock_timeout:
    description: Seconds to wait for another task that reads the clock of the share. Locks of volumes are not waited for.
    type: float
    default: 90
  break_lock:
    description: Take locks away from a host that is known to be dead. See M(remotefs.storage.remotefs_volume).
    type: bool
    default: false
seealso:
  - module: remotefs.storage.remotefs_share_info
"""

EXAMPLES = r"""
- name: What would go, and what stays
  remotefs.storage.remotefs_housekeeping:
    share: /srv/volumes
  check_mode: true
  register: found

- name: Tell it
  ansible.builtin.debug:
    msg: "{{ found.removed | length }} files go, {{ found.kept | length }} stay"

- name: Remove what is older than three days
  remotefs.storage.remotefs_housekeeping:
    share: /srv/volumes
    grace: 3d

- name: Give back clusters that machines leaked when they were killed
  remotefs.storage.remotefs_housekeeping:
    share: /srv/volumes
    leftovers: false
    leaked_clusters: true

- name: Store once what several images have, at 100 MiB a second
  remotefs.storage.remotefs_housekeeping:
    share: /srv/volumes
    equal_blocks: true
    speed: 100M
"""

RETURN = r"""
removed:
  description: The files that went, or in check mode would go.
  returned: always
  type: list
  elements: dict
  contains:
    share:
      description: The share.
      type: str
      sample: nas1:/vols
    file:
      description: The path in the share.
      type: str
      sample: .remotefs/tmp/db01~5c0f3e9a71d2
    bytes:
      description: Bytes on the disk.
      type: int
kept:
  description: The leftovers that stay.
  returned: always
  type: list
  elements: dict
  contains:
    share:
      description: The share.
      type: str
    file:
      description: The path in the share.
      type: str
    bytes:
      description: Bytes on the disk.
      type: int
    why:
      description: Why it stays.
      type: str
      sample: a task works at it
freed:
  description: Bytes on the disk of all files in RV(removed).
  returned: always
  type: int
leaked_clusters:
  description: The images that have leaked clusters, or of which that could not be known.
  returned: with O(leaked_clusters)
  type: list
  elements: dict
  contains:
    share:
      description: The share.
      type: str
    volume:
      description: The volume.
      type: str
    file:
      description: The image.
      type: str
    bytes:
      description: Bytes of clusters that nothing used. V(0) if that is not known.
      type: int
    why:
      description: Why they stay. Empty if they were given back, or in check mode would be.
      type: str
      sample: a machine or another program has it open
given_back:
  description: The RV(leaked_clusters[].bytes) of all that were given back.
  returned: with O(leaked_clusters)
  type: int
empty_overlays:
  description: The snapshots that were taken for linked clones which are gone, and whose overlays are empty.
  returned: with O(empty_overlays)
  type: list
  elements: dict
  contains:
    share:
      description: The share.
      type: str
    volume:
      description: The volume.
      type: str
    snapshot:
      description: The snapshot.
      type: str
      sample: clone-ci-07
    bytes:
      description: Bytes on the disk of its overlay.
      type: int
    why:
      description: Why it stays. Empty if it went, or in check mode would go.
      type: str
      sample: a machine or another program has it open
equal_blocks:
  description: What became of equal blocks.
  returned: with O(equal_blocks)
  type: list
  elements: dict
  contains:
    share:
      description: The share.
      type: str
    bytes:
      description: Bytes that images have in common now and had not before.
      type: int
    why:
      description: Why nothing was tried, or not all of it. Empty if all was.
      type: str
      sample: its file system shares no blocks
shared:
  description: The RV(equal_blocks[].bytes) of all shares.
  returned: with O(equal_blocks)
  type: int
actions:
  description: The steps that were done, in order. In check mode, the steps that would be done.
  returned: always
  type: list
  elements: dict
  sample:
    - {step: unlink, share: "nas1:/vols", file: .remotefs/tmp/db01~5c0f3e9a71d2, bytes: 196624}
error_code:
  description: Why the task failed, as a code for programs, such as C(share_not_mounted).
  returned: failure
  type: str
"""

from dataclasses import replace

from ..module_utils import arguments, changes, errors


def _result(params: dict, options, finder) -> dict:
    candidates = finder.find(params["share"], params["mount_base"])
    candidates.require_all()
    speed, timed = changes.parse_speed(params["speed"]), replace(options, timeout=params["timeout"])
    parts = [_cleaned(params, candidates.shares if params["leftovers"] else (), options)]
    if params["leaked_clusters"]:
        from ..module_utils.operations import leaked_clusters

        parts.append(leaked_clusters.free_all(candidates.shares, timed))
    if params["empty_overlays"]:
        from ..module_utils.operations import empty_overlays

        parts.append(empty_overlays.drop_all(candidates.shares, timed))
    if params["equal_blocks"]:
        from ..module_utils.operations import equal_blocks

        parts.append(equal_blocks.share_all(candidates.shares, replace(timed, speed=speed)))
    actions = [action for part in parts for action in part["actions"]]
    return {**{key: value for part in reversed(parts) for key, value in part.items()}, "actions": actions, "changed": bool(actions)}


def _cleaned(params: dict, shares, options) -> dict:
    from ..module_utils.operations import leftovers, share_contents
    from ..module_utils.plan.retention import parse_duration

    grace = parse_duration(params["grace"], "option grace")
    return leftovers.clean_all(((share, share_contents.find_leftovers(share)) for share in shares), grace, options)


def main() -> None:
    """Run the module: one use case, one exit."""
    spec = {
        "share": {**arguments.STORE["share"], "required": True},
        "mount_base": arguments.STORE["mount_base"],
        "grace": {"type": "str", "default": "1d"},
        "leftovers": {"type": "bool", "default": True},
        "leaked_clusters": {"type": "bool", "default": False},
        "empty_overlays": {"type": "bool", "default": False},
        "equal_blocks": {"type": "bool", "default": False},
        "speed": {"type": "str", "default": "0"},
        "timeout": {"type": "float"},
        "lock_timeout": changes.CHANGE["lock_timeout"],
        "break_lock": changes.CHANGE["break_lock"],
    }
    module = changes.make_module(spec)
    try:
        from ..module_utils.operations.candidates import Finder

        result = _result(module.params, changes.plain_options(module), Finder())
    except Exception as error:  # one that nobody foresaw is a failure with a code too
        result = changes.failure(errors.as_storage_error(error, "this task"))
    changes.leave(module, result, "leftovers")


if __name__ == "__main__":
    main()
