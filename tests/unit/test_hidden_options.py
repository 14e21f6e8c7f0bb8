# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that are taken out of what results show: which words may still stand there, and which are blanked."""

from __future__ import annotations

import json
from typing import Any

from ansible_collections.remotefs.storage.plugins.module_utils import hidden_options

DOCUMENT = {"hostname": "node-number-1", "pin": 7, "password": "a-long-secret", "shared": "token-of-server", "on": True, "list": [{"deep": "short"}]}


class Module:
    def __init__(self) -> None:
        self.seed: dict[str, Any] = {"user_data": DOCUMENT, "vendor_data": None, "meta_data": {"a": "in-the-open"}}
        self.params = {"name": "node-number-1", "source": {"seed": self.seed, "headers": {"X": "token-of-server"}, "url_password": "a-long-secret2"}}
        self.no_log_values = {"node-number-1", "7", "a-long-secret", "short", "token-of-server", "a-long-secret2"}


def test_what_is_shown_and_what_is_not() -> None:
    """Short words and such as stand in another option in the open. A secret of another option stays one, be it here as well."""
    module = Module()
    hidden_options.hide(module, [module.seed], ("user_data", "vendor_data"), ("headers", "url_password"))  # type: ignore[arg-type]
    assert module.no_log_values == {"a-long-secret", "token-of-server", "a-long-secret2"}
    assert "node-number-1" in json.dumps(module.params) and not [word for word in ("short", "hostname", "pin") if word in json.dumps(module.params)]
    assert hidden_options.revealed(module.seed) == {"user_data": DOCUMENT, "vendor_data": None, "meta_data": {"a": "in-the-open"}}
