# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin as users meet it: ansible-inventory on environments of real shares, some of them hostile."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from .test_ci_environment import Pipeline, pipeline
from .test_leases import hold, let_pass, make
from .test_refusals import MIB, Store, store

__all__ = ["pipeline", "store"]  # fixtures

PLUGIN = Path(__file__).resolve().parents[2] / "plugins" / "inventory" / "environments.py"
NAME = "remotefs.storage.environments"


class Inventory:
    """Runs ansible-inventory on one source. ``warned`` is what the last run said beside its result, without spaces and ends of lines."""

    def __init__(self, share: Path, place: Path, environment: dict) -> None:
        self.share, self.place, self.environment = share, place, environment
        self.source = place / "ci.remotefs.yml"
        self.warned = ""

    def run(self, *words: str, program: str = "ansible-inventory", fails: str = "", text: str = "", **options: Any) -> str:
        self.source.write_text(text or json.dumps({"plugin": NAME, "share": str(self.share), **options}))
        given = words if "-i" in words else ("-i", str(self.source), *words)
        environment = {**self.environment, "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true"}
        done = subprocess.run([program, *given], env=environment, cwd=self.place, capture_output=True, text=True, check=False)
        self.warned = "".join(done.stderr.split())
        assert (done.returncode != 0) == bool(fails) and self.told(fails), done.stdout + done.stderr
        assert "Traceback" not in self.warned, done.stderr
        return done.stdout

    def told(self, words: str) -> int:
        """How often the last run said this."""
        return self.warned.count("".join(words.split()))

    def list(self, *words: str, **options: Any) -> dict:
        return plain(json.loads(self.run("--list", *words, **options)))

    def hosts(self, *words: str, **options: Any) -> dict:
        return self.list(*words, **options)["_meta"]["hostvars"]


def plain(told: Any) -> Any:
    """Without the mark by which Ansible shows that a text is no template."""
    if isinstance(told, list):
        return [plain(one) for one in told]
    if not isinstance(told, dict):
        return told
    return told["__ansible_unsafe"] if "__ansible_unsafe" in told else {key: plain(value) for key, value in told.items()}


@pytest.fixture
def inventory(store: Store, tmp_path: Path, ansible_environment: dict) -> Inventory:
    return Inventory(store.path, tmp_path, ansible_environment)


def worker(store: Store, lease: Any, name: str, index: object = 0, **labels: str) -> None:
    make(store, lease, name, labels={"remotefs_worker": str(index), **labels})


def environment(store: Store, name: str = "ci", workers: int = 1, owner: str = "job-1", ttl: int | None = 3600, **labels: str) -> Any:
    names = [f"{name}-{number:02}" for number in range(workers)]
    lease = hold(store, owner, name, ttl, volumes=(*names, f"{name}-extra"), uses=("golden",)).after
    for number, one in enumerate(names):
        worker(store, lease, one, number, **labels)
    return lease


