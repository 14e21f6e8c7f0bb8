# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume from an image of a real Glance: by a playbook, with the token in a header and the hash of the image's record as checksum."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest

from .server import Glance, running

SECRET = "a-token-of-somebody-else"


@pytest.fixture(scope="module")
def glance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glance]:
    if "GLANCE_VENV" not in os.environ:
        pytest.skip("GLANCE_VENV is not set: scripts/test glance makes it")
    with running(tmp_path_factory.mktemp("glance"), Path(os.environ["GLANCE_VENV"])) as found:
        yield found


@pytest.fixture(scope="module", params=["raw", "qcow2", "vmdk"])
def image(request: pytest.FixtureRequest, glance: Glance, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A disk with data at the beginning and near the end, and its record in Glance."""
    path = tmp_path_factory.mktemp("image") / f"disk.{request.param}"
    subprocess.run(["qemu-img", "create", "-q", "-f", request.param, str(path), "64M"], check=True)
    writes = [word for text in ("write -q -P 7 3M 2M", "write -q -P 9 60M 1M") for word in ("-c", text)]
    subprocess.run(["qemu-io", "-f", request.param, *writes, str(path)], check=True)
    return path, glance.upload(path, request.param)


def play(tmp_path: Path, environment: dict, source: dict) -> subprocess.CompletedProcess:
    task = {"remotefs.storage.remotefs_volume": {"share": str(tmp_path / "share"), "name": "v", "source": source}}
    (tmp_path / "share").mkdir(exist_ok=True)
    (tmp_path / "book.json").write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]))
    words = ["ansible-playbook", "-vvv", str(tmp_path / "book.json")]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_a_volume_from_an_image(glance: Glance, image: tuple[Path, dict], tmp_path: Path, ansible_environment: dict) -> None:
    path, record = image
    source: dict[str, Any] = {
        "image": f"{glance.url}/v2/images/{record['id']}/file",
        "headers": {"X-Auth-Token": glance.token},
        "checksum": f"{record['os_hash_algo']}:{record['os_hash_value']}",
    }
    refused = play(tmp_path, ansible_environment, {**source, "headers": {"X-Auth-Token": SECRET}})
    assert refused.returncode and "answers 401" in refused.stdout and SECRET not in refused.stdout, refused.stdout
    wrong = play(tmp_path, ansible_environment, {**source, "checksum": f"md5:{'0' * 32}"})
    assert wrong.returncode and "image_checksum" in wrong.stdout, wrong.stdout
    assert not (tmp_path / "share" / "v").exists()
    for changed in ("changed=1", "changed=0"):
        done = play(tmp_path, ansible_environment, source)
        assert done.returncode == 0 and changed in done.stdout and glance.token not in done.stdout + done.stderr, done.stdout
    compared = ["qemu-img", "compare", "-f", path.suffix[1:], "-F", "raw", str(path), str(tmp_path / "share" / "v")]
    assert "identical" in subprocess.run(compared, check=True, capture_output=True, text=True).stdout
