# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every spelling of a backing name, and the files that it may mean: a table, and what holds of any name whatever."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.store.volumes.backing_names import Target, foreign_targets, last_part, targets

# name → paths of this host that it surely means, and names that count where nothing is sure
SPELLINGS: dict[str, tuple[set[str], set[str]]] = {
    "vol": ({"vol"}, set()),
    "./vol": ({"./vol"}, set()),
    "../vols/vol": ({"../vols/vol"}, set()),
    ".//vol": ({".//vol"}, set()),
    "sub/vol": ({"sub/vol"}, set()),
    "/mnt/vols/vol": ({"/mnt/vols/vol"}, set()),
    "/mnt//vols/./vol": ({"/mnt//vols/./vol"}, set()),
    "./a:b": ({"./a:b"}, set()),
    "a b": ({"a b"}, set()),
    "vol?x": ({"vol?x"}, set()),
    "file:vol": (set(), {"vol"}),
    "file:./vol": (set(), {"vol"}),
    "file:/mnt/vol": ({"/mnt/vol"}, set()),
    "file:///mnt/vol": ({"/mnt/vol"}, {"vol"}),
    "file://localhost/mnt/vol": ({"/mnt/vol"}, {"vol"}),
    "file:///mnt/a%20b": ({"/mnt/a b"}, {"a b"}),
    "FILE:vol": (set(), {"vol"}),
    "host_device:/dev/x": ({"/dev/x"}, set()),
    "nbd:10.0.0.1:10809:exportname=vol": (set(), {"vol"}),
    "nbd:unix:/run/x.sock:exportname=vol": ({"/run/x.sock"}, {"vol"}),
    "nbd://nas1/vol": (set(), {"vol"}),
    "nbd+unix:///vol?socket=/run/x": (set(), {"vol", "x"}),
    "nfs://nas1/vols/vol": (set(), {"vol"}),
    "nfs://nas1/vols/vol?uid=0&readahead=1": (set(), {"vol"}),
    "gluster://gl1/vols/vol": (set(), {"vol"}),
    "gluster+tcp://gl1:24007/vols/dir/vol?debug=9": (set(), {"vol"}),
    "gluster+unix:///vols/vol?socket=/run/g": (set(), {"vol"}),
    "ssh://root@nas1:22/vols/vol?host_key_check=no": (set(), {"vol"}),
    "smb://nas1/vols/vol": (set(), {"vol"}),
    "http://nas1/vols/vol#x": (set(), {"vol"}),
    "https://nas1/vols/v%6Fl": (set(), {"vol"}),
    "rbd:pool/vol@snap:id=x": (set(), {"vol@snap"}),
    "blkdebug:/etc/conf:vol": (set(), {"vol"}),
    "blkdebug::vol": (set(), {"vol"}),
    "blkdebug::/mnt/vol": ({"/mnt/vol"}, set()),
    "blkdebug:conf:blkdebug:conf:/mnt/vol": ({"/mnt/vol"}, set()),
    "blkdebug::file:/mnt/vol": ({"/mnt/vol"}, set()),
    "blkverify:/mnt/raw:/mnt/vol": ({"/mnt/raw", "/mnt/vol"}, set()),
    "blkverify:raw:vol": (set(), {"raw", "vol"}),
    'blkdebug:c:json:{"driver": "raw", "file": {"driver": "file", "filename": "vol"}}': (set(), {"vol"}),
    'json:{"filename": "vol"}': (set(), {"vol"}),
    'json: {"driver": "file", "filename": "/mnt/vol"}': ({"/mnt/vol"}, set()),
    'json:{"driver": "qcow2", "file": {"filename": "/mnt/vol", "driver": "file"}}': ({"/mnt/vol"}, set()),
    'json:{"backing": {"file": {"filename": "below"}}, "file": {"filename": "vol"}}': (set(), {"vol", "below"}),
    'json:{"file": {"filename": "vol"}, "backing": "below"}': (set(), {"vol", "below"}),
    'json:{"file.filename": "/mnt/vol", "driver": "qcow2"}': ({"/mnt/vol"}, set()),
    "json:{'driver':'qcow2','file.filename':'/mnt/vol'}": ({"/mnt/vol"}, set()),
    "json:{'file': {'driver': 'nfs', 'path': '/vols/vol', 'server': {'host': 'nas1', 'type': 'inet'}}}": ({"/vols/vol"}, set()),
    'json:{"driver": "gluster", "volume": "vols", "path": "dir/vol", "server": [{"host": "gl1"}]}': (set(), {"vol", "vols"}),
    'json:{"driver": "https", "url": "https://nas1/vols/vol?x=y"}': (set(), {"vol"}),
    'json:{"filename": "v\\u006fl"}': (set(), {"vol"}),
    'json:{"\\u0066ilename": "\\u0076ol"}': (set(), {"vol"}),
    'json:{"filename": "\\/mnt\\/vol"}': ({"/mnt/vol"}, set()),
    'json:{"filename": "file:vol"}': (set(), {"vol"}),
    'json:{"filename": "json:{\'filename\': \'vol\'}"}': (set(), {"vol"}),
    'json:{"driver":"raw","file":{"driver":"blkdebug","image":{"driver":"file","filename":"vol"}}}': (set(), {"vol"}),
    'json:{"driver": "quorum", "children": [{"file": "one"}, {"file.filename": "two"}]}': (set(), {"one", "two"}),
    'json:{"filename": "vol': (set(), {"vol"}),
    'json:{"driver": "raw"}': (set(), set()),
    "json:{": (set(), set()),
    "json:": (set(), set()),
    "": (set(), set()),
    "/": (set(), set()),
    "nbd://": (set(), set()),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str) -> None:
    sure, unsure = SPELLINGS[name]
    found = targets(name)
    assert sure <= {target.path for target in found if target.sure}
    assert unsure <= {last_part(target.path) for target in found if not target.sure}
    if not sure and not unsure:
        assert not {last_part(target.path) for target in found} - {"nbd", "nbd:", "json:"}


