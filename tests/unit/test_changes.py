# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Owners, groups, modes and numbers are checked before anything else is done with them."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils import changes
from ansible_collections.remotefs.storage.plugins.module_utils.attachments import Attachment
from ansible_collections.remotefs.storage.plugins.module_utils.errors import InvalidParameter
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options

NUMBERS = ["\u00b2", "\u0663", "99999999999", "4294967295", "9" * 5000, "-1", "1_0", "no such name", "a\0b", ""]


@pytest.mark.parametrize("parse", [changes.parse_owner, changes.parse_group])
@pytest.mark.parametrize("value", NUMBERS)
def test_what_is_no_id_is_refused(parse, value: str) -> None:
    with pytest.raises(InvalidParameter):
        parse(value)


def test_ids_and_names_are_taken() -> None:
    assert changes.parse_owner("0") == changes.parse_owner("root") == 0
    assert changes.parse_group("4294967294") == 4294967294 and changes.parse_group(None) is None


@pytest.mark.parametrize("value", ["\u0666\u0666\u0660", "0_660", "+660", "-1", " 660", "888", "", "9" * 5000, "0o660", True, 0o7777, 1.5])
def test_what_is_no_mode_is_refused(value: object) -> None:
    with pytest.raises(InvalidParameter):
        changes.parse_mode(value)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none()))
def test_a_mode_is_one_or_is_refused(value: object) -> None:
    try:
        mode = changes.parse_mode(value)
    except InvalidParameter:
        return
    assert mode is None or 0 <= mode <= 0o777


@given(st.text())
def test_an_owner_is_one_or_is_refused(value: str) -> None:
    try:
        owner = changes.parse_owner(value)
    except InvalidParameter:
        return
    assert owner is not None and 0 <= owner < 2**32 - 1


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_waiting_has_an_end(seconds: float) -> None:
    with pytest.raises(InvalidParameter):
        changes.check_numbers({"lock_timeout": seconds, "parallel": None, "timeout": None})
    with pytest.raises(InvalidParameter):
        changes.check_numbers({"lock_timeout": 90.0, "parallel": None, "timeout": seconds})


def test_no_time_at_all_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="option timeout"):
        changes.check_numbers({"lock_timeout": 90.0, "parallel": None, "timeout": 0.0})


@pytest.mark.parametrize("value, speed", [("0", 0), (" 0 ", 0), ("1", 1), ("1000001", 1000001), ("50M", 50 << 20), ("2 GiB", 2 << 30)])
def test_speeds(value: str, speed: int) -> None:
    assert changes.parse_speed(value) == speed


@pytest.mark.parametrize("value", ["", "-1", "fast", "1.5M", "10MB", "0M", "9" * 5000, "\u0663", "8E", "99999999P", "1 K/s"])
def test_what_is_no_speed_is_refused(value: str) -> None:
    with pytest.raises(InvalidParameter, match="option speed") as caught:
        changes.parse_speed(value)
    assert len(str(caught.value)) < 300


def test_usual_numbers_are_taken() -> None:
    changes.check_numbers({"lock_timeout": 90.0, "parallel": os.cpu_count(), "timeout": 0.5})
    assert changes.parse_mode("0660") == changes.parse_mode(0o660) == 0o660


SHARED_RETURNS = ("not_counted", "log", "lease", "lease_changed", "renewed", "collected", "left", "cmd", "rc", "stderr", "traceback")


def test_what_changing_modules_return_alike_is_documented_alike(checkout: Path) -> None:
    """Documentation fragments do not reach RETURN, so the same words stand in both modules. Only samples of codes differ."""
    texts = [(checkout / "plugins" / "modules" / f"{name}.py").read_text() for name in ("remotefs_volume", "remotefs_snapshot")]
    volume, snapshot = (yaml.safe_load(text.split('RETURN = r"""')[1].split('"""')[0]) for text in texts)
    assert {key: volume[key] for key in SHARED_RETURNS} == {key: snapshot[key] for key in SHARED_RETURNS}
    assert {**volume["error_code"], "sample": None} == {**snapshot["error_code"], "sample": None}
    others = {key for key in volume.keys() & snapshot.keys() if volume[key] == snapshot[key]}
    assert others == set(SHARED_RETURNS), "another one is the same in both: name it here"


def machine(attachment: dict | None) -> Options:
    """The options of a task with this attachment."""
    return changes.with_machine(Options(), {"attachment": attachment})


def test_a_machine_of_one_item_and_one_for_all() -> None:
    task = {"attachment": {"qmp": "m"}}
    assert changes.with_machine(Options(), changes.merged({"attachment": None}, task)).of_all
    assert not changes.with_machine(Options(), changes.merged({"attachment": {"qmp": "n"}}, task)).of_all
    assert not changes.with_machine(Options(), task).of_all


def test_a_monitor_that_is_spelled_in_many_ways_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that share one must not work at the same time."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = tmp_path / "a" / "m"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    os.symlink(path, tmp_path / "link")
    os.symlink("a", tmp_path / "dir")
    os.link(path, tmp_path / "hard", follow_symlinks=False)
    monkeypatch.chdir(tmp_path / "a")
    spelled = [path, "m", "./m", f"{tmp_path}//a/m", f"{tmp_path}/a/b/../m", "../a/m", tmp_path / "link", tmp_path / "dir" / "m", tmp_path / "hard"]
    assert len({changes.one_after_the_other({"attachment": {"qmp": str(one)}}) for one in spelled}) == 1
    for gone in ("n", f"{tmp_path}/a/b/../n"):  # nobody listens there yet
        assert changes.one_after_the_other({"attachment": {"qmp": gone}}) == frozenset([f"monitor {os.path.realpath('n')}"])
    assert changes.one_after_the_other({}) == changes.one_after_the_other({"attachment": None}) == frozenset()
    assert machine({"qmp": "m"}).attachment == Attachment(str(path)), "a record must name it for other tasks, too"
    assert machine({"qmp": "m", "agent": "n"}).agent == str(path.parent / "n")
    assert machine({"qmp": "m"}).agent is machine({"qmp": "m", "agent": None}).agent is machine(None).agent is None


@pytest.mark.parametrize("path", ["", "a\0b", "/a\nb", "/" + "x" * 107])
def test_what_is_no_path_of_a_socket_is_refused(path: str) -> None:
    with pytest.raises(InvalidParameter, match="attachment.qmp"):
        machine({"qmp": path})
    with pytest.raises(InvalidParameter, match="attachment.agent"):
        machine({"qmp": "m", "agent": path})
    assert changes.one_after_the_other({"attachment": {"qmp": path}}) is not None
