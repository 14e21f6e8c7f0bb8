# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of other volumes that go away while a task reads them, as they do on GlusterFS and NFSv3 when another host replaces them.

The descriptor is dead then: each call on it fails, a close too. Nobody may take that for a file that is missing, or for a server
that is gone.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors
from ansible_collections.remotefs.storage.plugins.module_utils.operations import reading, snapshots

from .test_refusals import MIB, Store

CALLS = ("fstat", "read", "pread", "close")
FAULTS = [(errno.ENOENT, CALLS), (errno.ESTALE, CALLS), (errno.ESTALE, ("open",))]


class Peer:
    """Another host, which takes files away from this one.

    :param number: which of the calls that could fail does; None: none. :param always: all after it fail, too.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: int, calls: tuple[str, ...], number: int | None, always: bool = False) -> None:
        self._error, self._calls, self._number, self._always = error, calls, number, always
        self._opened: set[int] = set()
        self._dead: set[int] = set()
        self.count = 0
        self._real = {name: getattr(os, name) for name in {"open", *CALLS}}
        monkeypatch.setattr(os, "open", self._open)
        for name in CALLS:
            monkeypatch.setattr(os, name, self._made(name))

    def _strikes(self, name: str) -> bool:
        if name not in self._calls or self._number is None:
            return False
        self.count += 1
        return self.count == self._number or (self._always and self.count > self._number)

    def _failure(self) -> OSError:
        return OSError(self._error, os.strerror(self._error))

    def _open(self, path: object, *arguments: object, **named: object) -> int:
        others = isinstance(path, str) and path.startswith("other")
        if others and self._strikes("open"):
            raise self._failure()
        fd = self._real["open"](path, *arguments, **named)
        (self._opened.add if others else self._opened.discard)(fd)
        self._dead.discard(fd)
        return fd

    def _made(self, name: str) -> Callable:
        real = self._real[name]

        def call(fd: int, *arguments: object) -> object:
            if fd in self._opened and (fd in self._dead or self._strikes(name)):
                self._dead.add(fd)
                if name == "close":
                    self._opened.discard(fd)
                    real(fd)
                raise self._failure()
            return real(fd, *arguments)

        return call


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Store]:
    """A volume with two snapshots, and beside it others: an image with ``.info``, a record, and an overlay in a folder."""
    (tmp_path / "share").mkdir()
    store = Store(tmp_path / "share")
    store.present(size=MIB, format="qcow2")
    store.snapshot("s1")
    store.snapshot("s2")
    store.present("other", size=MIB, format="qcow2")
    store.snapshot("p1", "other")
    store.present("otherraw", size=MIB, format="raw")
    (store.path / "otherlink").symlink_to("sub/other-there")
    (store.path / "sub").mkdir()
    (store.path / "sub/other-there").write_bytes((store.path / "other").read_bytes())
    yield store


def found(store: Store) -> object:
    return {one["name"]: one for one in reading.list_volumes(store.share, [])}


def asked(store: Store) -> object:
    warned: list[str] = []
    result = snapshots.delete(store.candidates, "vol", ["s1"], store.options(check=True, warn=warned.append))
    return result.changed, warned


def blocked(store: Store) -> object:
    with pytest.raises(errors.HasDependents) as caught:
        store.delete("s1", check=True)
    return str(caught.value)


def rests_on_it(store: Store) -> None:
    """Make files of others rest on what ``vol.s1`` shows, in each place that is searched."""
    for file, name in (("other-overlay", "vol"), ("sub/other-overlay", "../vol")):
        where = store.path / file
        subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "qcow2", where, str(MIB)], check=True)


@pytest.mark.parametrize(("error", "calls"), FAULTS)
@pytest.mark.parametrize("action", [found, asked, blocked], ids=lambda action: action.__name__)
def test_a_file_that_is_replaced_is_read_again(
    shared: Store, monkeypatch: pytest.MonkeyPatch, error: int, calls: tuple[str, ...], action: Callable[[Store], object]
) -> None:
    if action is blocked:
        rests_on_it(shared)
    expected, number, struck = action(shared), 0, True
    while struck:
        number += 1
        with monkeypatch.context() as patched:
            peer = Peer(patched, error, calls, number)
            assert action(shared) == expected, f"call {number} of {calls}"
            struck = peer.count >= number
    assert number > 3, "nothing was read"


@pytest.mark.parametrize("action", [asked, blocked], ids=lambda action: action.__name__)
def test_a_server_that_stays_away_is_told(shared: Store, monkeypatch: pytest.MonkeyPatch, action: Callable[[Store], object]) -> None:
    with monkeypatch.context() as patched:
        Peer(patched, errno.ESTALE, ("open", *CALLS), 1, always=True)
        with pytest.raises(errors.ShareNotMounted, match="does not answer"):
            action(shared)