def edit(path: Path, **changes: Any) -> None:
    """What somebody else who can write to the share does to a record or lease."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.slow
def test_environments_of_the_role(store: Store, pipeline: Pipeline, inventory: Inventory) -> None:
    """Each worker with all that is known of it, in its groups; what only has such a name is none; nothing is written to the share."""
    pipeline.variables.update(disks=[{"suffix": "data", "size": "1M"}], labels={"role": "web server", "nightly": ""})
    pipeline.play("present")
    pipeline.play("present", name="other", owner="job-2", workers=["a"], method="full", labels=None, size="4M")
    store.present("ci-99", size=MIB, labels={"remotefs_worker": "99"})  # no lease lists it
    before = store.state()
    found = inventory.list()
    assert store.state() == before and inventory.warned == ""
    hosts = found["_meta"]["hostvars"]
    assert sorted(hosts) == ["ci-00", "ci-01", "other-a"]
    lease = {"name": "ci", "owner": "job-1", "expires": hosts["ci-00"]["remotefs_lease"]["expires"], "expired": False}
    assert lease["expires"].startswith("20") and hosts["ci-01"] == {
        "remotefs_name": "ci-01",
        "remotefs_environment": "ci",
        "remotefs_worker": 1,
        "remotefs_share": str(store.path),
        "remotefs_path": str(store.path / "ci-01.pristine"),
        "remotefs_golden": {"volume": "golden", "snapshot": "ready"},
        "remotefs_labels": {"role": "web server", "nightly": ""},
        "remotefs_lease": lease,
    }
    assert hosts["other-a"]["remotefs_golden"] == {"volume": "golden", "snapshot": None}
    groups = {name: group.get("hosts", []) for name, group in found.items() if name not in ("_meta", "all")}
    assert groups == {
        "environment_ci": ["ci-00", "ci-01"],
        "environment_other": ["other-a"],
        "golden_golden": ["ci-00", "ci-01", "other-a"],
        "label_role_web_server": ["ci-00", "ci-01"],
        "label_nightly": ["ci-00", "ci-01"],
    }
    graph = inventory.run("--graph")
    assert "@environment_other: | |--other-a" in " ".join(graph.split())
    assert sorted(inventory.hosts(environments=["oth*", "nothing"])) == ["other-a"]
    store.snapshot("of-the-test", "ci-01")
    assert inventory.hosts()["ci-01"]["remotefs_path"] == str(store.path / "ci-01.of-the-test")
    pipeline.play("absent")
    assert sorted(inventory.hosts()) == ["other-a"]


def test_addresses(store: Store, inventory: Inventory) -> None:
    """Only what is an address and a port is one."""
    good = {"192.0.2.7:22": ("192.0.2.7", 22), "[2001:db8::7]:2222": ("2001:db8::7", 2222), "vm-7.example.org:65535": ("vm-7.example.org", 65535)}
    bad = ["-oProxyCommand=touch${IFS}X:22", "{{ lookup('pipe','touch X') }}:22", "a b:22", "root@h:22", "h:0", "h:65536", "h", "h:22\n"]
    names = [f"ci-{number:02}" for number in range(len(good) + len(bad))]
    lease = hold(store, volumes=tuple(names)).after
    for number, (name, address) in enumerate(zip(names, [*good, *bad])):
        worker(store, lease, name, number, remotefs_address=address)
    hosts = inventory.hosts()
    told = [(hosts[name].get("ansible_host"), hosts[name].get("ansible_port")) for name in names]
    assert told == [*good.values(), *[(None, None)] * len(bad)]
    assert inventory.told("is no HOST:PORT") == len(bad)


def test_leases_that_have_ended(store: Store, inventory: Inventory) -> None:
    environment(store, "old")
    environment(store, "young")
    environment(store, "endless", ttl=None)
    environment(store, "collected")
    let_pass(store, 3700, "old")
    edit(store.path / ".remotefs" / "leases" / "collected.json", collector="a collector on h")
    assert sorted(inventory.hosts()) == ["endless-00", "young-00"]
    hosts = inventory.hosts(expired=True, groups={"over": "remotefs_lease.expired"})
    assert {name: told["remotefs_lease"]["expired"] for name, told in hosts.items()} == {
        "old-00": True, "young-00": False, "endless-00": False, "collected-00": True
    }
    assert hosts["endless-00"]["remotefs_lease"]["expires"] is None


def test_volumes_of_others(store: Store, inventory: Inventory) -> None:
    """What a lease lists and was not made under it is no worker, nor is what took a worker's place, nor a disk without the label."""
    first = hold(store, volumes=("ci-00", "ci-01", "ci-02", "ci-03", "ci-extra")).after
    for number in range(2):
        worker(store, first, f"ci-0{number}", number)
    store.present("ci-extra", size=MIB, labels={"remotefs_worker": "7"})  # listed, and made without the lease
    store.absent("ci-01", cascade=True)
    store.present("ci-01", size=MIB, labels={"remotefs_worker": "1"})
    for number, image_format in ((2, "raw"), (3, "qcow2")):  # another file, beside the record of the worker
        make(store, first, f"ci-0{number}", snapshot=None, format=image_format, labels={"remotefs_worker": str(number)})
        subprocess.run(["qemu-img", "create", "-q", "-f", image_format, str(store.path / "new"), str(MIB)], check=True)
        os.rename(store.path / "new", store.path / f"ci-0{number}")
    other = hold(store, "job-2", "other", volumes=("other-00", "ci-00")).after  # lists what is not its own
    make(store, other, "other-00")  # no label
    assert first.id != other.id and list(inventory.hosts()) == ["ci-00"]
    assert inventory.hosts()["ci-00"]["remotefs_lease"]["owner"] == "job-1"


