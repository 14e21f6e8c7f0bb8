# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows how far the module ``remotefs_replica`` is, if that takes long."""

from __future__ import annotations

from ansible_collections.remotefs.storage.plugins.plugin_utils.watched import WatchedAction


class ActionModule(WatchedAction):
    """The module's own name. All of it is in :class:`WatchedAction`."""
