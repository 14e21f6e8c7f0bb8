# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the inventory plugin for the hostile corpus, as ansible-inventory does, in the process that is traced."""

from __future__ import annotations

import json
import os
import sys
import tempfile

NAME = "remotefs.storage.environments"


def load() -> None:
    """Import all that the plugin needs."""
    os.environ["ANSIBLE_COLLECTIONS_PATH"] = next(path for path in sys.path if os.path.isdir(os.path.join(path, "ansible_collections", "remotefs")))
    os.environ["ANSIBLE_LOCAL_TEMP"] = os.environ["ANSIBLE_HOME"] = tempfile.gettempdir()
    from ansible import template  # noqa: F401
    from ansible.inventory import manager  # noqa: F401
    from ansible.plugins import loader
    from ansible.vars import manager as variables  # noqa: F401

    getattr(loader, "init_plugin_loader", lambda: None)()  # ansible-core 2.14 and older have none
    if loader.inventory_loader.get(NAME) is None:
        raise LookupError(f"there is no plugin {NAME} on {sys.path}")


def tell(options: dict) -> None:
    """Print the hosts with their variables, and the warnings; or the error."""
    from ansible.errors import AnsibleError
    from ansible.inventory.data import InventoryData
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import inventory_loader

    plugin, found, warned = inventory_loader.get(NAME), InventoryData(), []
    plugin.display.warning = warned.append
    with tempfile.NamedTemporaryFile("w", suffix=".remotefs.yml") as source:
        source.write(json.dumps({"plugin": NAME, **options}))
        source.flush()
        try:
            plugin.parse(found, DataLoader(), source.name, cache=False)
        except AnsibleError as error:
            known = error.__context__
            print(json.dumps({"failed": True, "error_code": getattr(known, "error_code", None), "msg": str(error)}))
            return
    told = {name: dict(host.vars) for name, host in found.hosts.items()}
    print(json.dumps({"hosts": told, "groups": sorted(found.groups), "warnings": warned}, default=str))
