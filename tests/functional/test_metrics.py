# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures for Prometheus: their text by the rules of its format, their values beside what info tells, and shares and volumes that cannot be read."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from ansible_collections.remotefs.storage.plugins.module_utils.operations import leases, metrics
from ansible_collections.remotefs.storage.plugins.module_utils.plan.leases import Asked

from .test_clones import write
from .test_documents import blocks
from .test_examples import examples, play
from .test_refusals import MIB, Store
from .test_return_detail import check
from .test_share_contents import told

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDE, RULES = DOCS / "metrics.md", DOCS / "prometheus" / "remotefs.rules.yml"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
VALUE = r"[-+]?[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?"
LINE = re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{{({LABEL}(?:,{LABEL})*)\}})? ({VALUE})")


def parsed(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """The samples of a text: (family, values of labels) → value. Strict: a family has HELP, then TYPE, then all its samples, once."""
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    family, seen, expecting = "", set(), "HELP"
    assert text.endswith("\n") and "\n\n" not in text
    for line in text.splitlines():
        if line.startswith("# "):
            _hash, kind, name, rest = line.split(" ", 3)
            assert kind == expecting and rest
            if kind == "HELP":
                assert name not in seen
                family, expecting = name, "TYPE"
                seen.add(name)
            else:
                assert name == family and rest == "gauge"
                expecting = "HELP"
            continue
        match = LINE.fullmatch(line)
        assert match and match[1] == family, line
        labels = tuple(re.sub(r"\\(.)", lambda one: {"n": "\n"}.get(one[1], one[1]), value) for value in re.findall(LABEL, match[2] or ""))
        assert (family, labels) not in found, line
        found[family, labels] = float(line.rsplit(" ", 1)[1])
    if shutil.which("promtool"):  # test_prometheus_reads_them says where it is not
        subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=True)
    return found


def of(*stores: Store, volumes: bool = True, now: float | None = None) -> dict[tuple[str, tuple[str, ...]], float]:
    paths = [str(store.path) for store in stores]
    return parsed(metrics.text(metrics.of_shares(paths, "/nowhere", "/dev/null", 5, volumes, time.time() if now is None else now)))


def test_figures_are_those_of_info(layered: Store) -> None:
    layered.present("other", size=3 * MIB)
    (layered.path / "README").write_text("x")
    share, found, info = str(layered.path), of(layered), told(layered)
    for key, name in (("total", "size_bytes"), ("virtual", "virtual_bytes"), ("allocated", "allocated_bytes"), ("volumes", "volumes")):
        assert found["remotefs_share_" + name, (share,)] == info[key]
    assert found["remotefs_share_held_by_snapshots_bytes", (share,)] == info["held_by_snapshots"]
    assert found["remotefs_share_unknown", (share,)] == 1 and found["remotefs_share_up", (share,)] == 1
    assert found["remotefs_volume_chain_files", (share, "vol")] == 3 and found["remotefs_volume_snapshots", (share, "vol")] == 2
    assert found["remotefs_volume_size_bytes", (share, "other")] == 3 * MIB and found["remotefs_volume_pending", (share, "vol")] == 0
    assert abs(found["remotefs_volume_newest_snapshot_timestamp_seconds", (share, "vol")] - time.time()) < 60
    assert ("remotefs_volume_newest_snapshot_timestamp_seconds", (share, "other")) not in found
    assert not [name for name, _labels in of(layered, volumes=False) if name.startswith("remotefs_volume_")]


def test_growth_is_what_was_written_since_snapshots(store: Store) -> None:
    """A quarter of a MiB in an hour; older snapshots, and none, tell nothing."""
    store.present(size=MIB)
    share = str(store.path)
    assert ("remotefs_share_growth_bytes_per_second", (share,)) not in of(store)
    write(store, "vol", 1, "0 512k")
    store.snapshot("s1")
    write(store, "vol", 2, "0 256k")
    taken = of(store)["remotefs_volume_newest_snapshot_timestamp_seconds", (share, "vol")]
    written = store.info()["chain"][0]["allocated"]
    found = of(store, now=taken + 3600)
    assert written >= MIB // 4 and found["remotefs_share_growth_bytes_per_second", (share,)] == pytest.approx(written / 3600)
    full = found["remotefs_share_full_in_seconds", (share,)]
    assert full == pytest.approx(found["remotefs_share_free_bytes", (share,)] / (written / 3600), rel=0.01)
    assert ("remotefs_share_growth_bytes_per_second", (share,)) not in of(store, now=taken + 31 * 86400)


def test_what_cannot_be_read_alerts(layered: Store, tmp_path: Path) -> None:
    (layered.path / "vol.s1").unlink()
    (layered.path / ".remotefs" / "leases").mkdir(mode=0o700)
    (layered.path / ".remotefs" / "leases" / "ci.json").write_text("{torn")
    share, gone = str(layered.path), Store(tmp_path / "gone")
    found = of(layered, gone)
    assert found["remotefs_volume_readable", (share, "vol")] == 0 and found["remotefs_lease_readable", (share, "ci")] == 0
    assert ("remotefs_volume_size_bytes", (share, "vol")) not in found
    assert {key: value for key, value in found.items() if str(gone.path) in key[1]} == {("remotefs_share_up", (str(gone.path),)): 0}
    assert found["remotefs_share_up", (share,)] == 1


