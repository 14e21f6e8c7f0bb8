#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Create, clone, grow, adopt and remove volumes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_volume
short_description: Manage volumes on a share
version_added: 1.0.0
description:
  - Creates volumes (virtual disks) as files on a share, makes full and linked clones, grows volumes, adopts files that are there and removes volumes.
  - The files on the share are the only state; they can be used in turns with OpenStack Cinder's remotefs drivers.
  - No format is ever guessed from content, nothing half written stands under a volume's name, and what is reported as done is durable.
  - A task that was killed is finished or undone by the next one that changes the volume, which reports it in RV(recovered).
author:
  - remotefs.storage contributors (@remotefs)
requirements:
  - qemu-img 7.2 or newer (package qemu-utils) for O(preallocation) of qcow2, and for clones, O(flatten) and growing of images that are not
    plain, such as compressed ones
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.change
  - remotefs.storage.attributes.action_group_changes
  - remotefs.storage.store
  - remotefs.storage.store.change
  - remotefs.storage.store.many
  - remotefs.storage.store.attachment
options:
  name:
    description:
      - The volume, which is also the name of its base file.
      - Letters, digits, V(.), V(_) and V(-), starting with a letter or digit and not ending in V(.info). Globs are refused;
        M(remotefs.storage.remotefs_volume_info) takes them and P(remotefs.storage.items#filter) makes a list for O(volumes), as in the examples.
    type: str
  size:
    description:
      - The virtual size in bytes, or with an IEC suffix K, M, G, T or P (V(10G), also V(10GiB)), all powers of 1024. A multiple of 512 below 8 EiB.
      - V(10GB) is refused, because some read it as powers of 1000.
      - A larger size than the present one grows the volume; a smaller one is refused. Without it a clone has the size of its source.
    type: str
  format:
    description:
      - The format of the base file. A new volume is V(raw) unless this says otherwise.
      - To adopt a lone file whose format is recorded nowhere, say it. A volume of the other format is never converted.
      - The same holds for a file that took the place of the recorded one, where the record does not fit what it holds.
      - One that is said to be V(raw) and looks like an image of another format is adopted with a warning.
    type: str
    choices: [raw, qcow2]
  preallocation:
    description:
      - Space reserved for a new volume. V(metadata) is for V(qcow2) only.
      - Where a file system has no fallocate, V(falloc) of a raw volume writes zeros and says so in a warning.
    type: str
    choices: ['off', metadata, falloc, full]
    default: 'off'
  source:
    description: What a new volume is made from. Ignored where the volume exists, but for O(source.seed).
    type: dict
    suboptions:
      volume:
        description:
          - A volume on one of the candidate shares, or on O(source.share). Either this or O(source.image).
          - With O(source.share) it is the one with the name of the new volume, unless this says otherwise.
        type: str
      snapshot:
        description:
          - One of its snapshots. Without it the clone is made from the present content.
          - A linked clone of the present content rests on a snapshot that is taken for it, called V(clone-NAME). It stays when the clone is
            removed; remove it with M(remotefs.storage.remotefs_snapshot), or with O(remotefs.storage.remotefs_housekeeping#module:empty_overlays).
        type: str
      share:
        version_added: 1.1.0
        description:
          - Another share, on which the source is, such as that of a backup from which a volume is restored. Its source or directory, as O(share)
            takes it. It does not matter which of the shares the new volume goes to.
          - The content is copied, as V(full) of O(source.method) does. V(linked) is refused, because a linked clone lies on the share of its source.
          - A volume that is copied is locked by a file on its share, which must be writable for that. What an interrupted task left on it is ended first.
          - It is not needed where the volume exists.
        type: str
      method:
        description:
          - V(full) gives the clone data of its own.
          - V(linked) makes a qcow2 overlay that rests on the source and holds what differs. It takes no time and next to no space, on the
            source's share. While it rests there, the snapshot under it cannot be deleted.
        type: str
        choices: [full, linked]
        default: full
      image:
        version_added: 1.1.0
        description:
          - An image that a new volume gets the content of. A URL (http or https), or a path on the managed host.
          - It arrives in a private file on the share, is checked, unpacked and looked at, and only then copied into the volume. A transfer
            that is cut goes on where it was, in this task, and in the next one if O(source.checksum) is given.
          - It must be one whole disk in one file. An image that rests on another one, names other files or is encrypted is C(unsafe_image);
            one that is damaged, cut short or of no format that is taken is C(image_invalid).
          - Several volumes of a task that want the same image read it once.
          - Check mode fetches nothing. A size that it cannot know is null, with a warning.
        type: str
      checksum:
        version_added: 1.1.0
        description:
          - What the received file must have, as C(sha256:DIGITS), or C(sha256:URL) with the URL of a list such as SHA256SUMS, in which the
            file's name is looked up. Also C(sha512) and C(md5). Otherwise the task fails with C(image_checksum).
          - It is that of the file as it is received, before it is unpacked.
        type: str
      image_format:
        version_added: 1.1.0
        description: The format that the image must have. Without it, it is what a strict look finds; V(raw) only where there is no mark of another one.
        type: str
        choices: [raw, qcow2, vmdk, vdi, vhdx, vpc]
      compression:
        version_added: 1.1.0
        description: How the received file is compressed. V(auto) looks at its beginning.
        type: str
        choices: [auto, none, gzip, bzip2, xz]
        default: auto
      seed:
        version_added: 1.1.0
        description:
          - What cloud-init reads in a new machine (its data source NoCloud). The volume is a raw ISO 9660 image with Joliet names and the label
            C(cidata), which a machine gets as a read-only disk. It is made without other programs, and equal content makes equal images.
          - A new one gets the mode V(0440), unless O(mode) is given, because it may hold secrets.
          - If the volume exists and holds the same, that is no change. Otherwise one rename puts the new image in its place, with its owner,
            mode and ACL. A machine that has it open must be shut off for that, or the task fails with C(in_use).
          - A volume that is no seed made by this module is a C(conflict), and is never overwritten.
          - O(size), O(format=qcow2), O(preallocation), O(snapshot), O(flatten), O(moved_from) and the other sources do not go with it.
          - All texts together may have 16 MiB.
        type: dict
        suboptions:
          user_data:
            description:
              - A text, such as one that begins with C(#cloud-config), or a dictionary, of which such a text is made. Of a list C(#cloud-config-archive) is.
              - Without it the file is there and asks for nothing.
            type: raw
          meta_data:
            description:
              - A text or a dictionary. A dictionary without C(instance-id) gets the name of the volume as that.
              - Without it C(instance-id) and C(local-hostname) are the name of the volume.
              - A guest for which cloud-init has done its work does it again when the C(instance-id) is another one.
            type: raw
          network_config:
            description: A text or a dictionary, as cloud-init takes it in the file C(network-config). Without it there is no such file.
            type: raw
          vendor_data:
            description: As O(source.seed.user_data), for the file C(vendor-data). Without it there is no such file.
            type: raw
      headers:
        version_added: 1.1.0
        description:
          - Headers for the server, such as a token. They are sent to its host alone, and not where it redirects to another one.
          - Results do not show their values, but for those of less than 8 characters, which may be words that a result needs.
        type: dict
      validate_certs:
        version_added: 1.1.0
        description: Whether the server's certificate must be valid.
        type: bool
        default: true
      url_username:
        version_added: 1.1.0
        description: A name for the server.
        type: str
      url_password:
        version_added: 1.1.0
        description: The password to O(source.url_username).
        type: str
      client_cert:
        version_added: 1.1.0
        description: A file with the certificate by which the server knows this client.
        type: path
      client_key:
        version_added: 1.1.0
        description: The key of O(source.client_cert), where that file does not have it.
        type: path
  lease:
    version_added: 1.1.0
    description:
      - The lease under which the task works, as M(remotefs.storage.remotefs_lease) returns it. If it is not the task's any more, the task fails with
        C(lease_lost), and nothing is changed.
      - A new volume has the lease on record, and must be listed by it. A volume that was not made under it is a C(conflict).
      - Or the options of M(remotefs.storage.remotefs_lease), but for C(share) and C(mount_base), with C(state) V(held). Then the task takes the
        lease or renews it first, which saves a task. It returns RV(lease), RV(lease_changed), and with C(collect) also RV(collected) and RV(left).
    type: dict
  moved_from:
    version_added: 1.1.0
    description:
      - Another share, its source or directory as O(share) takes it, on which the volume is to be no longer.
      - All snapshots and the present are sent to O(share) and compared, then the volume is removed on the other share. No machine may have it open,
        and no linked clone may rest on it, on either share.
      - A replica that M(remotefs.storage.remotefs_replica) made there becomes the volume, so that only what it lacks is sent. All that it has
        already is compared.
      - After an interruption the same task goes on. Until then RV(volume.pending) of the volume on O(share) says which of both counts, and all
        other tasks on it fail with C(conflict). RV(volume.pending) is null again once the volume is only there.
      - It is no change where the volume is on O(share) alone. Where the other share is not mounted, a warning says that nobody looked there.
      - A volume that is on neither is C(volume_not_found), even where O(size) or O(source) is given. One that is on both is a C(conflict), unless
        that on O(share) is a replica of the other, which has all snapshots that are older than the newest one of both.
      - What else is asked for, such as O(size), is done afterwards.
    type: str
  snapshot:
    version_added: 1.1.0
    description:
      - A snapshot that the volume is to have. A new volume gets it in the same task, so that there is a point to come back to; a volume that
        exists and has it not gets it too.
      - Its name is as that of M(remotefs.storage.remotefs_snapshot). With it C(path) of RV(volume) names the snapshot's overlay.
    type: str
  description:
    version_added: 1.1.0
    description: A text that is kept with the volume. Where it is not given, it stays as it is.
    type: str
  labels:
    version_added: 1.1.0
    description:
      - Names and values that are kept with the volume. Both are texts; a value that is given otherwise is made one.
      - They replace all labels that the volume has; where they are not given, those stay.
    type: dict
  flatten:
    description: Give a linked clone data of its own, so that it rests on no other volume. No change where it has.
    type: bool
    default: false
  recover:
    description:
      - What to do about a task that was interrupted on this volume. V(finish) finishes or undoes it.
      - Where somebody else changed the volume's files since, that could do harm, and the task fails with C(needs_recovery). Then V(discard)
        gives the interrupted task's record up and takes the volume as it stands, without the snapshots that were being deleted, because
        their data may be damaged. Of a volume that was being moved here it keeps what has arrived.
      - With O(state=absent) it lets a volume be removed of which an interrupted move had sent everything.
      - Check mode shows what it would leave. Files that nothing refers to any more are not removed but named in
        RV(recovered).
      - A record that can be honoured is honoured, whatever this says.
    type: str
    choices: [finish, discard]
    default: finish
  max_chain:
    description: The most files that the chain of a new linked clone may have, or of a volume after its O(snapshot), 2 to 200.
    type: int
    default: 64
  mode:
    description:
      - The mode of the files as an octal string. A new volume gets V(0660) unless this says otherwise.
      - On a volume that exists it is set only if it is given. File systems whose mount options decide about modes ignore it with a warning.
    type: raw
  owner:
    description: The owner of the files, a name or a number.
    type: str
  group:
    description: The group of the files, a name or a number.
    type: str
  state:
    description: Whether the volume should exist.
    type: str
    choices: [present, absent]
    default: present
  cascade:
    description:
      - With O(state=absent), also remove its snapshots.
      - A volume in whose chain a file is missing can be removed too. A warning names the files that are missing. Snapshots that its C(.info) or
        its record still names need this option, although their data may be gone.
    type: bool
    default: false
  not_dependent:
    version_added: 1.1.0
    description:
      - Files on the share that do not count as resting on what is destroyed, although they name it or may mean it.
      - Before files are merged or removed, every file of the share is asked whether it rests on them, in the share's directory and in its
        folders (up to 50,000 entries and 10 seconds; the rest is a warning). A doubt counts. Name the file here, as the message does, if it does not.
      - What was overruled is told in RV(not_counted) and in a warning.
    type: list
    elements: str
  placement:
    description:
      - Which eligible share a new volume goes to. Of equal ones it is the first in O(share).
      - V(most_free) is the one with the most free space. Free space is what the file system tells when the task begins, less what the task itself
        preallocates and copies there.
      - V(least_allocated) is the one whose volumes have the smallest virtual sizes together, whatever they take on the disk.
      - V(round_robin) is the one with the fewest volumes, so that new volumes go to one share after the other. Nothing else is counted or kept.
      - A share that O(remotefs.storage.remotefs_share#module:maintenance) marks is never eligible.
    type: str
    choices: [most_free, least_allocated, round_robin]
    default: most_free
  reserved_percentage:
    description: Percentage of a share that new volumes leave free, with all that are made before them in the same task.
    type: int
    default: 0
  max_over_subscription_ratio:
    description:
      - How many times the size of a share its volumes may have together.
      - A new volume is refused where the virtual sizes of all volumes together would exceed this many times the share's size. A linked clone
        counts with its whole size. Growing is not checked.
      - So check mode refuses a new volume that is larger than the share may hold, even where an earlier task of the playbook would make it
        smaller and this one only grow it.
    type: float
    default: 20
  volumes:
    description:
      - Many volumes in one task. Each item takes the options above, with the task's own as defaults.
      - All are attempted; the task fails at the end if any did.
      - A volume that several items name is refused, because nobody knows which of them is meant.
      - Items that depend on each other are done in the order that works. A source is made before its clones, and removed after them.
      - Which share each new volume goes to, and for which there is no room, is decided in that order before any is made, so that it does
        not depend on O(parallel), and check mode tells the same.
      - P(remotefs.storage.items#filter) makes such a list from names, or from a dictionary of dictionaries by name.
    type: list
    elements: dict
    suboptions:
      name: {description: 'See O(name).', type: str}
      share: {description: 'See O(share).', type: raw}
      mount_base: {description: 'See O(mount_base).', type: path}
      size: {description: 'See O(size).', type: str}
      format: {description: 'See O(format).', type: str, choices: [raw, qcow2]}
      preallocation: {description: 'See O(preallocation).', type: str, choices: ['off', metadata, falloc, full]}
      source:
        description: See O(source).
        type: dict
        suboptions:
          volume: {description: 'See O(source.volume).', type: str}
          snapshot: {description: 'See O(source.snapshot).', type: str}
          share: {description: 'See O(source.share).', type: str}
          method: {description: 'See O(source.method).', type: str, choices: [full, linked], default: full}
          image: {description: 'See O(source.image).', type: str}
          seed:
            description: See O(source.seed).
            type: dict
            suboptions:
              user_data: {description: 'See O(source.seed.user_data).', type: raw}
              meta_data: {description: 'See O(source.seed.meta_data).', type: raw}
              network_config: {description: 'See O(source.seed.network_config).', type: raw}
              vendor_data: {description: 'See O(source.seed.vendor_data).', type: raw}
          checksum: {description: 'See O(source.checksum).', type: str}
          image_format: {description: 'See O(source.image_format).', type: str, choices: [raw, qcow2, vmdk, vdi, vhdx, vpc]}
          compression: {description: 'See O(source.compression).', type: str, choices: [auto, none, gzip, bzip2, xz], default: auto}
          headers: {description: 'See O(source.headers).', type: dict}
          validate_certs: {description: 'See O(source.validate_certs).', type: bool, default: true}
          url_username: {description: 'See O(source.url_username).', type: str}
          url_password: {description: 'See O(source.url_password).', type: str}
          client_cert: {description: 'See O(source.client_cert).', type: path}
          client_key: {description: 'See O(source.client_key).', type: path}
      moved_from: {description: 'See O(moved_from).', type: str, version_added: 1.1.0}
      snapshot: {description: 'See O(snapshot).', type: str, version_added: 1.1.0}
      description: {description: 'See O(description).', type: str, version_added: 1.1.0}
      labels: {description: 'See O(labels).', type: dict, version_added: 1.1.0}
      flatten: {description: 'See O(flatten).', type: bool}
      recover: {description: 'See O(recover).', type: str, choices: [finish, discard]}
      max_chain: {description: 'See O(max_chain).', type: int}
      mode: {description: 'See O(mode).', type: raw}
      owner: {description: 'See O(owner).', type: str}
      group: {description: 'See O(group).', type: str}
      state: {description: 'See O(state).', type: str, choices: [present, absent]}
      cascade: {description: 'See O(cascade).', type: bool}
      not_dependent: {description: 'See O(not_dependent).', type: list, elements: str, version_added: 1.1.0}
      placement: {description: 'See O(placement).', type: str, choices: [most_free, least_allocated, round_robin]}
      reserved_percentage: {description: 'See O(reserved_percentage).', type: int}
      max_over_subscription_ratio: {description: 'See O(max_over_subscription_ratio).', type: float}
      lease: {description: See O(lease)., type: dict, version_added: 1.1.0}
      attachment:
        version_added: 1.1.0
        description: See O(attachment).
        type: dict
        suboptions:
          qmp: {description: 'See O(attachment.qmp).', type: path}
          agent: {description: 'See O(attachment.agent).', type: path}
          libvirt:
            description: See O(attachment.libvirt).
            type: dict
            suboptions:
              uri: {description: 'See O(attachment.libvirt.uri).', type: str, default: 'qemu:///system'}
              domain: {description: 'See O(attachment.libvirt.domain).', type: str}
seealso:
  - module: remotefs.storage.remotefs_share
  - module: remotefs.storage.remotefs_snapshot
  - module: remotefs.storage.remotefs_volume_info
"""

EXAMPLES = r"""
- name: A raw volume of 10 GiB
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    name: db01
    size: 10G

- name: One with a point to come back to, and with what it is for
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    name: web01
    size: 10G
    snapshot: pristine
    description: Disk of the test web server
    labels:
      team: web

- name: Grow it
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    name: db01
    size: 20G

- name: A full clone
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    name: db02
    source:
      volume: db01

- name: A volume from a cloud image, whose checksum the project publishes in a list
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    name: web02
    size: 10G
    source:
      image: https://images.example.org/debian/disk.qcow2
      checksum: sha256:https://images.example.org/debian/SHA256SUMS

- name: Two volumes from an image that another hypervisor wrote, which lies on this host
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    source: {image: /srv/images/appliance.vmdk, image_format: vmdk}
    volumes:
      - name: appliance-1
      - name: appliance-2
        format: qcow2

- name: What cloud-init reads in two new machines; the names of the volumes become the names of the hosts
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    source:
      seed:
        user_data:
          users:
            - name: ansible
              sudo: ALL=(ALL) NOPASSWD:ALL
              ssh_authorized_keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExample ansible]
        network_config:
          version: 2
          ethernets:
            eth0:
              dhcp4: true
    volumes:
      - name: node-1
      - name: node-2

- name: A golden state, and two environments that start from it at once
  remotefs.storage.remotefs_snapshot:
    share: /srv/volumes
    volume: db02
    name: golden

- name: Linked clones take no time and hold what differs only
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    source:
      volume: db02
      snapshot: golden
      method: linked
    volumes:
      - name: env-1
      - name: env-2

- name: A copy on another share, of a volume as it was at a snapshot
  remotefs.storage.remotefs_volume:
    share: /srv/backup
    name: db02
    source:
      share: /srv/volumes
      snapshot: golden

- name: A volume that is made from the copy there, whatever has become of the first one
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    name: db02-restored
    source:
      share: /srv/backup
      volume: db02

- name: A volume moves to another share with all its snapshots, and is no longer on the first one
  remotefs.storage.remotefs_volume:
    share: /srv/backup
    moved_from: /srv/volumes
    name: db02-restored

- name: Cut one of them loose
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    name: env-1
    flatten: true

- name: Reset the other one by making it anew
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    name: env-2
    state: absent

- name: Three volumes for a test run, in one task
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    format: qcow2
    size: 1G
    volumes:
      - name: ci-1
      - name: ci-2
      - name: ci-3
        size: 2G
  register: ci

- name: The paths that virtual machines must open
  ansible.builtin.debug:
    msg: "{{ ci.volumes | map(attribute='path') }}"

- name: Remove a template together with what was cloned from it, in whatever order they are named
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    state: absent
    cascade: true
    volumes:
      - name: web01
      - name: web02

- name: Remove the clone that has its own data by now
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    name: env-1
    state: absent

- name: Remove a volume with all its snapshots
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    name: db02
    state: absent
    cascade: true

- name: Find the volumes of a test run, for a task on whatever matches a glob
  remotefs.storage.remotefs_volume_info:
    share: /srv/volumes
    names: [ci-*]
  register: old

- name: Remove them
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    volumes: "{{ old.volumes | map(attribute='name') | remotefs.storage.items }}"
    state: absent
    cascade: true

- name: Grow a volume whose machine runs (if the machine is off, nobody listens at its monitor, and that is fine)
  remotefs.storage.remotefs_volume:
    share: /srv/volumes
    name: db01
    size: 40G
    attachment:
      qmp: /run/machines/db01.qmp
"""

RETURN = r"""
volume:
  description: The volume as it is afterwards; null where it is absent. Sizes are bytes.
  returned: success, without O(volumes)
  type: dict
  contains: &volume
    name: {description: Its name., type: str, returned: always}
    share: {description: 'The source of its share as given; for a directory, what is mounted there, or the directory.', type: str, returned: always}
    mountpoint: {description: The directory of the share., type: str, returned: always}
    path: {description: 'The active image, which a virtual machine must open.', type: str, returned: always}
    format:
      description: Format of the active image; null where nothing records it, and in check mode of a volume that an earlier task is assumed to make.
      type: str
      returned: always
    base_format: {description: 'Format of the file at the bottom of the chain; null as C(format) is.', type: str, returned: always}
    size: {description: 'Virtual size; in check mode null where it follows from a volume that does not exist yet.', type: int, returned: always}
    allocated: {description: What all its own files take on disk., type: int, returned: always}
    snapshots:
      description: 'Its snapshots, oldest first: name, file, created, description, labels, protected and expires.'
      type: list
      elements: dict
      returned: always
    stale:
      description:
        - Entries of C(.info) whose file is no overlay of the chain, as OpenStack Cinder leaves some behind; each has C(name) and C(file).
        - They are no snapshots. M(remotefs.storage.remotefs_snapshot) with V(state=absent) takes one away, and the removal of the volume all.
      type: list
      elements: dict
      returned: always
    chain:
      description: 'Its files, active first: file, format, backing_file, size and allocated. Of a linked clone it ends with files of its parent.'
      type: list
      elements: dict
      returned: always
    created: {description: 'When it was made (UTC); null where nobody recorded it, such as of an adopted volume.', type: str, returned: always}
    description: {description: The text kept with it., type: str, returned: always}
    labels: {description: The names and values kept with it., type: dict, returned: always}
    lease: {description: The id of the lease that it was made under; null where it was made without one., type: str, returned: always}
    replica: {description: Whether it was made as a replica., type: bool, returned: always}
    parent: {description: 'What a linked clone rests on: volume and snapshot. Null for a volume that rests on no other.', type: dict, returned: always}
    dependents:
      description: 'What rests on it: volume, a linked clone or the name of a file that belongs to none, and snapshot of this one.'
      type: list
      elements: dict
      returned: always
    in_use: {description: Whether somebody has it open; null where the file system cannot tell., type: bool, returned: always}
    pending:
      description:
        - 'What an interrupted task left to be finished: operation, started, and the snapshots whose data may be damaged, or is not certain yet,
          until then.'
        - C(attachment) names the monitor of the machine that had the volume open, if one had.
        - Of a volume that was being moved here (operation C(move)) also C(source), the share that it comes from, and C(counts), V(source) or
          V(target), the copy that counts.
      type: dict
      returned: always
    connection:
      description:
        - What a virtualization host needs to attach it, in the form that OpenStack's os-brick takes. For a directory below a mount C(export) is the
          mount's source, and C(name) leads to the file in it. C(options) are words of a mount command, or null; none is a secret.
        - Where the share is not mounted, os-brick mounts it with them, at the same directory as it is mounted here.
        - A driver type C(local) is a file of this host, C(device_path). A share of fstype V(sshfs) is one, because os-brick cannot mount it.
        - The driver type C(smbfs) wants a connector that is made by hand. docs/attach.md of the collection has an example.
      type: dict
      returned: always
  sample:
    name: db01
    share: /srv/volumes
    mountpoint: /srv/volumes
    path: /srv/volumes/db01
    format: raw
    base_format: raw
    size: 10737418240
    allocated: 0
    snapshots: []
    stale: []
    chain: [{file: db01, format: raw, backing_file: null, size: 10737418240, allocated: 0}]
    created: '2026-11-22T14:40:00Z'
    description: ''
    labels: {}
    parent: null
    dependents: []
    in_use: false
    pending: null
    connection:
      driver_volume_type: local
      data: {export: /srv/volumes, name: db01, format: raw, options: null, device_path: /srv/volumes/db01}
      mount_point_base: /var/lib/remotefs/mnt
volumes:
  description: All volumes of a bulk task that exist afterwards.
  returned: with O(volumes)
  type: list
  elements: dict
sent:
  description: Bytes of data that were written to the new share. In bulk it is in each of RV(results).
  returned: with O(moved_from), when the volume moved
  type: int
  sample: 1310720
results:
  description:
    - 'One for each item, in its order: name, volume_name, changed, failed, error_code, msg, actions, recovered and volume.'
    - C(volume_name) is the name of the volume, as in results of M(remotefs.storage.remotefs_snapshot).
  returned: with O(volumes)
  type: list
  elements: dict
actions:
  description: The steps done, in order; in check mode those to be done, with bytes as an estimate.
  returned: without O(volumes)
  type: list
  elements: dict
  sample: [{step: write_record, volume: db01}, {step: create, file: db01, format: raw, size: 10737418240, preallocation: 'off', mode: '0660'}]
recovered:
  description:
    - 'Interrupted operations that this task ended first: operation, outcome (finished, undone or discarded) and steps; where one was
      discarded also left, the files that it leaves.'
  returned: without O(volumes)
  type: list
  elements: dict
not_counted:
  description: Files that rest on what was destroyed, or may do so, and were overruled by O(not_dependent). In bulk it is in each of RV(results).
  returned: when O(not_dependent) overruled any
  type: list
  elements: str
  sample: [old copy.qcow2]
log:
  description: The steps with their times, each as O(log_path) has it.
  returned: when the task runs with C(-vvv)
  type: list
  elements: dict
cmd:
  description: The program that failed; RV(rc) is its exit status and RV(stderr) what it said. In bulk they stand in RV(results).
  returned: when a program failed
  type: str
rc:
  description: The exit status of the program that failed.
  returned: when a program failed
  type: int
stderr:
  description: What the program that failed said.
  returned: when a program failed
  type: str
traceback:
  description: Where a fault that nobody foresaw happened.
  returned: when there was one
  type: str
lease:
  description: The lease that the task took or renewed, as M(remotefs.storage.remotefs_lease) returns it.
  returned: when O(lease) has C(state)
  type: dict
lease_changed:
  description: Whether that was a change. RV(ignore:changed) is true then.
  returned: when O(lease) has C(state)
  type: bool
renewed:
  description: Whether the lease was held before.
  returned: when O(lease) has C(state)
  type: bool
collected:
  description: The leases and volumes that were removed first, by name.
  returned: when O(lease) has C(collect)
  type: dict
left:
  description: 'What could not be removed: name, error_code and msg.'
  returned: when O(lease) has C(collect)
  type: list
  elements: dict
error_code:
  description: The kind of failure, see docs/errors.md.
  returned: failure
  type: str
  sample: would_shrink
"""

import functools
from dataclasses import replace
from typing import TYPE_CHECKING

from ..module_utils import arguments, changes, errors

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule


_VOLUME = {
    "name": {"type": "str"},
    "share": arguments.STORE["share"],
    "mount_base": arguments.STORE["mount_base"],
    "size": {"type": "str"},
    "format": {"type": "str", "choices": ["raw", "qcow2"]},
    "preallocation": {"type": "str", "choices": ["off", "metadata", "falloc", "full"], "default": "off"},
    "source": {
        "type": "dict",
        "options": {
            "volume": {"type": "str"},
            "snapshot": {"type": "str"},
            "share": {"type": "str"},
            "method": {"type": "str", "choices": ["full", "linked"], "default": "full"},
            "image": {"type": "str"},
            "checksum": {"type": "str"},
            "image_format": {"type": "str", "choices": ["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"]},
            "compression": {"type": "str", "choices": ["auto", "none", "gzip", "bzip2", "xz"], "default": "auto"},
            "seed": {
                "type": "dict",
                "options": {
                    "user_data": {"type": "raw", "no_log": True},
                    "meta_data": {"type": "raw"},
                    "network_config": {"type": "raw"},
                    "vendor_data": {"type": "raw", "no_log": True},
                },
            },
            "headers": {"type": "dict", "no_log": True},
            "validate_certs": {"type": "bool", "default": True},
            "url_username": {"type": "str"},
            "url_password": {"type": "str", "no_log": True},
            "client_cert": {"type": "path"},
            "client_key": {"type": "path", "no_log": False},
        },
        "required_one_of": [["volume", "image", "share", "seed"]],
        "mutually_exclusive": [["volume", "image", "seed"], ["snapshot", "image"], ["share", "image"]],
    },
    "moved_from": {"type": "str"},
    "snapshot": {"type": "str"},
    "description": {"type": "str"},
    "labels": {"type": "dict"},
    "flatten": {"type": "bool", "default": False},
    "recover": {"type": "str", "choices": ["finish", "discard"], "default": "finish"},
    "max_chain": {"type": "int", "default": 64},
    "mode": {"type": "raw"},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "cascade": {"type": "bool", "default": False},
    "not_dependent": {"type": "list", "elements": "str"},
    "placement": {"type": "str", "choices": ["most_free", "least_allocated", "round_robin"], "default": "most_free"},
    "reserved_percentage": {"type": "int", "default": 0},
    "max_over_subscription_ratio": {"type": "float", "default": 20},
    "attachment": changes.ATTACHMENT,
    "lease": {"type": "dict"},
}


def _run(params: dict, options, finder, asked=None):
    """Bring one volume to what its parameters say. ``asked`` makes them a request, unless that is to be made here."""
    from ..module_utils.operations import volumes

    changes.require(params, "name", "share")
    options = replace(options, discard=params["recover"] == "discard", not_dependent=tuple(params["not_dependent"] or ()))
    options = changes.with_machine(options, params)
    candidates = finder.find(params["share"], params["mount_base"])
    options = changes.with_lease(options, params, candidates)
    if params["state"] == "absent":
        return volumes.ensure_absent(candidates, params["name"], params["cascade"], options)
    return volumes.ensure_present(asked() if asked else _request(params, candidates, finder), options)


def _request(params: dict, candidates, finder):
    from ..module_utils.model import parse_size
    from ..module_utils.operations import updating
    from ..module_utils.operations.candidates import Policy
    from ..module_utils.plan.desired import DesiredVolume, check_max_chain, label_texts

    if not 0 <= params["reserved_percentage"] < 100 or not params["max_over_subscription_ratio"] > 0:  # nan is neither
        raise errors.InvalidParameter(
            f"volume {params['name']}",
            "reserved_percentage or max_over_subscription_ratio is out of range",
            "give 0 to 99, and more than 0",
        )
    policy = Policy(params["reserved_percentage"], params["max_over_subscription_ratio"], params["placement"])
    desired = DesiredVolume(
        name=params["name"],
        size=None if params["size"] is None else parse_size(params["size"]),
        format=params["format"],
        preallocation=params["preallocation"],
        mode=changes.parse_mode(params["mode"]),
        uid=changes.parse_owner(params["owner"]),
        gid=changes.parse_group(params["group"]),
        flatten=params["flatten"],
        description=params["description"],
        labels=None if params["labels"] is None else label_texts(params["labels"]),
        snapshot=params["snapshot"],
    )
    longest, given, seed = check_max_chain(params["max_chain"]), params["source"], _seed(params)
    if seed is not None:
        return updating.VolumeRequest(candidates, desired._replace(format="raw", seed=seed.size), policy=policy, max_chain=longest, seed=seed)
    source = None if _source_volume(params) is None else _source(params, finder, longest)
    image = _image(given) if given and not source else None
    return updating.VolumeRequest(candidates, desired, source, policy, longest, image, _elsewhere(params["moved_from"], params, finder))


def _elsewhere(share: str | None, params: dict, finder):
    """Another share that an option names."""
    from ..module_utils.operations.updating import OtherShare

    return None if share is None else OtherShare(share, functools.partial(finder.find, share, params["mount_base"]))


def _source_volume(params: dict) -> str | None:
    """The volume that a new one is made from, if any: on another share the one of the same name, unless another one is named."""
    given = params["source"] or {}
    return params["name"] if given.get("volume") is None and given.get("share") is not None else given.get("volume")


def _source(params: dict, finder, longest: int):
    """The volume that ``source`` names. :raises InvalidParameter: a clone cannot rest on what lies on another share."""
    from ..module_utils.operations.updating import SourceRequest

    given, name = params["source"], _source_volume(params)
    linked, share = given["method"] == "linked", given.get("share")
    if linked and share is not None:
        problem = "a linked clone lies on the share of its source, so that its source is on one of the shares of option share"
        raise errors.InvalidParameter("option source.share", problem, "leave it out, or take method full")
    return SourceRequest(str(name), given["snapshot"], linked, longest, _elsewhere(share, params, finder))


def _seed(params: dict):
    """The image for cloud-init that ``source`` asks for, if it does."""
    if (params["source"] or {}).get("seed") is None:
        return None
    from ..module_utils.hidden_options import revealed
    from ..module_utils.operations import seeds

    return seeds.request_of({**params, "source": {**params["source"], "seed": revealed(params["source"]["seed"])}})


def _image(given: dict):
    """The image that ``source`` names. :raises InvalidParameter: headers are no texts in one line, or it cannot be a clone."""
    from ..module_utils.operations import importing

    if given["method"] != "full":
        raise errors.InvalidParameter("option source.method", "a volume from an image has data of its own", "leave method out")
    return importing.request_of(given)


def _run_many(module: AnsibleModule) -> None:
    from ..module_utils import results

    every = [changes.merged(given, module.params) for given in module.params["volumes"]]
    results.run_many(module, every, _item, "volumes", "name", _claims)


def _claims(params: dict, finder) -> dict:
    """The volume on each share where it may be, and whether it shall be there: no other item may say it otherwise. One may go and be
    made anew."""
    found = finder.prepare(params["share"], params["mount_base"])
    shares, goes = (*found.shares, *found.missing) if found else (), params["state"] == "absent"
    told = f"volume {params['name']}"
    left = finder.prepare(params["moved_from"], params["mount_base"]) if params["moved_from"] is not None and not goes else None
    if left is None:
        return {(share.path, params["name"], goes): told for share in shares}
    return {(share.path, params["name"], side): told for share in (*shares, *left.shares) for side in (True, False)}  # nothing else of both


def _item(params: dict, finder):
    from ..module_utils import results
    from ..module_utils.operations.bulk import runner

    candidates, name = finder.prepare(params["share"], params["mount_base"]), str(params["name"])
    given, source_volume = params["source"] or {}, _source_volume(params)
    source = frozenset(() if source_volume is None else [source_volume])
    fetched = frozenset([f"image {given['image']}"] if given.get("image") is not None else ())  # one after the other: the first one fetches it
    copied = given.get("share") is not None and params["state"] == "present"
    elsewhere = finder.prepare(given["share"], params["mount_base"]) if copied else None
    moves = params["moved_from"] is not None and params["state"] == "present"
    left = finder.prepare(params["moved_from"], params["mount_base"]) if moves else None
    # Clones of a snapshot are made side by side, but where a lock for reading keeps other readers out as well.
    there = elsewhere or candidates
    shared = bool(source and given["snapshot"] and there and all(share.locks_visible for share in there.shares))
    attached = changes.one_after_the_other(params)
    touches, reads = (frozenset([name]), source) if shared else (frozenset([name]) | source, frozenset())
    deletion = runner.Deletion(candidates, name) if candidates and not attached and params["state"] == "absent" else None
    change = _change(params, candidates, name, elsewhere, left) if candidates else None
    asked = None
    if candidates and params["state"] == "present" and params["name"] is not None and not moves:
        asked = functools.lru_cache(maxsize=None)(functools.partial(_request, params, candidates, finder))
    run = functools.partial(_run, params, finder=finder, asked=asked)
    keeps_lock = bool(params["flatten"]) or moves
    return runner.Item(name, touches | attached | fetched, run, deletion, reads, keeps_lock, change, results.naming(name), asked)


def _change(params: dict, candidates, name: str, elsewhere, left):
    """What other items of the task may depend on."""
    from ..module_utils.operations.bulk import order

    return order.Change(candidates, name, params["state"] == "absent", _source_volume(params), bool(params["flatten"]), elsewhere, left)


def _run_one(module: AnsibleModule) -> dict:
    from ..module_utils.operations.candidates import Finder
    from ..module_utils.operations.options import end

    options, finder = changes.options(module), Finder()
    try:
        with changes.under_leases(options, [module.params], finder):
            return changes.result(_run(module.params, options, finder))
    finally:
        end(options)


def main() -> None:
    items = {"type": "list", "elements": "dict", "options": arguments.without_defaults(_VOLUME)}
    spec = {**_VOLUME, **changes.CHANGE, **changes.MANY, "volumes": items}
    module = changes.make_module(spec, required_one_of=[("name", "volumes")], mutually_exclusive=[("name", "volumes")])
    sources = [module.params["source"], *(item.get("source") for item in module.params["volumes"] or ())]
    changes.show_short_words(module, [source.get("headers") for source in sources if source])
    seeds = [source["seed"] for source in sources if source and source.get("seed")]
    if seeds:
        from ..module_utils import hidden_options

        hidden_options.hide(module, seeds, ("user_data", "vendor_data"), ("headers", "url_password"))
    try:
        if module.params["volumes"] is not None:
            _run_many(module)
        outcome = changes.run_watched(module, functools.partial(_run_one, module))
    except Exception as error:  # one that nobody foresaw is a failure with a code too
        outcome = changes.failure(errors.as_storage_error(error, "this task"))
    changes.leave(module, outcome, str(module.params["name"]))


if __name__ == "__main__":
    main()
