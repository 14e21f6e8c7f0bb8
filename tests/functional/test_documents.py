# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks of README.md and docs/attach.md run as they stand, on a directory; a machine starts with what they wrote."""
from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text()
SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")


def blocks(text: str) -> list:
    """The YAML of a page, block by block."""
    return [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]


def play(book: list, tmp_path: Path, environment: dict, *options: str) -> str:
    path = tmp_path / "book.yml"
    path.write_text(json.dumps(book))
    done = subprocess.run(["ansible-playbook", *options, str(path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def share(tmp_path: Path) -> Path:
    directory = tmp_path / "share"
    directory.mkdir()
    return directory


def readme_book(share: Path) -> list:
    """The first playbook of the README with the tasks of its second block, where a directory takes the share's place."""
    (book,), more = blocks(README)[:2]
    assert "remotefs.storage.remotefs_share" in book["tasks"][0]
    return [{**book, "hosts": "localhost", "gather_facts": False, "vars": {"vols": str(share)}, "tasks": book["tasks"] + more}]


def test_the_readme_begins_with_fifteen_lines() -> None:
    assert len(README.split("```yaml\n")[1].split("```")[0].splitlines()) <= 16


def test_the_playbook_of_the_readme(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """Twice: what is said to be created once is no change the second time."""
    (book,) = readme_book(share)
    first = [{**book, "tasks": book["tasks"][:4]}]
    assert "changed=0" not in play(first, tmp_path, ansible_environment)
    assert "changed=0" in play(first, tmp_path, ansible_environment)


@pytest.mark.slow
@pytest.mark.parametrize("there", [True, False], ids=["an-empty-share", "no-share-yet"])
def test_the_playbook_of_the_readme_is_foretold(there: bool, share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    """A first run under --check --diff tells what each task would do, and touches nothing.

    What it cannot know it takes for a change: whether a volume that is not there yet differs from the snapshot to revert to.
    """
    if not there:
        share.rmdir()
    book = readme_book(share)
    predicted = play(book, tmp_path, ansible_environment, "--check", "--diff")
    assert share.exists() == there and not (there and any(share.iterdir()))
    reverts = sum(task.get("remotefs.storage.remotefs_snapshot", {}).get("state") == "reverted" for task in book[0]["tasks"])
    expected, done = (int(re.search(r"changed=(\d+)", told).group(1)) for told in (predicted, play(book, tmp_path, ansible_environment)))
    assert done <= expected <= done + reverts, predicted


@pytest.mark.slow
def test_the_first_lines_without_a_server(tmp_path: Path, ansible_environment: dict) -> None:
    """The commands of the README as they stand, beside its first playbook: foretold, then done."""
    site = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / "site.yml").write_text(site)
    (commands,) = [block for block in re.findall(r"^```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL) if "ansible-playbook" in block]
    script = commands.replace("$ ", "").replace("/srv/vols", str(tmp_path / "vols"))
    for text in (script, script.replace(" --check --diff", "")):
        assert text.count("ansible-playbook -i hosts site.yml") == 1
        done = subprocess.run(["sh", "-euc", text], cwd=tmp_path, env=ansible_environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "failed=0" in done.stdout, done.stdout + done.stderr
        assert (tmp_path / "vols").exists() == (text != script)
    assert "changed=3" in done.stdout  # "Go back" right after its snapshot has nothing to discard


def attach_books(share: Path, tmp_path: Path) -> list:
    books = blocks((CHECKOUT / "docs" / "attach.md").read_text().replace("20G", "20M"))
    for (book,) in books:
        assert book["vars"] == {"vols": "/srv/volumes", "definitions": "/etc/machines"}
        book["vars"] = {"vols": str(share), "definitions": str(tmp_path)}
    return books


def active(share: Path, name: str) -> Path:
    """By the records on the share, without the collection."""
    info = share / f"{name}.info"
    return share / (json.loads(info.read_text())["active"] if info.exists() else name)


def checked_definition(path: Path) -> tuple[str, str]:
    """The disk's format and file in a libvirt domain, which libvirt's own schema accepts where this machine has it."""
    if SCHEMA.exists() and shutil.which("xmllint"):
        done = subprocess.run(["xmllint", "--noout", "--relaxng", str(SCHEMA), str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    disk = ElementTree.parse(path).find("devices/disk")
    return disk.find("driver").attrib["type"], disk.find("source").attrib["file"]


def shown_by_qemu(image: str) -> dict:
    done = subprocess.run(["qemu-img", "info", "--output=json", image], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_libvirt_domain_gets_the_active_image(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    define, _command, follow = attach_books(share, tmp_path)
    play(define, tmp_path, ansible_environment)
    assert checked_definition(tmp_path / "db01.xml") == ("raw", str(share / "db01"))
    play(follow, tmp_path, ansible_environment)
    form, path = checked_definition(tmp_path / "db01.xml")
    assert (form, Path(path)) == ("qcow2", active(share, "db01")) and Path(path).name == "db01.before-upgrade"
    assert shown_by_qemu(path)["virtual-size"] == 20 << 20
    assert "changed=0" in play(follow, tmp_path, ansible_environment)
    play(define, tmp_path, ansible_environment)  # a template that is run again says the same
    assert checked_definition(tmp_path / "db01.xml") == (form, path)


@pytest.mark.slow
def test_a_command_line_gets_the_active_image(tmp_path: Path, ansible_environment: dict) -> None:
    """Also on a share whose path has characters that mean something to QEMU, a shell or XML."""
    share = tmp_path / "it's <a> & b"
    share.mkdir()
    define, command, follow = attach_books(share, tmp_path)
    for book in (define, command, follow, command):
        play(book, tmp_path, ansible_environment)
        words = shlex.split((tmp_path / "db01.sh").read_text(), comments=True) if (tmp_path / "db01.sh").exists() else []
    assert checked_definition(tmp_path / "db01.xml") == ("qcow2", str(active(share, "db01")))
    disk = json.loads(words[words.index("-blockdev") + 1])
    assert disk["file"]["filename"] == str(active(share, "db01"))
    told = shown_by_qemu("json:" + json.dumps(disk))
    assert told["format"] == "qcow2" and told["virtual-size"] == 20 << 20


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86_64")
def test_a_machine_starts_with_that_command(share: Path, tmp_path: Path, ansible_environment: dict) -> None:
    _define, command, _follow = attach_books(share, tmp_path)
    play(command, tmp_path, ansible_environment)
    argv = [str(tmp_path / "db01.sh"), "-machine", "accel=tcg", "-S", "-display", "none", "-nodefaults", "-monitor", "stdio"]
    wrote = 'qemu-io -d /machine/peripheral-anon/device[0]/virtio-backend "write -P 7 1M 64k"\ninfo block\nquit\n'
    done = subprocess.run(argv, input=wrote, capture_output=True, text=True, timeout=120, env={**os.environ, "TERM": "dumb"}, check=False)
    assert done.returncode == 0 and "wrote 65536/65536" in done.stdout and "disk0" in done.stdout, done.stdout + done.stderr
    assert (share / "db01").read_bytes()[1 << 20 : (1 << 20) + 65536] == b"\7" * 65536
