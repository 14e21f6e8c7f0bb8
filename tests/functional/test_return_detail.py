# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``return_detail: false``: what a task about many objects returns stays short, and still tells what happened to each."""

from __future__ import annotations

from pathlib import Path

import pytest

from .test_examples import play

COUNT = 120
SHORT = ["allocated", "format", "name", "path", "share", "size"]


def of_volumes(**options: object) -> dict:
    volumes = [{"name": f"v{number}"} for number in range(COUNT)]
    return {"remotefs.storage.remotefs_volume": {"share": "SHARE", "size": "1M", "volumes": volumes, **options}, "register": "found"}


def of_snapshots(**options: object) -> dict:
    snapshots = [{"volume": f"v{number}", "name": "one"} for number in range(COUNT)]
    return {"remotefs.storage.remotefs_snapshot": {"share": "SHARE", "snapshots": snapshots, **options}, "register": "found"}


def check(*that: str) -> dict:
    return {"ansible.builtin.assert": {"that": list(that)}}


@pytest.mark.slow
def test_results_stay_short(tmp_path: Path, ansible_environment: dict) -> None:
    share = tmp_path / "share"
    share.mkdir()
    kept = f"found.volumes | map('dict2items') | map('map', attribute='key') | map('sort') | unique | list == [{SHORT}]"
    every = [f"found.results | length == {COUNT}", f"found.results | selectattr('changed') | length == {COUNT}"]
    most = COUNT * (210 + 3 * len(str(share)))  # each names its share, in paths
    short = [*every, "found.results | selectattr('actions', 'defined') | length == 0", f"(found | to_json | length) < {most}"]
    tasks = [
        of_volumes(return_detail=False),
        check(*short, kept, f"found.volumes | length == {COUNT}"),
        of_snapshots(return_detail=False),
        check(*short, kept, "found.results[7].name == 'one' and not found.results[7].failed"),
        of_snapshots(state="absent"),
        check(*every, "found.results[0].actions | length > 0", "found.volumes[0].chain | length == 1", "'volume' in found.results[0]"),
        {**of_volumes(size="512K", return_detail=False), "ignore_errors": True},
        check("found is failed", "found.results[3].error_code == 'would_shrink'"),
        of_volumes(state="absent", return_detail=False),
        check(*short, "found.volumes == []"),
    ]
    recap = play(tasks, share, tmp_path, ansible_environment)
    assert recap["ok"] == len(tasks) and list(share.glob("v*")) == []