def test_hostile_values(store: Store, inventory: Inventory) -> None:
    """Nothing from the share is a template, wherever it is used; texts that nobody can write do no harm."""
    attack = "{{ lookup('pipe', 'touch " + str(inventory.place / "X") + "') }}"
    lease = environment(store, owner=attack, evil=attack, remotefs_address=attack)
    worker(store, lease, "ci-extra", attack)
    record = store.path / ".remotefs" / "volumes" / "ci-00.json"
    labels = json.loads(record.read_text())["labels"]
    edit(record, labels={**labels, attack: "\x1b[2J\n\ud800", "half": "\udfff" * 2})
    options = {
        "compose": {"copied": "remotefs_labels.evil", "longer": "'x' ~ remotefs_labels.evil"},
        "keyed_groups": [{"key": "remotefs_labels", "prefix": "all_labels"}, {"key": "remotefs_lease.owner", "prefix": "owner"}],
        "groups": {"evil": "remotefs_labels.evil is defined"},
        "strict": True,
    }
    marked = json.loads(inventory.run("--list", **options))
    assert marked["_meta"]["hostvars"]["ci-00"]["remotefs_labels"]["evil"] == {"__ansible_unsafe": attack}
    found = plain(marked)
    told = found["_meta"]["hostvars"]["ci-00"]
    assert (told["copied"], told["longer"], told["remotefs_lease"]["owner"]) == (attack, f"x{attack}", attack)
    assert told["remotefs_labels"]["evil"] == attack and found["evil"]["hosts"] == ["ci-00"] and "ansible_host" not in told
    assert list(found["_meta"]["hostvars"]) == ["ci-00"] and inventory.told("its label remotefs_worker is no number")
    assert all(name.replace("_", "a").isalnum() for name in found)
    here = {"ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    book = [{"hosts": "all", "gather_facts": False, "connection": "local", "vars": here, "tasks": [
        {"ansible.builtin.debug": {"msg": "{{ remotefs_labels.evil }}{{ copied }}{{ remotefs_labels }}{{ remotefs_lease }}{{ longer }}"}},
        {"ansible.builtin.command": {"argv": ["printf", "%s", "{{ remotefs_labels.evil }}"]}, "register": "said"},
        {"ansible.builtin.assert": {"that": "'touch' in said.stdout"}},
    ]}]
    (inventory.place / "book.yml").write_text(json.dumps(book))
    argv = ["ansible-playbook", "-i", str(inventory.source), str(inventory.place / "book.yml")]
    done = subprocess.run(argv, env=inventory.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "ok=3" in done.stdout, done.stdout + done.stderr
    inventory.run("--graph", "--vars", **options)
    inventory.run("--list", "--yaml", **options)
    inventory.hosts(hostname="remotefs_labels.evil")
    assert inventory.told("cannot be the name of a host")
    assert not (inventory.place / "X").exists()


@pytest.mark.parametrize("name", ["all", "ungrouped", "localhost", "environment_all", "golden_golden", "mine", "db", "web"])
def test_names_that_belong_to_others(name: str, store: Store, inventory: Inventory) -> None:
    """A worker with the name of a group would give its variables to all hosts of it; with that of a host, to this one."""
    (inventory.place / "static.yml").write_text("web: {hosts: {db: {ansible_host: 192.0.2.1}}}\n")
    lease = hold(store, name="all", volumes=(name, "all-01"), uses=("golden",)).after
    worker(store, lease, name, 0, remotefs_address="192.0.2.66:22")
    worker(store, lease, "all-01", 1, remotefs_address="192.0.2.67:22")
    sources = ("-i", str(inventory.place / "static.yml"), "-i", str(inventory.source))
    options: dict = {"groups": {"mine": "true"}, "compose": {"ansible_user": "'u'"}}
    found = inventory.list(*sources, **options)
    assert inventory.told("It is no host.") and sorted(found["_meta"]["hostvars"]) == ["all-01", "db"]
    assert found["_meta"]["hostvars"]["db"] == {"ansible_host": "192.0.2.1"} and found["mine"]["hosts"] == ["all-01"]
    inventory.run(*sources, "--list", fails=f"worker {name} on", strict=True, **options)


def test_the_same_environment_on_two_shares(store: Store, tmp_path: Path, inventory: Inventory) -> None:
    """They are never one host: the share that is named first has the name, or each has a name of its own, or nobody goes on."""
    (tmp_path / "more").mkdir()
    other = Store(tmp_path / "more")
    environment(store, workers=2)
    environment(other, owner="job-2")
    shares = [str(other.path), str(store.path)]
    hosts = inventory.hosts(share=shares)
    assert {name: told["remotefs_share"] for name, told in hosts.items()} == {"ci-00": shares[0], "ci-01": shares[1]}
    assert inventory.told(f"the name ci-00 is that of a worker on {shares[0]} already") == 1
    inventory.run("--list", share=shares, strict=True, fails="the name ci-00 is that of a worker")
    hosts = inventory.hosts(share=shares, strict=True, hostname="remotefs_lease.owner ~ '.' ~ remotefs_name")
    assert sorted(hosts) == ["job-1.ci-00", "job-1.ci-01", "job-2.ci-00"] and hosts["job-2.ci-00"]["remotefs_share"] == shares[0]
    assert not inventory.hosts(hostname="nothing.here") and inventory.told("option hostname gives it no name")
    inventory.run("--list", hostname="nothing.here", strict=True, fails="option hostname gives it no name")


def test_what_is_damaged(store: Store, inventory: Inventory) -> None:
    """Of each damaged thing a warning tells, with its name; the others are hosts."""
    for name in ("bad", "good", "newer", "half"):
        environment(store, name, workers=2)
    leases, volumes = (store.path / ".remotefs" / folder for folder in ("leases", "volumes"))
    (leases / "bad.json").write_text('{"version": ')
    edit(leases / "newer.json", version=99)
    (leases / "link.json").symlink_to("/etc/passwd")
    (leases / "directory.json").mkdir()
    os.mkfifo(leases / "fifo.json")
    edit(volumes / "half-00.json", version=99)
    (volumes / "good-01.json").write_text("no record")
    assert sorted(inventory.hosts()) == ["good-00", "half-01"]
    for words in ("bad.json: it is damaged", "newer.json", "link.json", "directory.json", "fifo.json", "half-00.json", "good-01.json"):
        assert inventory.told(words), inventory.warned
    assert inventory.told("It gives no host.") == 7


def test_more_than_anybody_reads(store: Store, inventory: Inventory) -> None:
    """Very many warnings, labels and names do not keep anybody."""
    environment(store)
    record = store.path / ".remotefs" / "volumes" / "ci-00.json"
    edit(record, labels={**json.loads(record.read_text())["labels"], **{f"k{number}": "v" for number in range(40_000)}})
    lease = {**json.loads((store.path / ".remotefs" / "leases" / "ci.json").read_text()), "volumes": [f"no-{number}" for number in range(16_384)]}
    for number in range(20):
        (store.path / ".remotefs" / "leases" / f"long-{number}.json").write_text(json.dumps({**lease, "name": f"long-{number}"}))
    for number in range(50):
        (store.path / ".remotefs" / "leases" / f"bad-{number}.json").write_text('{"acquired": "' + "x" * 5000 + '"}')
    began = time.monotonic()
    found = inventory.list()
    assert list(found["_meta"]["hostvars"]) == ["ci-00"] and sorted(found) == ["_meta", "all", "environment_ci", "golden_golden"]
    assert time.monotonic() - began < 60 and inventory.told("it has more than 100 labels") + inventory.told("It gives no host.") == 20
    assert inventory.told("31 more warnings are not shown") and len(inventory.warned) < 40_000


@pytest.mark.parametrize(
    "options, words",
    [
        ({"share": "/nowhere/at/all"}, "the directory does not exist; create it with remotefs_share"),
        ({"share": "nas1:/vols"}, "mount it with remotefs_share"),
        ({"share": "volumes"}, "share 'volumes': it is neither"),
        ({"share": []}, "option share names no share"),
        ({"share": 7}, "it is not a text"),
        ({"share": None}, "share"),
    ],
)
def test_shares_that_cannot_be_read(options: dict, words: str, inventory: Inventory) -> None:
    inventory.run("--list", fails=words, **options)


def test_the_cache(store: Store, inventory: Inventory) -> None:
    """With it, a second run reads nothing: the share need not even be there. What has ended since is no host all the same."""
    environment(store, remotefs_address="192.0.2.7:22")
    environment(store, "short", ttl=3600)
    cached = {"cache": True, "cache_plugin": "ansible.builtin.jsonfile", "cache_connection": str(inventory.place / "kept")}
    first = inventory.list(**cached)
    assert sorted(first["_meta"]["hostvars"]) == ["ci-00", "short-00"]
    away = store.path.with_name("away")
    shutil.move(store.path, away)
    assert inventory.list(**cached) == first
    assert sorted(inventory.list(**cached, keyed_groups=[{"key": "remotefs_name", "prefix": "n"}]))[-2:] == ["n_ci_00", "n_short_00"]
    (inventory.place / "book.yml").write_text('[{"hosts": "all"}]')
    inventory.run("--list-hosts", "--flush-cache", "book.yml", program="ansible-playbook", fails="the directory does not exist", **cached)
    inventory.run("--list", fails="the directory does not exist")  # without the cache
    shutil.move(away, store.path)
    assert inventory.list(**cached) == first
    (kept,) = (inventory.place / "kept").iterdir()
    text = kept.read_text()
    ends = list(re.finditer(r'(?<=ends": |nds\\": )[0-9.]+', text))  # newer Ansible keeps JSON in a text of JSON
    assert text.index("ci-00.pristine") < text.index("short-00.pristine")
    assert len(ends) == 2
    kept.write_text(text[: ends[1].start()] + "1" + text[ends[1].end() :])
    assert sorted(inventory.hosts(**cached)) == ["ci-00"]
    (inventory.place / "empty").mkdir()
    assert inventory.hosts(**{**cached, "share": str(inventory.place / "empty")}) == {}  # what is kept of another share is not of this one


def test_names_of_sources(store: Store, inventory: Inventory) -> None:
    """Of other names the plugin knows nothing."""
    environment(store)
    inventory.run("--list")
    for name, is_one in (("remotefs.yaml", True), ("a.remotefs.yml", True), ("hosts.yml", False), ("remotefs.json", False)):
        source = inventory.place / name
        source.write_text(inventory.source.read_text())
        done = subprocess.run(["ansible-inventory", "-i", str(source), "--list"], env=inventory.environment, capture_output=True, text=True, check=False)
        assert ("ci-00" in done.stdout) == is_one, done.stdout + done.stderr


def examples() -> list[str]:
    for node in ast.parse(PLUGIN.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "EXAMPLES":
            return ast.literal_eval(node.value).split("\n---\n")
    raise AssertionError("no EXAMPLES")


@pytest.mark.parametrize("number", range(len(examples())))
def test_examples(number: int, store: Store, tmp_path: Path, inventory: Inventory) -> None:
    (tmp_path / "more").mkdir()
    environment(store, "ci-main", owner="job 1", role="web", remotefs_address="192.0.2.7:22")
    environment(store, "test")
    environment(Store(tmp_path / "more"), "ci-main")
    text = examples()[number]
    assert yaml.safe_load(text)["plugin"] == NAME
    for word, other in {"/srv/volumes": store.path, "/srv/more": tmp_path / "more", "/tmp/inventory-cache": tmp_path / "kept"}.items():
        text = text.replace(word, str(other))
    found = plain(json.loads(inventory.run("--list", text=text)))
    assert inventory.warned == ""
    expected = [["ci-main-00", "test-00"], ["ci-main-00"], ["more.ci-main-00", "share.ci-main-00", "share.test-00"], ["ci-main-00", "test-00"]]
    hosts = found["_meta"]["hostvars"]
    assert sorted(hosts) == expected[number]
    if number == 1:
        assert found["owner_job_1"]["hosts"] == found["role_web"]["hosts"] == found["reachable"]["hosts"] == ["ci-main-00"]
        assert hosts["ci-main-00"]["ansible_user"] == "root" and hosts["ci-main-00"]["disk"] == hosts["ci-main-00"]["remotefs_path"]
