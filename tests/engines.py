# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of the two engines moves data: the collection's own (``apply/offline/moving.py``), or qemu-img, which has what is not plain."""

from __future__ import annotations

from typing import Callable

from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import moving


def _refuse(*_args: object) -> None:
    raise moving.Unsuited("this test is about qemu-img")


def leave_to_qemu_img(replace: Callable[[object, str, object], None] = setattr) -> None:
    """From now on no image is plain enough. :param replace: as ``setattr``, or a monkeypatch's."""
    for verb in ("commit", "pull", "copy"):
        replace(moving.Mover, verb, _refuse)
