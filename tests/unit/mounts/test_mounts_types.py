# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of file systems and the forms of sources."""
from __future__ import annotations

import re

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.errors import InvalidParameter
from ansible_collections.remotefs.storage.plugins.module_utils.mounts import sources, types


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("nas1:/vols", "nfs"),
        ("192.0.2.1:/a b", "nfs"),
        ("[2001:db8::1]:/vols", "nfs"),
        ("//nas1/vols", "cifs"),
        ("\\\\nas1\\vols", "cifs"),
        ("user@host:/dir", "sshfs"),
        ("user@[2001:db8::1]:dir", "sshfs"),
        ("/srv/x", None),
        ("vols", None),
        ("-oProxyCommand=x@host:/dir", None),
        ("-o:/x", None),
        ("//user@nas/vols", None),
    ],
)
def test_auto_goes_by_the_form(source, name):
    row = sources.claim(sources.normalise(source))
    assert (row.name if row else None) == name


@pytest.mark.parametrize("row", types.rows(), ids=lambda row: row.name)
def test_every_row_is_whole(row):
    assert re.fullmatch(row.source, row.example)
    assert bool(row.helper) == bool(row.package)
    assert row.keeps_credentials == bool(row.identity_options) and (row.credentials == "stdin") == bool(row.stdin_options)
    assert row.credentials in ("", "file", "secret", "stdin") and row.root_in_source in ("", "alone", "too")
    assert bool(row.user_place) == (row.credentials == "secret") and bool(row.user_option) <= (row.credentials == "file")
    assert row.local or (row.kernel_types and row.mount_type and (row.helper or row.kernel_module))
    assert row.vendor == "" or row.package
    assert not row.mount_prefix or row.mount_prefix in row.prefixes
    assert bool(row.fallbacks) == bool(row.falls_back_on) and all(option.split("=")[0] in row.versions for option in row.fallbacks)
    for kernel_type in row.kernel_types:
        assert types.by_kernel_type(kernel_type) is row
        assert types.by_mount_type(kernel_type) is row
    for option in row.remountable:
        assert "=" not in option


def test_an_unknown_name_is_refused():
    with pytest.raises(InvalidParameter, match="'lustre'.*choose one of auto, directory, bind, nfs, .*virtiofs, other"):
        types.by_name("lustre")


@pytest.mark.parametrize(
    ("one", "other"), [("nas:/vols/", "nas:/vols"), ("\\\\nas\\vols", "//nas/vols"), ("nas:/", "nas:/"), ("//nas/vols/", "//nas/vols")]
)
def test_spellings_of_one_source(one, other):
    assert sources.normalise(one) == sources.normalise(other)


def test_a_root_export_stays_one():
    assert sources.normalise("nas:/") == "nas:/" and sources.normalise("user@host:") == "user@host:"


@pytest.mark.parametrize(
    ("name", "options", "visible", "readable"),
    [
        ("nfs", ("vers=4.2", "local_lock=none"), True, True),
        ("nfs", ("vers=3", "local_lock=none"), True, False),
        ("nfs", ("vers=3", "nolock", "local_lock=all"), False, False),
        ("cifs", ("vers=3.1.1",), True, False),
        ("cifs", ("vers=3.1.1", "nobrl"), False, False),
        ("glusterfs", (), True, True),
        ("sshfs", (), False, True),
        ("directory", (), True, True),
    ],
)
def test_what_locks_can_be_seen(name, options, visible, readable):
    row = types.by_name(name)
    assert (row.locks_visible(options), row.locks_readable(options)) == (visible, readable)
