#!/usr/bin/python
# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the leases of a share."""

from __future__ import annotations

DOCUMENTATION = r"""
module: remotefs_lease_info
short_description: Read the leases of a share
version_added: 1.1.0
description:
  - Returns the leases of shares. It takes no lock and changes nothing.
  - A lease that cannot be read comes back with C(name), C(error_code) and C(msg).
  - A server of which nothing is heard for 30 seconds is given up, also in the middle of reading. The task fails with C(share_not_mounted).
author:
  - remotefs.storage contributors (@remotefs)
extends_documentation_fragment:
  - remotefs.storage.attributes
  - remotefs.storage.attributes.info
  - remotefs.storage.attributes.action_group_volumes
  - remotefs.storage.store
options:
  share:
    required: true
  names:
    description: Globs for the names of leases. Without it, all are returned.
    type: list
    elements: str
notes:
  - It writes nothing, so that C(expired) is by the clock of this host. A task of M(remotefs.storage.remotefs_lease) asks the clock of the share.
seealso:
  - module: remotefs.storage.remotefs_lease
"""

EXAMPLES = r"""
- name: Read who has what
  remotefs.storage.remotefs_lease_info:
    share: /srv/volumes
  register: found

- name: Say which leases have ended
  ansible.builtin.debug:
    msg: "{{ found.leases | selectattr('expired', 'defined') | selectattr('expired') | map(attribute='name') }}"
"""

RETURN = r"""
leases:
  description: The leases, by share and name.
  returned: success
  type: list
  elements: dict
  contains:
    name: {description: Its name., type: str, returned: always}
    share: {description: 'The source of its share as given; for a directory, what is mounted there, or the directory.', type: str, returned: always}
    id: {description: Another one each time that the lease is taken. Its volumes have it on record., type: str, returned: when it can be read}
    owner: {description: Who holds it., type: str, returned: when it can be read}
    acquired: {description: When it was taken (UTC)., type: str, returned: when it can be read}
    expires: {description: When it ends (UTC); null where it does not., type: str, returned: when it can be read}
    expired: {description: Whether it has ended by the clock of this host., type: bool, returned: when it can be read}
    renewed: {description: Always false here., type: bool, returned: when it can be read}
    renewed_at: {description: When it was taken or renewed last (UTC)., type: str, returned: when it can be read}
    ttl: {description: Seconds from the last renewal to its end; null where it does not end., type: int, returned: when it can be read}
    labels: {description: The names and values kept with it., type: dict, returned: when it can be read}
    volumes: {description: Names of the volumes that may be made under it., type: list, elements: str, returned: when it can be read}
    uses: {description: Names of the volumes on which those of the lease rest., type: list, elements: str, returned: when it can be read}
    collector: {description: Who removes what is left of it; null where nobody does., type: str, returned: when it can be read}
error_code:
  description: The kind of failure, when a share itself cannot be read.
  returned: failure
  type: str
  sample: share_not_mounted
"""

import fnmatch
from functools import partial

from ..module_utils import arguments


def _read(params: dict, warn) -> dict:
    import json

    found, globs = arguments.shares_to_read(params, warn), params["names"] or []
    from ..module_utils.operations import candidates, leases

    every = [lease for share in found for lease in candidates.heard(share, partial(leases.read_all, share))]
    wanted = [one for one in every if not globs or any(fnmatch.fnmatchcase(one["name"], glob) for glob in globs)]
    return {"leases": [json.dumps(one) for one in wanted]}


def main() -> None:
    arguments.run_info({"names": {"type": "list", "elements": "str"}}, _read)


if __name__ == "__main__":
    main()
