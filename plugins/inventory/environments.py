# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The workers of running environments as hosts."""
from __future__ import annotations

DOCUMENTATION = r"""
name: environments
short_description: Workers of running environments as hosts
version_added: 1.1.0
description:
  - Reads the leases and volumes of shares. Each worker of each environment that the role P(remotefs.storage.ci_environment#role) has made is a host.
  - It runs on the controller, which must have the shares mounted. It takes no lock and writes nothing to them.
  - The user who runs Ansible must be able to read the shares, also their folder C(.remotefs), which at first only the user who made it can read.
  - The name of the source must end in C(remotefs.yml) or C(remotefs.yaml), such as C(ci.remotefs.yml).
  - A worker is a volume that a lease lists, that was made under this lease, and that has the label C(remotefs_worker). A volume that only has
    the name of a worker is no host.
  - The label C(remotefs_address) of a worker says where the machine on it listens, as C(HOST:PORT) or C([IPV6]:PORT). Whoever starts the machine sets
    it. The host has C(ansible_host) and C(ansible_port) from it. If it is no address and port, the host has neither, and a warning says so.
  - Each host is in the groups C(environment_NAME) of its environment, C(golden_NAME) of the golden volume, and C(label_KEY_VALUE) for each
    label that the user gave it, or C(label_KEY) where the value is empty. Characters that no group may have become C(_). So different names
    can become the same group. More than 100 labels, and one of more than 200 characters, make no groups.
author:
  - remotefs.storage contributors (@remotefs)
extends_documentation_fragment:
  - ansible.builtin.constructed
  - ansible.builtin.inventory_cache
  - remotefs.storage.store
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [remotefs.storage.environments]
  share:
    description:
      - The share, as the source string of a mounted share (V(nas1:/vols)) or as an absolute directory. A list names several shares.
      - Commas in a text belong to the name. Write several shares as a YAML list.
      - A directory under O(mount_base), or one that fstab names as a mount point, counts only while something is mounted there.
      - If one of them cannot be read, or its server does not answer, the whole source fails.
    required: true
  environments:
    description: Names of environments, or globs for them. Without it, all are read.
    type: list
    elements: str
    default: []
  expired:
    description:
      - Whether workers whose lease has ended, or whose volumes somebody collects, are hosts, too. RV(ignore:remotefs_lease.expired) is then true.
      - The clock of the controller decides what has ended, also if the rest comes from the cache.
    type: bool
    default: false
  hostname:
    description:
      - An expression for the name of the host, which sees the variables of the host. Without it, hosts have the names of the first disks of
        the workers, such as C(ci-main-00).
      - A name must begin with a letter, a digit or C(_), and hold only these, C(.) and C(-). A worker for which the expression fails or gives another
        name is no host, and a warning says so. With O(strict) it is an error.
    type: str
notes:
  - "The variables of each host are C(remotefs_name) (the volume that is the first disk), C(remotefs_environment), C(remotefs_worker) (its index),
    C(remotefs_share), C(remotefs_path) (the file that the machine must open), C(remotefs_golden) (C(volume) and C(snapshot), or null),
    C(remotefs_labels) (those that the user gave it) and C(remotefs_lease) (C(name), C(owner), C(expires) and C(expired))."
  - A worker that is no clone but has all its data shows no snapshot. Then RV(ignore:remotefs_golden.snapshot) is null.
  - Two workers never become one host. If a name is on two shares, the share that O(share) names first has it, and a warning tells of the other one.
    With O(strict) it is an error. O(hostname) can give them different names.
  - A name that another inventory source already has is left to that source in the same way. Name this source first if both are about the same host.
  - No host can have the name of a group, or one that begins with C(environment_), C(golden_) or C(label_).
  - A lease or volume that cannot be read gives a warning. The others are hosts nevertheless.
  - Whoever can write to a share decides which hosts there are, and where Ansible connects to. Values from the share are never templates.
    O(compose), O(keyed_groups), O(groups) and O(hostname) are yours. Do not make names of groups without a prefix from labels, or connection
    variables such as C(ansible_ssh_common_args), and keep the checks of SSH host keys.
  - Without an address, Ansible takes the name of the host for the address. Give one with O(compose), or start the machines first.
  - With the cache, only O(share), O(mount_base) and O(environments) must be as they were for it to be used. The other options work on what is in it.
seealso:
  - module: remotefs.storage.remotefs_lease_info
  - module: remotefs.storage.remotefs_volume_info
"""