def test_a_share_that_fails_while_it_is_read_is_down(layered: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_share: object) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(leases, "read_all", fail)
    assert list(of(layered).values())[1:] == [0]


def test_leases(store: Store) -> None:
    leases.hold(leases.LeaseRequest(store.share, Asked("ci", 'job "7"\\x', 3600)), store.options())
    found = of(store)
    assert found["remotefs_lease_readable", (str(store.path), "ci")] == 1
    assert abs(found["remotefs_lease_expires_timestamp_seconds", (str(store.path), "ci", 'job "7"\\x')] - time.time() - 3600) < 60


def test_names_that_mean_something_to_the_format(tmp_path: Path) -> None:
    store = Store(tmp_path / 'a"b\\n{c="d"} 1 #é')
    store.path.mkdir()
    store.present("x-1.y", size=MIB)
    assert of(store)["remotefs_volume_size_bytes", (str(store.path), "x-1.y")] == MIB


def test_rules_are_about_figures_that_there_are(layered: Store) -> None:
    leases.hold(leases.LeaseRequest(layered.share, Asked("ci", "job", 3600)), layered.options())
    there = {name for name, _labels in of(layered, now=time.time() + 60)}
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    named = {name for rule in rules for name in re.findall(r"remotefs_[a-z_]+", rule["expr"])}
    assert named <= there and len({rule["alert"] for rule in rules}) == len(rules) > 10
    labels = {name for rule in rules for name in re.findall(r"\$labels\.([a-z]+)", rule["annotations"]["summary"])}
    assert labels <= {"instance", "share", "volume", "lease", "owner"}


def test_prometheus_reads_them(layered: Store) -> None:
    """Its own program reads the alert rules; and the figures of each test of this file, as :func:`parsed` lets it."""
    if not shutil.which("promtool"):
        pytest.skip("needs promtool, which Debian has in prometheus")
    subprocess.run(["promtool", "check", "rules", str(RULES)], check=True)
    text = metrics.text(metrics.of_shares([str(layered.path)], "/nowhere", "/dev/null", 5, True, 0))
    assert subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=False).returncode == 0
    spoiled = text.replace(" gauge\n", " gage\n", 1)
    assert subprocess.run(["promtool", "check", "metrics"], input=spoiled, text=True, check=False, capture_output=True).returncode != 0


@pytest.mark.slow
def test_in_a_playbook(layered: Store, tmp_path: Path, ansible_environment: dict) -> None:
    dest = tmp_path / "remotefs.prom"

    def write_them(**options: object) -> dict:
        return {"remotefs.storage.remotefs_metrics": {"share": ["SHARE", "/nowhere/x"], "dest": str(dest), **options}, "register": "done"}

    tasks = [
        {**write_them(), "check_mode": True, "diff": True},
        check("done is changed", "done.unreadable == ['/nowhere/x']", "'remotefs_volume_size_bytes' in done.diff.after"),
        {"ansible.builtin.stat": {"path": str(dest)}, "register": "file"},
        check("not file.stat.exists"),
        write_them(),
        check("done is changed", "done.samples > 20"),
        write_them(),
        check("done is not changed"),
        {"remotefs.storage.remotefs_snapshot": {"share": "SHARE", "volume": "vol", "name": "s3"}},
        {**write_them(), "diff": True},
        check("done is changed", "done.diff.before != done.diff.after"),
        {**write_them(dest="/nowhere/x.prom"), "ignore_errors": True},
        check("done is failed", "done.error_code is defined"),
    ]
    play(tasks, layered.path, tmp_path, ansible_environment)
    assert parsed(dest.read_text())["remotefs_volume_snapshots", (str(layered.path), "vol")] == 3
    assert dest.stat().st_mode & 0o777 == 0o644 and json.dumps(os.listdir(tmp_path)).count("prom") == 1


@pytest.mark.slow
def test_the_example_and_the_guide(layered: Store, tmp_path: Path, ansible_environment: dict) -> None:
    """Both write the same file, in the place of the textfile collector."""
    (guide,) = blocks(GUIDE.read_text())
    for tasks in (examples("remotefs_metrics"), guide[0]["tasks"]):
        text = json.dumps(tasks).replace("/var/lib/prometheus/node-exporter", str(tmp_path))
        play(json.loads(text), layered.path, tmp_path, ansible_environment)
        assert parsed((tmp_path / "remotefs.prom").read_text())["remotefs_volume_snapshots", (str(layered.path), "vol")] == 2
        (tmp_path / "remotefs.prom").unlink()


def test_the_guide_has_all_figures() -> None:
    """Each family has its name in a table, or the end of it behind one that begins alike."""
    page = GUIDE.read_text()
    for family in metrics.FAMILIES:
        assert family in page or f"`{family[family.index('_', len('remotefs_')):]}`" in page, family
