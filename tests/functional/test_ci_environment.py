# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role ci_environment as pipelines meet it: environments made, reset and gone, and what a killed one leaves."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .test_clones import content, opened, write
from .test_documents import play
from .test_examples import replaced
from .test_leases import let_pass
from .test_refusals import MIB, Store, store

__all__ = ["store"]  # a fixture

ROLE = Path(__file__).resolve().parents[2] / "roles" / "ci_environment"

pytestmark = pytest.mark.slow


class Pipeline:
    """Plays the role on a share. Results are what it returns."""

    def __init__(self, store: Store, tmp_path: Path, environment: dict) -> None:
        self._share, self._place, self._environment = store.path, tmp_path, environment
        self.variables: dict[str, Any] = {"workers": 2, "golden": {"volume": "golden", "snapshot": "ready"}, "owner": "job-1", "name": "ci"}

    def play(self, *states: str, check: bool = False, fails: str = "", **variables: Any) -> list[dict]:
        given = {f"ci_environment_{key}": value for key, value in {"share": str(self._share), **self.variables, **variables}.items() if value is not None}
        results, tasks = [self._place / f"result-{number}.json" for number in range(len(states))], []
        for state, result in zip(states, results):
            result.unlink(missing_ok=True)
            role = {"ansible.builtin.include_role": {"name": "remotefs.storage.ci_environment"}, "vars": {**given, "ci_environment_state": state}}
            told = {"content": "{{ ci_environment_result | to_json }}", "dest": str(result), "mode": "0600"}
            tasks += [role, {"ansible.builtin.copy": told, "check_mode": False, "changed_when": False}]
        book = [{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]
        path = self._place / "pipeline.yml"
        path.write_text(json.dumps(book))
        argv = ["ansible-playbook", *(["--check"] if check else []), str(path)]
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, check=False)
        text = " ".join((done.stdout + done.stderr).split())
        assert (done.returncode != 0) == bool(fails) and fails in text, done.stdout + done.stderr
        return [json.loads(result.read_text()) for result in results if result.exists()]


@pytest.fixture
def pipeline(store: Store, tmp_path: Path, ansible_environment: dict) -> Pipeline:
    store.present("golden", size=2 * MIB)
    write(store, "golden", 7)
    store.snapshot("ready", "golden")
    write(store, "golden", 8)  # the present is not what workers are made from
    return Pipeline(store, tmp_path, ansible_environment)


def volumes(store: Store) -> list[str]:
    return sorted(path.name for path in store.path.iterdir() if "." not in path.name)


def test_an_environment_from_its_beginning_to_its_end(store: Store, pipeline: Pipeline) -> None:
    """Made, made again, dirtied, reset and removed; content by hash, the paths stay, and volumes with such names are nobody's business."""
    for name in ("ci-database", "ci-10", "ci"):
        store.present(name, size=MIB)
        write(store, name, 3)
    strangers = {name: content(store, name) for name in ("ci-database", "ci-10", "ci")}
    pipeline.variables["disks"] = [{"suffix": "data", "size": "1M"}]
    (foretold,) = pipeline.play("present", check=True)
    assert foretold["changed"] and "ci-00" not in volumes(store)
    made, again = pipeline.play("present", "present")
    assert (made["changed"], again["changed"]) == (True, False)
    assert again["lease"]["renewed"] and again["lease"]["id"] == made["lease"]["id"] and made["lease"]["uses"] == ["golden"]
    assert [worker["name"] for worker in made["workers"]] == ["ci-00", "ci-01"]
    assert [[disk["name"] for disk in worker["disks"]] for worker in made["workers"]] == [["ci-00", "ci-00-data"], ["ci-01", "ci-01-data"]]
    assert again["workers"] == made["workers"] and all(os.path.exists(disk["path"]) for worker in made["workers"] for disk in worker["disks"])
    assert made["golden"] == {"volume": "golden", "snapshot": "ready"} and made["seconds"] > 0
    clean = {name: content(store, name) for name in ("ci-00", "ci-01", "ci-00-data", "ci-01-data")}
    assert clean["ci-00"] == bytes([7]) * 65536 + bytes(2 * MIB - 65536) and clean["ci-00-data"] == bytes(MIB)
    for number, name in enumerate(clean):
        write(store, name, 20 + number, "64k 128k")
    store.snapshot("of-the-test", "ci-00")
    write(store, "ci-00", 30)
    reset, still = pipeline.play("reset", "reset")
    assert (reset["changed"], still["changed"], reset["skipped"]) == (True, False, [])
    assert {name: content(store, name) for name in clean} == clean
    paths = [[[disk["path"] for disk in worker["disks"]] for worker in told["workers"]] for told in (made, still)]
    assert paths[1][1] == paths[0][1] and paths[1][0] == [f"{store.path}/ci-00.of-the-test", paths[0][0][1]]  # what it was before the reset
    gone, nothing = pipeline.play("absent", "absent")
    assert (gone["changed"], nothing["changed"]) == (True, False)
    assert volumes(store) == ["ci", "ci-10", "ci-database", "golden"]
    assert {name: content(store, name) for name in strangers} == strangers
    assert not list((store.path / ".remotefs" / "leases").iterdir())


