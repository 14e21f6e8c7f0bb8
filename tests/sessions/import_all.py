# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Imports all that runs on managed hosts, with the Python that runs this."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

plugins = Path(__file__).resolve().parents[2] / "plugins"
files = sorted([*plugins.glob("module_utils/**/*.py"), *plugins.glob("modules/*.py")])
names = [".".join(file.relative_to(plugins).with_suffix("").parts) for file in files]
assert names, "there are no modules to import"
for name in names:
    importlib.import_module("ansible_collections.remotefs.storage.plugins." + name.replace(".__init__", ""))
print(f":: {len(names)} files imported on Python {sys.version.split()[0]}")