EXAMPLES = r"""
# ci.remotefs.yml: all workers of all running environments of a share
plugin: remotefs.storage.environments
share: /srv/volumes

---
# Only the workers of some environments, in groups by the owner of the lease and by a label; machines that have an address only
plugin: remotefs.storage.environments
share: /srv/volumes
environments: ["ci-*"]
strict: true
keyed_groups:
  - key: remotefs_lease.owner
    prefix: owner
  - key: remotefs_labels.role | default('none')
    prefix: role
groups:
  reachable: ansible_host is defined
compose:
  ansible_user: "'root'"
  disk: remotefs_path

---
# Two shares that may have environments of the same name, also those whose lease has ended
plugin: remotefs.storage.environments
share:
  - /srv/volumes
  - /srv/more
hostname: (remotefs_share | basename) ~ '.' ~ remotefs_name
expired: true
groups:
  ended: remotefs_lease.expired

---
# Read at most once in a minute, also by several runs
plugin: remotefs.storage.environments
share: /srv/volumes
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: /tmp/inventory-cache
cache_timeout: 60
"""

import ipaddress
import re
import time
from functools import partial

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.utils.unsafe_proxy import wrap_var

from ..module_utils import arguments, errors
from ..module_utils.operations import candidates, environments

_ENDINGS = ("remotefs.yml", "remotefs.yaml")
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}\Z")
_THIS_HOST = ("localhost", "127.0.0.1")  # names that Ansible itself gives a meaning
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,252})):(?P<port>[1-9][0-9]{0,4})\Z")
_NUMBERS = re.compile(r"[0-9.]+\Z")
_GROUPS = ("environment_", "golden_", "label_")  # how the names of the groups of this plugin begin
_MOST_WARNINGS = 20
_MOST_LABELS = 100  # of a worker, for groups: a share must not keep Ansible busy with them for hours
_LONGEST_GROUP = 200  # characters
_SHOWN = 100  # characters of a text of the share in a warning
_LONGEST = 1000  # characters of a warning
_FORM = 1  # of what is in the cache


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """Reads shares, or the cache, and makes a host of each worker."""

    NAME = "remotefs.storage.environments"

    def verify_file(self, path):
        """Whether a source is for this plugin, by its name."""
        return path.endswith(_ENDINGS) and super().verify_file(path)

    def parse(self, inventory, loader, path, cache=True):
        """Add the hosts. :raises AnsibleParserError: a share cannot be read, or an option is wrong."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        self._warned = 0
        self._places = {}  # host → share
        found = self._found(path, cache)
        for problem in found["problems"]:
            self._warn(f"{problem} It gives no host.")
        now = time.time()
        for worker in found["workers"]:
            is_over = worker["is_collected"] or (worker["ends"] is not None and now > worker["ends"])
            if self.get_option("expired") or not is_over:
                self._add(worker, is_over)
        if self._warned > _MOST_WARNINGS:
            self.display.warning(f"{self.NAME}: {self._warned - _MOST_WARNINGS} more warnings are not shown.")

    # -- reading -----------------------------------------------------------------------------------------------------------

    def _found(self, path, cache):
        """All workers, from the cache if it has them, and what could not be read."""
        asked = {"form": _FORM, **{name: self.get_option(name) for name in ("share", "mount_base", "environments")}}
        if not self.get_option("cache"):
            return self._read(asked)
        key = self.get_cache_key(path)
        if cache:
            try:
                kept = self._cache[key]
                if kept["asked"] == asked:
                    return kept["found"]
            except (KeyError, TypeError):
                pass  # nothing is there, or an older release wrote it
        found = self._read(asked)
        self._cache[key] = {"asked": asked, "found": found}
        return found

    def _read(self, asked):
        try:
            shares = arguments.shares_to_read(asked)
            if not shares:
                raise AnsibleParserError(f"{self.NAME}: option share names no share; give a source such as nas1:/vols or a directory, or a list of them.")
            found = [candidates.heard(share, partial(environments.read_workers, share, asked["environments"])) for share in shares]
        except AnsibleError:
            raise
        except Exception as error:
            known = errors.as_storage_error(error, "the shares")
            self.display.vvv(known.details.get("traceback", ""))
            raise AnsibleParserError(f"{self.NAME}: {known}") from None  # newer Ansible would say it twice
        return {"workers": [one for part in found for one in part.workers], "problems": [one for part in found for one in part.problems]}

    # -- hosts -------------------------------------------------------------------------------------------------------------

    def _add(self, worker, is_over):
        variables = wrap_var(_variables(worker, is_over))
        if worker["address"] is not None and "ansible_host" not in variables:
            told = f"its label {environments.ADDRESS} is no HOST:PORT and no [IPV6]:PORT: {shown(worker['address'])}"
            self._warn(f"worker {worker['name']} on {worker['share']}: {told}. It has no address.")
        if len(worker["labels"]) > _MOST_LABELS:
            self._warn(f"worker {worker['name']} on {worker['share']}: it has more than {_MOST_LABELS} labels. They make no groups.")
        host = self._name_of(worker, variables)
        if host is None:
            return
        self._places[host] = worker["share"]
        self.inventory.add_host(host)
        for name, value in variables.items():
            self.inventory.set_variable(host, name, value)
        for name in group_names(worker):
            self.inventory.add_child(self.inventory.add_group(self._sanitize_group_name(name)), host)
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, host, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, host, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, host, strict=strict)

    def _name_of(self, worker, variables):
        """The name of the host; None if it cannot be one."""
        name, template, subject = worker["name"], self.get_option("hostname"), f"worker {worker['name']} on {worker['share']}"
        if template:
            try:
                name = str(self._compose(template, variables))
            except Exception as error:
                return self._left_out(f"{subject}: option hostname gives it no name ({error})")
        if not _HOST_NAME.match(name) or name.lower() in _THIS_HOST:
            return self._left_out(f"{subject}: {shown(name)} cannot be the name of a host")
        if name in self._places:
            told = f"the name {name} is that of a worker on {self._places[name]} already; give the hosts different names with option hostname"
            return self._left_out(f"{subject}: {told}")
        if name in self.inventory.hosts:
            return self._left_out(f"{subject}: another source of the inventory has a host {name}")
        if self._may_be_group(name):  # Ansible would give its variables to all hosts of that group
            return self._left_out(f"{subject}: {name} is a group, or may become one")
        return name

    def _may_be_group(self, name):
        return name in self.inventory.groups or name.startswith(_GROUPS) or name in map(self._sanitize_group_name, self.get_option("groups") or {})

    def _left_out(self, problem):
        if self.get_option("strict"):
            raise AnsibleParserError(f"{self.NAME}: {problem}.")
        self._warn(f"{problem}. It is no host.")

    def _warn(self, text):
        self._warned += 1
        if self._warned <= _MOST_WARNINGS:
            self.display.warning(f"{self.NAME}: {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}")


def _variables(worker, is_over):
    """The variables of a host, by name."""
    address = parse_address(worker["address"])
    return {
        "remotefs_name": worker["name"],
        "remotefs_environment": worker["environment"],
        "remotefs_worker": worker["index"],
        "remotefs_share": worker["share"],
        "remotefs_path": worker["path"],
        "remotefs_golden": worker["golden"],
        "remotefs_labels": worker["labels"],
        "remotefs_lease": {"name": worker["environment"], "owner": worker["owner"], "expires": worker["expires"], "expired": is_over},
        **({} if address is None else {"ansible_host": address[0], "ansible_port": address[1]}),
    }


def parse_address(text):
    """Host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; None where it is neither. A host is never an option of ssh, and has no user in it."""
    match = _ADDRESS.match(text or "")
    if match is None or int(match.group("port")) > 65535:
        return None
    host = match.group("v6") or match.group("name")
    try:
        if match.group("v6"):
            ipaddress.IPv6Address(host)
        elif _NUMBERS.match(host):
            ipaddress.IPv4Address(host)
    except ValueError:
        return None
    return host, int(match.group("port"))


def group_names(worker):
    """The groups of a worker, before characters that no group may have are replaced."""
    names = [f"environment_{worker['environment']}"]
    names += [f"golden_{worker['golden']['volume']}"] if worker["golden"] else []
    labels = worker["labels"].items() if len(worker["labels"]) <= _MOST_LABELS else ()
    return names + [name for name in ("_".join(["label", *filter(None, label)]) for label in labels) if len(name) <= _LONGEST_GROUP]


def shown(text):
    """A text of the share for a message: short, and without anything that would upset a terminal."""
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
