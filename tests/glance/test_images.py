# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A volume from an image of a real Glance, and an image of a snapshot, by playbooks with the token in a header."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest
import yaml

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


def test_a_snapshot_as_an_image(glance: Glance, tmp_path: Path, ansible_environment: dict, checkout: Path) -> None:
    """As the guide has it. Glance's own hash of what came is that of the task, and a volume from it is the same disk."""
    (tmp_path / "share").mkdir()
    prepared = [
        {"remotefs.storage.remotefs_volume": {"share": str(tmp_path / "share"), "name": "web01", "size": "64M", "format": "qcow2"}},
        {"ansible.builtin.command": f"qemu-io -f qcow2 -c 'write -q -P 7 3M 2M' -c 'write -q -P 9 60M 1M' {tmp_path}/share/web01"},
        {"remotefs.storage.remotefs_snapshot": {"share": str(tmp_path / "share"), "volume": "web01", "name": "to-keep"}},
    ]
    text = (checkout / "docs" / "images.md").read_text()
    (guide,) = [block for block in text.split("```yaml\n")[1:] if "/v2/images" in block]
    (play,) = yaml.safe_load(guide.partition("```")[0].replace("/srv/volumes", str(tmp_path / "share")).replace("hypervisor", "localhost"))
    play["tasks"] = [*prepared, *play["tasks"]]
    play["tasks"][-1]["register"] = "sent"
    told = {"ansible.builtin.copy": {"content": "{{ [record.json.id, sent.checksum] | to_json }}", "dest": f"{tmp_path}/told"}}
    (tmp_path / "book.json").write_text(json.dumps([{**play, "gather_facts": False, "tasks": [*play["tasks"], told]}]))
    words = ["ansible-playbook", "-vvv", "-e", json.dumps({"glance": glance.url, "token": glance.token}), str(tmp_path / "book.json")]
    done = subprocess.run(words, env=ansible_environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and glance.token not in done.stdout.partition("PLAYBOOK:")[2], done.stdout + done.stderr
    number, checksum = json.loads((tmp_path / "told").read_text())
    record = json.loads(glance.call("GET", f"/v2/images/{number}"))
    assert record["status"] == "active" and record["os_hash_algo"] == "sha512"
    data = glance.call("GET", f"/v2/images/{number}/file")
    assert hashlib.sha256(data).hexdigest() == checksum and hashlib.sha512(data).hexdigest() == record["os_hash_value"]
    (tmp_path / "came").write_bytes(data)
    compared = ["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", str(tmp_path / "came"), str(tmp_path / "share" / "web01")]
    assert "identical" in subprocess.run(compared, check=True, capture_output=True, text=True).stdout
    again = dict(list(play["tasks"][-1].items())[:2])
    again["remotefs.storage.remotefs_image"] = {**again["remotefs.storage.remotefs_image"], "dest": f"{glance.url}/v2/images/{number}/file"}
    # Glance closes the connection of whoever sends data of an image that has some, so that its 409 may be lost.
    for token, refusal in ((SECRET, "answers 401"), (glance.token, "(answers 409|as servers do that refuse)")):
        again["remotefs.storage.remotefs_image"]["headers"] = {"X-Auth-Token": token}
        (tmp_path / "book.json").write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [again]}]))
        refused = subprocess.run(
            ["ansible-playbook", "-vvv", str(tmp_path / "book.json")], env=ansible_environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert refused.returncode and re.search(refusal, refused.stdout) and SECRET not in refused.stdout, refused.stdout