@pytest.mark.parametrize("is_there", [True, False], ids=["share", "no share"])
def test_a_whole_play_before_anything_exists(store: Store, tmp_path: Path, ansible_environment: dict, is_there: bool) -> None:
    """Check mode names what it assumes, and changes nothing."""
    share = store.path if is_there else tmp_path / "not-yet"
    pipeline = Pipeline(Store(share), tmp_path, ansible_environment)
    pipeline.variables.update(seed={"user_data": {"users": []}}, disks=[{"suffix": "data", "size": "1M"}])
    told = pipeline.play("present", "reset", "absent", "collected", check=True)
    assert [one["changed"] for one in told] == [True, True, False, False], "nothing is there that could go"
    assert told[0]["lease"]["id"] is None and [worker["name"] for worker in told[1]["workers"]] == ["ci-00", "ci-01"]
    assert list(store.path.iterdir()) == [] and share.exists() == is_there


def test_two_pipelines_of_one_name(store: Store, pipeline: Pipeline) -> None:
    """The second one is told who has the environment. Once the first one is gone it gets it, and the first one has lost it."""
    pipeline.play("present")
    pipeline.play("present", owner="job-2", fails="job-1 holds it until")
    pipeline.play("absent", owner="job-2", fails="job-1 holds it until")
    let_pass(store, 8 * 3600)
    write(store, "ci-00", 99)
    (taken,) = pipeline.play("present", owner="job-2")
    assert taken["collected"] == {"leases": ["ci"], "volumes": ["ci-00", "ci-01"]} and taken["lease"]["owner"] == "job-2"
    assert content(store, "ci-00")[:1] == b"\x07"
    write(store, "ci-00", 50)
    pipeline.play("reset", fails="job-2 has it now")
    assert content(store, "ci-00")[:1] == bytes([50])


def test_what_a_killed_pipeline_leaves(store: Store, pipeline: Pipeline) -> None:
    """It goes with the next pipeline on the share, whatever its name, after lease and grace; what is in use stays until it is not."""
    pipeline.play("present", workers=["a", "b"], lease="1h")
    let_pass(store, 3600 + 60)
    assert pipeline.play("collected")[0]["changed"] is False  # the grace of 15 minutes
    let_pass(store, 3600)
    with opened(store, "ci-a"):
        other, told = pipeline.play("present", "collected", name="next", owner="job-2")
        assert other["collected"] == {"leases": [], "volumes": ["ci-b"]} and [one["error_code"] for one in other["skipped"]] == ["in_use"]
        assert not told["changed"] and "ci-a" in volumes(store)
    (told,) = pipeline.play("collected", name=None)
    assert told["collected"] == {"leases": ["ci"], "volumes": ["ci-a"]}
    assert volumes(store) == ["golden", "next-00", "next-01"]


def test_workers_that_somebody_has_open(store: Store, pipeline: Pipeline) -> None:
    pipeline.play("present")
    write(store, "ci-00", 40)
    write(store, "ci-01", 41)
    with opened(store, "ci-00"):
        pipeline.play("reset", fails="in_use")
        (told,) = pipeline.play("reset", running="skip")
        assert [(one["name"], one["error_code"]) for one in told["skipped"]] == [("ci-00", "in_use")]
        assert content(store, "ci-01")[:1] == b"\x07"
        pipeline.play("absent", fails="not all of its volumes could be removed")
        (told,) = pipeline.play("absent", running="skip")
        assert [one["name"] for one in told["skipped"]] == ["ci-00"] and volumes(store) == ["ci-00", "golden"]
    assert pipeline.play("absent")[0]["changed"] and volumes(store) == ["golden"]


