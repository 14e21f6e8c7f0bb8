# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cinder's list of shares."""
from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.errors import InvalidParameter
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import shares_file

TEXT = """\
# comment
nas1:/vols

nas2:/a\\040b   -o vers=4.1,ro
//nas3/x -o credentials=/etc/x -o ro
plain
nas4:/vols ro
nas5:/vols -o
/srv/volumes,old
 nas6:/vols
nas7:/vols\t-o ro
nas8:/a\\134b -ohard
nas9:/vols # a comment
nas10:/vols -o ro, hard
\\\\nas11\\vols
nas1:/vols -o ro
"""


def test_lines_become_items_and_bad_ones_warnings():
    items, warnings = shares_file.parse(TEXT, "/f")
    assert items == [
        {"src": "nas1:/vols", "opts": ["ro"]},  # a later line of the same source replaces the earlier one, as in Cinder
        {"src": "nas2:/a b", "opts": ["vers=4.1,ro"]},
        {"src": "//nas3/x", "opts": ["credentials=/etc/x,ro"]},
        {"src": "/srv/volumes,old"},
        {"src": "nas8:/a\\134b", "opts": ["hard"]},  # of the escapes only that of the blank means anything
        {"src": "\\\\nas11\\vols"},
    ]
    assert [warning.split(":")[0] for warning in warnings] == [f"/f, line {number}" for number in (6, 7, 8, 10, 11, 13, 14)]


def cinder(text):
    """What Cinder's RemoteFSDriver._load_shares_config makes of a file (address and options), written from its rules."""
    shares = {}
    for line in text.splitlines(keepends=True):
        if not line.strip() or line.startswith("#"):
            continue
        found = line.split(" ", 1)
        address = found[0].strip().replace("\\040", " ")
        if re.match(r".+:/.+", address):
            shares[address] = found[1].strip() if len(found) > 1 else None
    return shares


@given(st.lists(st.text(st.sampled_from("nas1:/v\\040 #-o,=r"), max_size=24).map(lambda text: text if ":/" in text else "nas1:/v" + text), max_size=5))
def test_sources_are_those_of_cinder(lines):
    """Whatever we take from a file Cinder takes too, with the same source."""
    text = "\n".join(lines)
    items, dummy = shares_file.parse(text)
    there = cinder(text)
    for item in items:
        if ":/" in item["src"][1:-1]:
            assert item["src"] in there
            assert bool(item.get("opts")) <= bool(there[item["src"]])


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InvalidParameter, match="does not exist"):
        shares_file.read(str(tmp_path / "none"))
