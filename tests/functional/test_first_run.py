# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Check mode before anything is there: what an earlier task would make is assumed and told, and nothing is touched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ansible_collections.remotefs.storage.plugins.module_utils import errors, model
from ansible_collections.remotefs.storage.plugins.module_utils.operations import candidates, groups, snapshots, updating, volumes
from ansible_collections.remotefs.storage.plugins.module_utils.operations.options import Options, Task
from ansible_collections.remotefs.storage.plugins.module_utils.operations.transaction import Outcome
from ansible_collections.remotefs.storage.plugins.module_utils.plan import retention
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredSnapshot, DesiredVolume

from .test_examples import play
from .test_return_detail import check

MIB = 1 << 20
README = Path(__file__).resolve().parents[2] / "README.md"


class Shares:
    """A share that is not there yet, or that is there and empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        self.found = candidates.find_candidates([str(path)], "/var/lib/remotefs/mnt")

    def options(self, assume: bool = True) -> Options:
        return Options(check=assume, assume=assume, task=Task(warn=self.warnings.append))

    def present(self, options: Options, name: str, source: updating.SourceRequest | None = None, **desired: object) -> Outcome:
        return volumes.ensure_present(updating.VolumeRequest(self.found, DesiredVolume(name, **desired), source), options)

    def take(self, options: Options, volume: str, name: str, keep: retention.Policy | None = None) -> Outcome:
        return snapshots.take(snapshots.SnapshotRequest(self.found, volume, DesiredSnapshot(name), keep), options)


@pytest.fixture(params=["missing", "empty"])
def shares(tmp_path: Path, request: pytest.FixtureRequest) -> Shares:
    path = tmp_path / "share"
    if request.param == "empty":
        path.mkdir()
    return Shares(path)


def untouched(shares: Shares) -> bool:
    return not shares.path.exists() or not list(shares.path.iterdir())


def steps(outcome: Outcome) -> list[str]:
    return [action["step"] for action in outcome.actions]


def test_what_is_made_of_what_is_not_there(shares: Shares) -> None:
    """As each task of a playbook by itself predicts it: a world of its own, in which the tasks before it have done nothing."""
    golden = updating.SourceRequest("golden", "s", linked=True)
    clone = shares.present(shares.options(), "c", golden, labels={"a": "b"}, snapshot="fresh")
    assert steps(clone) == ["write_record", "create_clone", "create_overlay", "write_info"]
    assert clone.after["path"] == f"{shares.path}/c.fresh" and clone.after["size"] is None and clone.after["labels"] == {"a": "b"}
    assert clone.after["parent"] == {"volume": "golden", "snapshot": "s"} and clone.before is None
    full = shares.present(shares.options(), "f", updating.SourceRequest("golden"), size=MIB)
    assert steps(full) == ["write_record", "copy"] and (full.after["size"], full.after["path"]) == (MIB, f"{shares.path}/f")
    resting = shares.present(shares.options(), "l", updating.SourceRequest("golden", linked=True), flatten=True)
    assert steps(resting) == ["create_overlay", "write_info", "write_record", "create_clone", "pull", "write_record"]
    taken = shares.take(shares.options(), "v", "s1")
    assert steps(taken) == ["create_overlay", "write_info"] and taken.after["path"] == f"{shares.path}/v.s1"
    policy = retention.parse({"match": "*", "last": 1})
    judged = shares.take(shares.options(), "v", "s1", policy)
    assert judged.changed and [one["name"] for one in judged.retention] == ["s1"]
    kept = snapshots.retain(shares.found, "v", policy, shares.options())
    assert kept.changed and kept.retention == [] and kept.after["path"] == f"{shares.path}/v"
    back = snapshots.revert(shares.found, "v", "s1", False, shares.options())
    assert back.changed and steps(back) == ["replace_overlay"] and back.after["path"] == f"{shares.path}/v.s1"
    assert back.content[1] == "goes back to snapshot s1"
    group = groups.take_group(shares.found, ["a", "b"], DesiredSnapshot("g"), shares.options())
    assert [one.after["path"] for one in group] == [f"{shares.path}/a.g", f"{shares.path}/b.g"]
    for name in ("golden", "v", "a", "b"):
        assert any(name in text.split() and "does not exist yet" in text for text in shares.warnings), name
    assert untouched(shares)


def test_what_nobody_can_know_is_null(shares: Shares) -> None:
    """An earlier task may make the volume in either format, or as a linked clone."""
    taken, options = shares.take(shares.options(), "v", "s1"), shares.options()
    back = snapshots.revert(shares.found, "v", "s1", False, shares.options())
    kept = snapshots.retain(shares.found, "v", retention.parse({"match": "*", "last": 1}), shares.options())
    clone = shares.present(shares.options(), "c", updating.SourceRequest("golden", "s", linked=True))
    for known, outcome in (("qcow2", taken), ("qcow2", back), (None, kept), ("qcow2", clone)):
        after = outcome.after
        assert (after["format"], after["base_format"], after["size"]) == (known, None, None) and after["chain"][0]["format"] == known
        assert after["chain"][-1]["format"] is None and {image["size"] for image in after["chain"]} == {None}
        assert all(action.get("size") is None for action in outcome.actions)
    assert [image["format"] for image in taken.before["chain"]] == [None] and taken.before["format"] is None
    full = shares.present(shares.options(), "f", updating.SourceRequest("golden"))
    assert (full.after["format"], full.after["base_format"], full.after["size"]) == ("raw", "raw", None)  # what a full clone is made as is known
    shares.present(options, "q", size=MIB, format="qcow2")
    known = shares.take(options, "q", "s1").after
    assert (known["format"], known["base_format"], known["size"]) == ("qcow2", "qcow2", MIB)
    assert untouched(shares)


def test_what_goes_is_predicted_as_it_is(shares: Shares) -> None:
    assert not volumes.ensure_absent(shares.found, "v", False, shares.options()).changed
    assert not snapshots.delete(shares.found, "v", ["s"], shares.options()).changed
    assert not snapshots.retain(shares.found, "v", None, shares.options()).changed
    assert untouched(shares)


def test_items_of_one_task_build_on_each_other(shares: Shares) -> None:
    options = shares.options()
    assert steps(shares.present(options, "golden", size=8 * MIB)) == ["write_record", "create"]
    clone = shares.present(options, "c", updating.SourceRequest("golden", linked=True))
    assert clone.after["size"] == 8 * MIB and clone.after["parent"] == {"volume": "golden", "snapshot": "clone-c"}
    assert not [text for text in shares.warnings if "golden" in text.split()]
    grown = shares.present(options, "c", size=16 * MIB)
    assert steps(grown)[-1:] == ["grow"] and grown.after["size"] == 16 * MIB
    shares.take(options, "x", "s1")
    assert steps(shares.take(options, "x", "s2")) == ["create_overlay", "write_info"]
    assert not shares.take(options, "x", "s2").changed
    assert snapshots.delete(shares.found, "x", ["s1"], options).changed
    assert untouched(shares)


def test_wrong_is_wrong_all_the_same(shares: Shares) -> None:
    for kind, action in (
        (errors.InvalidParameter, lambda: shares.present(shares.options(), "v")),
        (errors.InvalidName, lambda: shares.present(shares.options(), "a b", size=MIB)),
        (errors.InvalidName, lambda: shares.present(shares.options(), "v", size=MIB, snapshot="info")),
        (errors.InvalidParameter, lambda: shares.present(shares.options(), "c", updating.SourceRequest("g", "s", linked=True), format="raw")),
        (errors.InvalidName, lambda: shares.take(shares.options(), "v", "active")),
        (errors.InvalidName, lambda: snapshots.revert(shares.found, "v", "a/b", False, shares.options())),
    ):
        with pytest.raises(kind):
            action()


def test_a_run_assumes_nothing(shares: Shares) -> None:
    real = shares.options(assume=False)
    missing = (errors.ShareNotMounted, errors.VolumeNotFound)
    for action in (
        lambda: shares.take(real, "v", "s"),
        lambda: shares.present(real, "c", updating.SourceRequest("golden"), size=MIB),
        lambda: snapshots.revert(shares.found, "v", "s", False, real),
        lambda: snapshots.delete(shares.found, "v", ["s"], real),
        lambda: groups.take_group(shares.found, ["a"], DesiredSnapshot("g"), real),
    ):
        with pytest.raises(missing):
            action()
    assert untouched(shares)


def test_a_server_that_does_not_answer_is_no_share_to_come() -> None:
    """Only what is not there yet is excused: a run would fail on this one."""
    share = model.Share("nas1:/vols", "/m", "nfs")
    ill, missing = errors.ShareNotMounted("share b", "it does not answer", "wait"), errors.ShareNotMounted("share a", "not mounted", "mount it")
    found = candidates.Candidates((), (missing, ill), (share,), (missing,))
    with pytest.raises(errors.ShareNotMounted, match="does not answer"):
        volumes.ensure_present(updating.VolumeRequest(found, DesiredVolume("v", size=MIB)), Options(check=True, assume=True))


def test_a_snapshot_that_is_not_there_yet(tmp_path: Path) -> None:
    """The volumes are there since long, and the playbook now takes a snapshot and goes back to it."""
    shares = Shares(tmp_path)
    shares.present(shares.options(assume=False), "v", size=MIB)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    back = snapshots.revert(shares.found, "v", "s", False, shares.options())
    assert back.changed and back.after["path"] == f"{tmp_path}/v.s" and back.after["size"] == MIB
    clone = shares.present(shares.options(), "c", updating.SourceRequest("v", "s", linked=True))
    assert clone.after["size"] == MIB and clone.after["parent"] == {"volume": "v", "snapshot": "s"}
    assert all("snapshot s of volume v does not exist yet" in text for text in shares.warnings) and len(shares.warnings) == 2
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))


def readme_tasks(share: str) -> list[dict]:
    """All tasks of the README's playbooks, with their share replaced."""
    blocks = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.S)
    first = yaml.safe_load(blocks[0])[0]["tasks"]
    return yaml.safe_load(yaml.safe_dump(first + yaml.safe_load(blocks[1])).replace("{{ vols }}", share))


@pytest.mark.slow
@pytest.mark.parametrize("state", ["missing", "empty"])
def test_the_readme_goes_through(state: str, tmp_path: Path, ansible_environment: dict) -> None:
    share = tmp_path / "vols"
    if state == "empty":
        share.mkdir()
    every = readme_tasks(str(share))
    assert len(every) > 6
    where = {"share": str(share)}
    info = [
        {"remotefs.storage.remotefs_volume_info": where, "register": "read"},
        {"remotefs.storage.remotefs_snapshot_info": where, "register": "points"},
        check("read.volumes == [] and points.snapshots == [] and points.volumes == []"),
        check("(read.warnings | default([]) | length) == " + ("1" if state == "missing" else "0")),
    ]
    recap = play(every + info, share, tmp_path, ansible_environment, "--check", "--diff")
    assert recap["failed"] == 0 and recap["ok"] >= len(every) + len(info)
    assert not share.exists() or not list(share.iterdir())