def test_more_and_fewer_workers(store: Store, pipeline: Pipeline) -> None:
    pipeline.play("present", workers=3)
    write(store, "ci-00", 44)
    (fewer,) = pipeline.play("present", workers=1)
    assert fewer["changed"] and volumes(store) == ["ci-00", "golden"] and content(store, "ci-00")[:1] == bytes([44])
    pipeline.play("present", workers=4, limit={"workers": 3}, fails="beyond ci_environment_limit")
    pipeline.play("present", workers=4, limit={"percent_free": 99.99}, fails="beyond ci_environment_limit")
    assert volumes(store) == ["ci-00", "golden"]
    pipeline.play("present", workers=2, limit={"workers": 3, "percent_free": 0.001}, method="full", size="4M")
    assert store.info("ci-01")["size"] == 4 * MIB and store.info("ci-01")["parent"] is None


def test_golden_images(store: Store, pipeline: Pipeline, tmp_path: Path) -> None:
    """An image is imported once for all; another image is another volume; the old one goes when nothing rests on it."""
    images, names = [], []
    for number in (1, 2):
        image = tmp_path / f"image-{number}.raw"
        image.write_bytes(bytes([number]) * MIB)
        digits = hashlib.sha256(image.read_bytes()).hexdigest()
        images.append({"image": str(image), "checksum": f"sha256:{digits}"})
        names.append(f"golden-{digits[:12]}")
    first, again = pipeline.play("present", "present", golden=images[0])
    assert (first["changed"], again["changed"]) == (True, False) and content(store, "ci-00") == bytes([1]) * MIB
    assert first["golden"] == {"volume": names[0], "snapshot": "golden"} and store.info(names[0])["snapshots"][0]["protected"]
    (second,) = pipeline.play("present", golden=images[1], name="next")
    assert content(store, "next-00") == bytes([2]) * MIB and {*names} <= {*volumes(store)}
    pipeline.play("absent", golden=images[0])
    (told,) = pipeline.play("collected")
    assert names[0] in volumes(store) and not told["changed"]  # the one that is kept
    (told,) = pipeline.play("collected", golden_keep=0)
    assert told["collected"]["volumes"] == [names[0]] and names[1] in volumes(store)
    wrong = {**images[0], "checksum": "sha256:" + "0" * 64}
    pipeline.play("present", golden=wrong, name="third", fails="checksum")
    assert not [name for name in volumes(store) if name.startswith(("third", "golden-0000"))]


def test_seeds(store: Store, pipeline: Pipeline) -> None:
    """Each worker has its own, made once; a reset makes new ones where that is asked, and the next present keeps those. They go with the rest."""
    pipeline.variables["seed"] = {"user_data": "#cloud-config\nhostname: '{{ worker }}'\npassword: secret-{{ index }}-{{ reset }}\n"}
    made, again = pipeline.play("present", "present")
    assert (made["changed"], again["changed"]) == (True, False) and again["workers"] == made["workers"]
    seeds = [store.path / f"ci-{number:02}-seed" for number in range(2)]
    assert [worker["seed"]["path"] for worker in made["workers"]] == [str(path) for path in seeds]
    first = [path.read_bytes() for path in seeds]
    for number, data in enumerate(first):
        assert b"CD001" in data and f"hostname: 'ci-0{number}'".encode() in data and f"secret-{number}-0".encode() in data
        assert f'"instance-id": "ci-0{number}-0"'.encode() in data
    (kept,) = pipeline.play("reset")
    assert not kept["changed"] and [path.read_bytes() for path in seeds] == first
    (renewed,) = pipeline.play("reset", seed_renew=True)
    second = [path.read_bytes() for path in seeds]
    assert renewed["changed"] and all(b"-0\"" not in data and one != data for one, data in zip(first, second))
    (still,) = pipeline.play("present")
    assert not still["changed"] and [path.read_bytes() for path in seeds] == second
    pipeline.play("absent")
    assert volumes(store) == ["golden"]