@pytest.mark.parametrize("name", ['json:{"driver": "raw", "read-only": "on"}', 'json:{"driver": "qcow2", "aio": "native", "node-name": "vol"}'])
def test_words_that_name_no_file(name: str) -> None:
    """A volume may be called raw, and would otherwise have a dependent in everything."""
    assert not targets(name)


@pytest.mark.parametrize("name", [r"..\vols\vol", r"C:\vols\vol", r".\vol", "vol", "/mnt/vol", "dir/vol"])
def test_names_in_other_formats(name: str) -> None:
    assert "vol" in {last_part(target.path) for target in foreign_targets(name) if not target.sure}


_NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", fullmatch=True).filter(lambda name: name not in ("raw", "file"))
_DIRECTORY = st.lists(st.from_regex(r"[A-Za-z0-9_. -]{1,8}", fullmatch=True), max_size=3).map("/".join)


@given(_NAME, _DIRECTORY, st.integers(0, 9), st.booleans())
def test_whatever_surrounds_a_name(name: str, directory: str, way: int, escaped: bool) -> None:
    path = f"{directory}/{name}".lstrip("/") or name
    text = "".join(f"\\u{ord(letter):04x}" for letter in path) if escaped else path
    spelt = [
        lambda: f"/{path}",
        lambda: f"./{path}",
        lambda: f"file:{path}",
        lambda: f"nfs://server/{quote(path)}?uid=1",
        lambda: f"blkdebug:conf:{path}",
        lambda: f'json:{{"file": {{"filename": "{text}"}}, "driver": "qcow2"}}',
        lambda: f"json:{{'driver': 'raw', 'file.filename': '{text}'}}",
        lambda: "json:" + json.dumps({"driver": "qcow2", "backing": {"driver": "file", "filename": path}, "file": {"filename": "other"}}),
        lambda: f"nbd:unix:/run/s:exportname={path}",
        lambda: "json:" + json.dumps({"filename": f"file:{path}"}),
    ][way]()
    assert name in {last_part(target.path) for target in targets(spelt)}, spelt


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_any_text_is_taken_apart(name: str) -> None:
    for prefix in ("", "json:", "json:{", "nbd:", "blkdebug:", "file://", "nfs://x/"):
        found = targets(prefix + name)
        assert len(found) <= 256 and all(isinstance(target, Target) and target.path.strip("/") for target in found)
        assert len(foreign_targets(prefix + name)) <= 260


def test_it_takes_no_time() -> None:
    """The longest names, of the letters that make the most parts."""
    for text in (":" * 1000, "json:" * 200, "/:" * 500, "?=" * 500, 'json:{"a":"' * 90, "%3A" * 330, "json:" + '"' * 1000, "blkdebug:" * 110):
        targets(text)
        foreign_targets(text)
