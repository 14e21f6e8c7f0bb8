#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a point of a volume out as an image."""

from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_image
short_description: Write a volume or one of its snapshots out as an image
version_added: 1.1.0
description:
  - Makes an image of what a guest sees of a volume, or of one of its snapshots, whatever chain that rests on. It goes to a file on the managed
    host, or to a server by PUT.
  - The volume is only read. Tasks that change it wait meanwhile, those that read it do not.
  - A file is written beside its place, made durable and then renamed, so that nothing half-written ever stands under its name.
  - A file that is of the format already and shows the same content is no change. Both are read for that.
  - For the way back see O(remotefs.storage.remotefs_volume#module:source.image).
author:
  - remotefs.storage contributors (@remotefs)
requirements:
  - qemu-img 7.2 or newer (package qemu-utils) for all formats but V(raw)
  - qemu-nbd (package qemu-utils) for volumes that are not plain, such as compressed ones, and for comparing files of other formats than V(raw) and V(qcow2)
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.change
  - remotefs.storage.attributes.action_group_volumes
  - remotefs.storage.store
  - remotefs.storage.store.change
  - remotefs.storage.store.attachment
attributes:
  idempotent:
    support: partial
    details: An image that is sent to a server is always a change, because nobody knows what the server has.
options:
  share:
    required: true
  volume:
    description: The volume.
    type: str
    required: true
  snapshot:
    description:
      - The snapshot whose data is written out. Without it, it is the volume's present.
      - Nobody may be writing to the present, unless O(attachment) names the machine that is. Then a snapshot is taken to read from, named
        C(temporary-) and 16 digits, and deleted when the image is written. If the task is killed, the next export of the volume's present deletes it, or
        retention after a day.
      - A snapshot can be read while a machine runs.
    type: str
  dest:
    description:
      - The absolute path of a file on the managed host, or a URL (http or https) to which the image is sent by PUT.
      - The directory must exist, and not be that of a share, where every file is a volume's. A link is followed.
      - A file that a running machine has open is not replaced.
      - If the server loses the connection, the image is sent anew, up to four times. A redirect is refused.
    type: str
    required: true
  format:
    description: The format of the image. A volume of more than 2040 GiB cannot be V(vpc).
    type: str
    choices: [raw, qcow2, vmdk, vdi, vhdx, vpc]
    default: raw
  compressed:
    description:
      - Whether the image is compressed, which V(qcow2) and V(vmdk) can be (C(streamOptimized)).
      - A file that shows the content already is no change, compressed or not.
    type: bool
    default: false
  content_checksum:
    description:
      - Whether RV(content_checksum) is computed. Without this option it is, for volumes of up to 64 GiB.
    type: bool
  mode:
    description: Octal mode of the file. Without it an existing file keeps its mode, and a new one has C(0600), because an image has its guest's secrets.
    type: raw
  owner:
    description: Owner of the file, a name or a number. Without it an existing file keeps its owner.
    type: str
  group:
    description: Group of the file, a name or a number. Without it an existing file keeps its group.
    type: str
  backup:
    description: Whether a file that is replaced is kept, under a name with the time; RV(backup_file) tells it.
    type: bool
    default: false
  headers:
    description:
      - Headers for the server, such as a token. C(Content-Type) is always C(application/octet-stream).
      - Results do not show their values, but for those of less than 8 characters, which may be words that a result needs.
    type: dict
  validate_certs:
    description: Whether the server's certificate must be valid.
    type: bool
    default: true
  url_username:
    description: A name for the server.
    type: str
  url_password:
    description: The password to O(url_username).
    type: str
  client_cert:
    description: A file with the certificate by which the server knows this client.
    type: path
  client_key:
    description: The key of O(client_cert), where that file does not have it.
    type: path
  state:
    description: The image is there.
    type: str
    choices: [present]
    default: present
seealso:
  - module: remotefs.storage.remotefs_volume
  - module: remotefs.storage.remotefs_snapshot
"""

EXAMPLES = r"""
- name: A snapshot as a raw image
  remotefs.storage.remotefs_image:
    share: /srv/volumes
    volume: db01
    snapshot: nightly
    dest: /var/backups/db01.raw

- name: The present of a volume that nobody has open, small enough to keep
  remotefs.storage.remotefs_image:
    share: /srv/volumes
    volume: db01
    dest: /var/backups/db01.qcow2
    format: qcow2
    compressed: true
    mode: '0640'
    backup: true

- name: The present of a machine that runs
  remotefs.storage.remotefs_image:
    share: /srv/volumes
    volume: db01
    dest: /var/backups/db01-running.qcow2
    format: qcow2
    attachment:
      qmp: /run/machines/db01.qmp

- name: A snapshot for another hypervisor
  remotefs.storage.remotefs_image:
    share: /srv/volumes
    volume: db01
    snapshot: nightly
    dest: /var/backups/db01.vmdk
    format: vmdk
  register: written

- name: What its guest sees, to be compared on the other side
  ansible.builtin.debug:
    msg: "{{ written.content_checksum }}"

- name: A snapshot as the data of an image of Glance, whose record another task has made
  remotefs.storage.remotefs_image:
    share: /srv/volumes
    volume: db01
    snapshot: nightly
    dest: "https://glance.example.com:9292/v2/images/{{ image_id }}/file"
    format: qcow2
    headers:
      X-Auth-Token: "{{ token }}"
"""

RETURN = r"""
dest:
  description: Where the image is. A URL is shown without a name, a password and a query.
  returned: success
  type: str
checksum:
  description: The sha256 of the file, in hex digits; in check mode null where the file would be written.
  returned: success
  type: str
content_checksum:
  description:
    - The sha256 of what a guest sees, in hex digits. It is the same for all formats; of a raw image it is that of the file.
    - Null for volumes of more than 64 GiB, if O(content_checksum) does not ask for it, and in check mode where the file would be written.
  returned: success
  type: str
size:
  description: The virtual size in bytes; in check mode null where it follows from a volume that does not exist yet.
  returned: success
  type: int
bytes:
  description: The length of the file, or what was sent; in check mode null where the file would be written.
  returned: success
  type: int
backup_file:
  description: The file with what was replaced.
  returned: when O(backup) is set and a file was replaced
  type: str
volume:
  description: The volume, see RV(remotefs.storage.remotefs_volume#module:volume).
  returned: success
  type: dict
actions:
  description: The steps done, in order; in check mode those to be done. The bytes are an estimate of what is read; RV(bytes) has the length of the image.
  returned: success
  type: list
  elements: dict
  sample:
    - {step: export, file: db01, into: /var/backups/db01.raw, format: raw, bytes: 10737418240}
recovered:
  description: 'Interrupted operations that this task finished or undid first: operation, outcome (finished, undone or discarded) and steps.'
  returned: success
  type: list
  elements: dict
log:
  description: The steps with their times, each as O(log_path) has it.
  returned: when the task runs with C(-vvv)
  type: list
  elements: dict
cmd:
  description: The program that failed; RV(rc) is its exit status and RV(stderr) what it said.
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
error_code:
  description: The kind of failure, see docs/errors.md.
  returned: failure
  type: str
  sample: in_use
"""

from functools import partial
from typing import TYPE_CHECKING

from ..module_utils import arguments, changes, errors

if TYPE_CHECKING:
    from ansible.module_utils.basic import AnsibleModule

_IMAGE = {
    "share": {**arguments.STORE["share"], "required": True},
    "mount_base": arguments.STORE["mount_base"],
    "volume": {"type": "str", "required": True},
    "snapshot": {"type": "str"},
    "dest": {"type": "str", "required": True},
    "format": {"type": "str", "choices": ["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc"], "default": "raw"},
    "compressed": {"type": "bool", "default": False},
    "content_checksum": {"type": "bool"},
    "mode": {"type": "raw"},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "backup": {"type": "bool", "default": False},
    "headers": {"type": "dict", "no_log": True},
    "validate_certs": {"type": "bool", "default": True},
    "url_username": {"type": "str"},
    "url_password": {"type": "str", "no_log": True},
    "client_cert": {"type": "path"},
    "client_key": {"type": "path", "no_log": False},
    "state": {"type": "str", "choices": ["present"], "default": "present"},
    "attachment": changes.ATTACHMENT,
}
_OF_FILES = ("mode", "owner", "group", "backup")


def _run(module: AnsibleModule) -> dict:
    from ..module_utils.operations import exporting
    from ..module_utils.operations.candidates import Finder

    params = module.params
    options = changes.with_machine(changes.options(module), params)
    target = _target(params, module.tmpdir)
    found = Finder().find(params["share"], params["mount_base"])
    request = exporting.ExportRequest(
        found, params["volume"], params["snapshot"] or None, target, params["format"], params["compressed"], params["content_checksum"]
    )
    return _told(exporting.export(request, options), target.label)


def _target(params: dict, scratch: str):
    """Where the image goes. :raises InvalidParameter: it cannot go there, or options do not go together."""
    from ..module_utils.operations import exporting, servers

    given = params["dest"]
    if not servers.is_url(given):
        servers.require_path("option dest", given)
        servers.require_together(params, False, "", "dest")
        access = exporting.Access(changes.parse_mode(params["mode"]), changes.parse_owner(params["owner"]), changes.parse_group(params["group"]))
        return exporting.ToFile(given, access, params["backup"])
    servers.require_url("option dest", given)
    servers.require_together(params, True, "", "dest")
    for name in _OF_FILES:
        if params[name]:
            raise errors.InvalidParameter(f"option {name}", "it is of a file, and dest is a URL", "leave it out")
    return exporting.ToServer(given, servers.access_of(params, sends=True), scratch)


def _told(done, dest: str) -> dict:
    """What an export returns."""
    return {
        "changed": done.changed,
        "dest": dest,
        "checksum": done.sums.file if done.sums else None,
        "content_checksum": done.sums.content if done.sums else None,
        "size": done.size,
        "bytes": done.length,
        **({"backup_file": done.kept} if done.kept else {}),
        "volume": done.volume,
        "actions": list(done.actions),
        "recovered": list(done.recovered),
        "diff": {"before": done.before or {}, "after": done.after or {}},
    }


def main() -> None:
    module = changes.make_module({**_IMAGE, **changes.CHANGE})
    changes.show_short_words(module, [module.params["headers"]])
    try:
        outcome = changes.run_watched(module, partial(_run, module))
    except Exception as error:  # one that nobody foresaw is a failure with a code too
        outcome = changes.failure(errors.as_storage_error(error, "this task"))
    changes.leave(module, outcome, "@".join(filter(None, [module.params["volume"], module.params["snapshot"]])))


if __name__ == "__main__":
    main()