@pytest.mark.parametrize(
    "given, words",
    [
        ({"golden": {}}, "Give ci_environment_golden"),
        ({"golden": {"volume": "golden"}}, "ci_environment_golden must be"),
        ({"golden": {"image": "/x", "checksum": "sha256:https://example.org/SUMS"}}, "ci_environment_golden must be"),
        ({"workers": "many"}, "workers must be a number or a list of suffixes"),
        ({"workers": ["a", "a"]}, "two volumes would be called"),
        ({"workers": ["seed"]}, "cannot be the suffix of a worker"),
        ({"workers": ["../x"]}, "cannot be the suffix of a worker"),
        ({"disks": [{"suffix": "seed", "size": "1M"}]}, "cannot be the suffix of a disk"),
        ({"name": None}, "Give ci_environment_name"),
        ({"name": "-x"}, "is no name of an environment"),
        ({"lease": "soon"}, "is no duration"),
        ({"consumer": "docker"}, "value of ci_environment_consumer must be one of: none, qemu, libvirt"),
        ({"running": "stop"}, "give a ci_environment_consumer"),
        ({"consumer": "libvirt"}, "The consumer libvirt needs ci_environment_definition"),
        ({"labels": {"remotefs_worker": "1"}}, "may begin with remotefs_"),
    ],
)
def test_nonsense(store: Store, pipeline: Pipeline, given: dict, words: str) -> None:
    before = volumes(store)
    pipeline.play("present", fails=words, **given)
    assert volumes(store) == before


def test_the_example_of_the_readme(store: Store, pipeline: Pipeline, tmp_path: Path, ansible_environment: dict) -> None:
    text = (ROLE / "README.md").read_text()
    book = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    places = {"/srv/volumes": str(store.path), "debian-12": "golden", "10G": "1M"}
    (tmp_path / "example.yml").write_text(replaced(json.dumps(book), places))
    done = subprocess.run(["ansible-playbook", str(tmp_path / "example.yml")], env=ansible_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ci-main-02-data.pristine" in done.stdout and volumes(store) == ["golden"]


def test_specs_defaults_and_readme_agree() -> None:
    spec = yaml.safe_load((ROLE / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    assert {name: option["default"] for name, option in spec.items() if "default" in option} == defaults
    table = "\n".join(line for line in (ROLE / "README.md").read_text().splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(ci_environment_[a-z_]+)`", table)) == {*spec, "ci_environment_seed"}  # its templates have no value yet where specs look


# -- what cleans up ------------------------------------------------------------------------------------------------------


def ended(store: Store, pipeline: Pipeline) -> None:
    """An environment whose pipeline was killed long ago."""
    pipeline.play("present")
    let_pass(store, 8 * 3600)


def collected(store: Store, environment: dict, *options: str) -> str:
    given = json.dumps({"ci_collect_shares": [str(store.path)]})
    argv = ["ansible-playbook", "remotefs.storage.ci_collect", "-e", given, *options]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_playbook_that_collects(store: Store, pipeline: Pipeline, ansible_environment: dict) -> None:
    ended(store, pipeline)
    foretold = collected(store, ansible_environment, "--check")
    assert '"would be removed": {' in foretold and "ci-01" in foretold and "ci-01" in volumes(store)
    told = collected(store, ansible_environment)
    assert "changed=1" in told and '"removed": {' in told and '"ci-01"' in told and volumes(store) == ["golden"]
    assert "changed=0" in collected(store, ansible_environment)


@pytest.mark.root
def test_the_timer(store: Store, pipeline: Pipeline, tmp_path: Path, ansible_environment: dict) -> None:
    """What the role collector writes is what systemd takes, and its command line does the work."""
    units, settings = tmp_path / "units", tmp_path / "settings.json"
    units.mkdir()
    role = {"name": "remotefs.storage.collector"}
    command = subprocess.run(["which", "ansible-playbook"], env=ansible_environment, capture_output=True, text=True, check=True).stdout.strip()
    given = {
        "collector_shares": [str(store.path)],
        "collector_directory": str(units),
        "collector_settings": str(settings),
        "collector_enable": False,
        "collector_command": command,
        "collector_collections_path": ansible_environment["ANSIBLE_COLLECTIONS_PATH"],
    }

    def played(state: str) -> str:
        tasks = [{"ansible.builtin.include_role": role, "vars": {**given, "collector_state": state}}]
        return play([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}], tmp_path, ansible_environment)

    assert "changed=2" in played("present") and "changed=0" in played("present")
    if shutil.which("systemd-analyze"):
        checked = subprocess.run(["systemd-analyze", "verify", *map(str, sorted(units.iterdir()))], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
    service = (units / "remotefs-collector.service").read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", service, re.MULTILINE)
    ended(store, pipeline)
    done = subprocess.run(line.split(), env=ansible_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and volumes(store) == ["golden"], done.stdout + done.stderr
    assert "changed=1" in played("absent") and "changed=0" in played("absent")
    assert not list(units.iterdir()) and not settings.exists()
