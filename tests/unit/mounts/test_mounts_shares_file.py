# Copyright: contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cinder's list of shares."""
from __future__ import annotations

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import InvalidParameter
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import shares_file

TEXT = """\
# comment
nas1:/vols

  nas2:/a\\040b   -o vers=4.1,ro
//nas3/x -o credentials=/etc/x
plain
nas4:/vols ro
nas5:/vols -o
/srv/volumes
"""


def test_lines_become_items_and_bad_ones_warnings():
    items, warnings = shares_file.parse(TEXT, "/f")
    assert items == [
        {"src": "nas1:/vols"},
        {"src": "nas2:/a b", "opts": ["vers=4.1,ro"]},
        {"src": "//nas3/x", "opts": ["credentials=/etc/x"]},
        {"src": "/srv/volumes"},
    ]
    assert [warning.split(":")[0] for warning in warnings] == ["/f, line 6", "/f, line 7", "/f, line 8"]


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InvalidParameter, match="does not exist"):
        shares_file.read(str(tmp_path / "none"))
