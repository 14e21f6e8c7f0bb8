# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files of docs/pipelines/ as CI systems run them: a script plays GitLab Runner and kills its stages, another one the hooks of GitHub.

``PIPELINE_SWEEP=full`` kills at many instants instead of a few; it is what ``scripts/test nightly`` runs.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
import yaml

from ansible_collections.remotefs.storage.plugins.module_utils.operations import leases

from .test_clones import content, write
from .test_leases import collect, let_pass
from .test_refusals import MIB, Store, store

__all__ = ["store"]  # a fixture

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = CHECKOUT / "docs" / "pipelines"
PAGE = (CHECKOUT / "docs" / "pipelines.md").read_text()
INSTALLED = "/opt/remotefs-ci"
BUILD_FAILURE, SYSTEM_FAILURE = 11, 12  # others than the usual ones
KILLS = 24 if os.environ.get("PIPELINE_SWEEP") == "full" else 4

slow = pytest.mark.slow


class Host:
    """The host of a runner, whose jobs get two disks from the volume ``golden``. Programs have these variables and no others."""

    def __init__(self, store: Store, place: Path, collections: str) -> None:
        self.store, self.place = store, place
        self.files, self.jobs, self.home = place / "remotefs-ci", place / "jobs", place / "home"
        shutil.copytree(FILES, self.files)
        self.home.mkdir()
        store.present("golden", size=2 * MIB)
        write(store, "golden", 7)
        store.snapshot("ready", "golden")
        self.env = {
            "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
            "HOME": str(self.home),
            "ANSIBLE_COLLECTIONS_PATH": collections,
            "REMOTEFS_CI_DIRECTORY": str(self.jobs),
            "TMPDIR": str(place),
        }
        self.settings()

    def settings(self, **others: Any) -> None:
        given = yaml.safe_load((FILES / "settings.yml").read_text())
        given.update(ci_environment_share=str(self.store.path), ci_environment_golden={"volume": "golden", "snapshot": "ready"})
        given.update(ci_environment_disks=[{"suffix": "data", "size": "1M"}], **{f"ci_environment_{key}": value for key, value in others.items()})
        (self.files / "settings.yml").write_text(json.dumps(given))

    def run(self, *argv: str, env: dict | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess:
        argv = tuple(word.replace(INSTALLED, str(self.files)) for word in argv)
        return subprocess.run(argv, env={**self.env, **(env or {})}, cwd=cwd or self.place, capture_output=True, text=True, check=False)

    def environment(self, *words: str, **more: Any) -> subprocess.CompletedProcess:
        return self.run(f"{INSTALLED}/environment", *words, **more)

    def volumes(self) -> list[str]:
        return sorted(path.name for path in self.store.path.iterdir() if "." not in path.name)

    def is_clean(self) -> bool:
        """Nothing but the golden volume on the share, no lease, and no directory of a job."""
        files = sorted(path.name for path in self.store.path.iterdir() if path.name != ".remotefs")
        temporary = list((self.store.path / ".remotefs" / "tmp").iterdir())
        jobs = list(self.jobs.iterdir()) if self.jobs.exists() else []
        assert files == ["golden", "golden.info", "golden.ready"] and not temporary and not jobs, (files, temporary, jobs)
        return not leases.read_all(self.store.share)

    def all_pass(self, seconds: float) -> None:
        """The clocks of the share and of the host go on."""
        for lease in (self.store.path / ".remotefs" / "leases").glob("*.json"):
            let_pass(self.store, seconds, lease.stem)
        for end in self.jobs.glob("*/end"):
            end.write_text(f"{int(end.read_text()) - int(seconds)}\n")
        for directory in self.jobs.iterdir():
            if not (directory / "end").exists():
                os.utime(directory, (time.time() - seconds, time.time() - seconds))

    def processes(self) -> list[int]:
        """Those that any of its programs left, also as daemons."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and f"REMOTEFS_CI_DIRECTORY={self.jobs}\0".encode() in (path / "environ").read_bytes() + b"\0":
                    found.append(int(path.name))
            except OSError:
                pass
        return found

    def until_still(self) -> None:
        end = time.monotonic() + 60
        while self.processes():
            assert time.monotonic() < end, "processes stay"
            time.sleep(0.1)


@pytest.fixture
def host(store: Store, tmp_path: Path, collections_path: str) -> Iterator[Host]:
    made = Host(store, tmp_path, collections_path)
    yield made
    for pid in made.processes():
        os.kill(pid, signal.SIGKILL)


def known_runner() -> dict:
    """The part of config.toml that says what is run; a small reading of TOML, which Python has only from 3.11 on."""
    found = {}
    for line in (FILES / "gitlab" / "config.toml").read_text().splitlines():
        name, equals, value = line.partition(" = ")
        if equals and not line.startswith("#"):
            found[name.strip()] = json.loads(value)
    return found


CONFIG = known_runner()


class Job:
    """GitLab Runner with one job: what it runs, with which words and variables, and what it makes of exit codes."""

    SUBSTAGES = ("prepare_script", "get_sources", "step_script", "after_script")

    def __init__(self, host: Host, number: int, **variables: str) -> None:
        self.host, self.log, self.status = host, "", "created"
        self.place = host.place / f"runner-{number}"
        self.place.mkdir()
        (self.place / "response.json").write_text(json.dumps({"id": number, "token": "secret", "variables": [variables]}))
        given = {"CI_JOB_ID": str(number), "CI_SERVER_URL": "https://gitlab.example.org", "CI_JOB_NAME": "test", **variables}
        self.env = {
            **{f"CUSTOM_ENV_{name}": value for name, value in given.items()},
            "JOB_RESPONSE_FILE": str(self.place / "response.json"),
            "BUILD_FAILURE_EXIT_CODE": str(BUILD_FAILURE),
            "SYSTEM_FAILURE_EXIT_CODE": str(SYSTEM_FAILURE),
            "BUILD_EXIT_CODE_FILE": str(self.place / "status"),
            "TMPDIR": str(self.place),
        }

    def start(self, stage: str, *words: str, output: Any = subprocess.PIPE) -> subprocess.Popen:
        program = CONFIG[f"{stage}_exec"].replace(INSTALLED, str(self.host.files))
        argv = [program, *CONFIG[f"{stage}_args"], *words]
        env = {**self.host.env, **self.env}
        return subprocess.Popen(argv, env=env, cwd=self.place, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True,
                                start_new_session=True)

    def stage(self, stage: str, *words: str) -> int:
        process = self.start(stage, *words)
        said, _none = process.communicate()
        self.log += said
        self.said = said
        return process.returncode

    def config(self) -> dict:
        assert self.stage("config") == 0, self.said
        told = json.loads(self.said)
        self.env.update(told["job_env"])
        self.builds = Path(told["builds_dir"])
        return told

    def started(self, text: str) -> subprocess.Popen:
        """A stage whose script has begun."""
        mark = self.place / "began"
        process = self.start("run", self.script("step", f"touch '{mark}'\n{text}"), "step_script")
        end = time.monotonic() + 60
        while not mark.exists():
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        return process

    def script(self, name: str, text: str) -> str:
        path = self.place / name
        path.write_text("set -eo pipefail\n" + text)
        return str(path)

    def play(self, script: str, tries: int = 3, **others: str) -> str:
        """The whole job, as the runner goes through it. Its status is what GitLab shows."""
        try:
            self.config()
            for _try in range(tries):
                status = self.stage("prepare")
                if status != SYSTEM_FAILURE:
                    break
            sources = f'mkdir -p "{self.builds}" && cd "{self.builds}" && echo sources >file && echo running as "$CUSTOM_ENV_CI_JOB_NAME"'
            texts = {"prepare_script": "uname -n", "get_sources": sources, "after_script": "echo after", **others, "step_script": script}
            for name in self.SUBSTAGES:
                if status == 0 or (name == "after_script" and status == BUILD_FAILURE):
                    status = self.stage("run", self.script(name, texts[name]), name) or status
            self.status = {0: "success", BUILD_FAILURE: "script_failure", SYSTEM_FAILURE: "runner_system_failure"}.get(status, f"unknown {status}")
        finally:
            self.cleaned = self.stage("cleanup")
        return self.status


# -- GitLab --------------------------------------------------------------------------------------------------------------


@slow
def test_jobs_of_gitlab(host: Host) -> None:
    """Two at a time, each with its own disks; one that fails; its number comes from the runner, and nothing is left."""
    first, second = Job(host, 4711), Job(host, 4712)
    look = 'test "$(qemu-img info --output=json "$REMOTEFS_DISK_0" | wc -l)" -gt 5; echo "disks $REMOTEFS_DISK_0 $REMOTEFS_DISK_1"; cat "$REMOTEFS_WORKERS"'
    second.config()
    assert second.stage("prepare") == 0, second.said
    assert first.play(f"cd '{host.jobs}'; {look}; qemu-io -f qcow2 -c 'write -P 9 0 64k' \"$REMOTEFS_DISK_0\"") == "success", first.log
    disks = re.search(r"^disks (\S+) (\S+)$", first.log, re.MULTILINE).groups()
    assert [re.fullmatch(r"gitlab-4711-[0-9a-f]{12}-00(-data)?\.pristine", Path(disk).name) is not None for disk in disks] == [True, True]
    assert first.cleaned == 0 and "after" in first.log and not first.builds.exists()
    (other,) = (name for name in host.volumes() if name.endswith("-00"))
    assert other.startswith("gitlab-4712-") and content(host.store, other)[:1] == b"\x07"
    assert second.stage("run", second.script("step", "exit 77"), "step_script") == BUILD_FAILURE
    assert (second.place / "status").read_text() == "77\n"
    assert second.stage("cleanup") == 0 and second.stage("cleanup") == 0 and host.is_clean()
    third = Job(host, 4713)
    assert third.play("echo on stdout; kill -9 $$") == "script_failure" and "after" in third.log and host.is_clean()


@slow
def test_two_jobs_at_one_time(host: Host) -> None:
    jobs = [Job(host, number) for number in (1, 2)]
    for job in jobs:
        job.config()
    for stage, words in (("prepare", ()), ("run", ("step", "step_script")), ("cleanup", ())):
        processes = []
        for job in jobs:
            path = job.script("step", 'qemu-io -f qcow2 -c "write -P 5 0 64k" "$REMOTEFS_DISK_0"')
            processes.append(job.start(stage, *((path, words[1]) if words else ())))
        for process in processes:
            said, _none = process.communicate()
            assert process.returncode == 0, said
        assert len(host.volumes()) == (1 if stage == "cleanup" else 5)
    assert host.is_clean()


@slow
def test_a_hostile_job(host: Host) -> None:
    """Texts of users reach no shell and no template, and a job that says it is another one is not."""
    witness = host.place / "witness"
    evil = f"$(touch {witness}); `touch {witness}` \"'\n{{{{ lookup('pipe', 'touch {witness}') }}}} {{% raw %}} ../../x \x1b[2J ##[add-path]x"
    victim, job = Job(host, 8), Job(host, 9, CI_JOB_ID="8", CI_JOB_NAME=evil, CI_COMMIT_REF_NAME=evil, CI_JOB_TIMEOUT="0", REMOTEFS_CI_NAME="gitlab-8",
                                    SYSTEM_FAILURE_EXIT_CODE="0", REMOTEFS_CI_SETTINGS="/dev/null", ANSIBLE_CONFIG=evil)
    victim.config()
    assert victim.stage("prepare") == 0
    before = host.volumes()
    (job.place / "ansible.cfg").write_text("[defaults]\ncallback_plugins = /nowhere\ninventory = /nowhere\nnonsense")
    inside = 'chmod 500 "$PWD"; mkdir -p sub/a; chmod 000 sub; ln -s / root; echo "$REMOTEFS_CI_NAME"'
    sources = f'mkdir -p "{host.jobs}/$REMOTEFS_CI_NAME/builds/x"; cd "{host.jobs}/$REMOTEFS_CI_NAME/builds/x"; {inside} || :'
    assert job.play("true", get_sources=sources) == "success", job.log
    assert not witness.exists() and job.cleaned == 0 and host.volumes() == before and "gitlab-9-" in job.log
    assert victim.stage("cleanup") == 0 and host.is_clean()


@slow
def test_what_is_no_fault_of_the_job(host: Host, tmp_path: Path) -> None:
    """One line says what it is, and it is a system failure; cleanup works as far as it can."""

    def fails(job: Job, words: str, tries: int = 1) -> None:
        assert job.play("echo the script ran", tries) == "runner_system_failure", job.log
        lines = [line for line in job.log.splitlines() if line.startswith("remotefs-ci: ")]
        assert any(words in line for line in lines) and "the script ran" not in job.log, job.log

    host.settings(golden={"volume": "none", "snapshot": "ready"})
    fails(Job(host, 1), "volume_not_found: ", tries=3)
    host.settings(golden={"volume": "golden"})
    fails(Job(host, 2), "ci_environment_golden must be")
    shutil.rmtree(host.jobs)  # wrong settings are no settings for cleanup either
    host.settings(golden={"volume": "none", "snapshot": "ready"}, state="collected")  # the state is not the settings' business
    done = host.environment("with", "try", "1", "--", "echo", "the command ran")
    assert done.returncode == 75 and "volume_not_found: " in done.stderr and not done.stdout and host.is_clean()
    host.settings(share=str(tmp_path / "gone"))
    job = Job(host, 3)
    fails(job, "share_not_mounted: ")
    assert job.cleaned == SYSTEM_FAILURE  # the runner writes it to its own log
    shutil.rmtree(host.jobs)
    host.settings()
    for number, (name, value, words) in enumerate([
        ("REMOTEFS_CI_ANSIBLE", "no-such-program", "there is no program no-such-program"),
        ("REMOTEFS_CI_SETTINGS", "/nowhere/settings.yml", "cannot be read; see REMOTEFS_CI_SETTINGS"),
        ("ANSIBLE_COLLECTIONS_PATH", "/nowhere", "could not be found"),
    ], start=4):
        usual = dict(host.env)
        host.env[name] = value
        fails(Job(host, number), words)
        host.env = usual
        shutil.rmtree(host.jobs, ignore_errors=True)
        assert host.is_clean()
    for number, (name, value, words) in enumerate([
        ("REMOTEFS_CI_DIRECTORY", "relative", "must be a plain absolute path"),
        ("REMOTEFS_CI_DIRECTORY", '/tmp/{{ x }}"', "must be a plain absolute path"),
        ("JOB_RESPONSE_FILE", "", "gives no JOB_RESPONSE_FILE"),
    ], start=100):
        job = Job(host, number)
        job.env[name] = value
        assert job.stage("config") == SYSTEM_FAILURE and words in job.said
    job = Job(host, 200)
    (job.place / "response.json").write_text('{"id": "x; id", "job_info": {"id": 7}}')
    assert job.stage("config") == SYSTEM_FAILURE and "finds no number" in job.said
    assert host.is_clean()


@slow
def test_the_lease_of_a_long_job(host: Host) -> None:
    """It is renewed while the job runs. If it is lost, the script is stopped, no later one runs, and what the next owner has stays."""
    host.settings(lease="20s")  # two playbooks that a busy host plays must fit into two thirds of it
    long = Job(host, 1)
    assert long.play("sleep 24; echo woke") == "success" and "woke" in long.log, long.log
    host.settings(lease="30s")
    job = Job(host, 2)
    job.config()
    assert job.stage("prepare") == 0
    name = job.env["REMOTEFS_CI_NAME"]
    process = job.started("trap '' TERM; sleep 300 & wait; sleep 300")
    let_pass(host.store, 3600, name)
    assert collect(host.store).leases == (name,)
    said, _none = process.communicate(timeout=60)
    assert process.returncode == SYSTEM_FAILURE and "lease_lost: " in said and "the job stops" in said, said
    host.until_still()
    assert job.stage("run", job.script("after", "echo went on"), "after_script") == SYSTEM_FAILURE and "went on" not in job.said
    assert job.stage("cleanup") == 0 and host.is_clean()
    job = Job(host, 3)  # lost between two scripts
    job.config()
    assert job.stage("prepare") == 0
    let_pass(host.store, 3600, job.env["REMOTEFS_CI_NAME"])
    collect(host.store)
    time.sleep(10.5)
    assert job.stage("run", job.script("step", "echo went on"), "step_script") == SYSTEM_FAILURE and "went on" not in job.said
    assert job.stage("cleanup") == 0 and host.is_clean()


@slow
def test_a_share_that_goes_during_a_job(host: Host) -> None:
    """A renewal that fails is tried again. When the lease has ended meanwhile, the job stops."""
    host.settings(lease="24s")
    job = Job(host, 1)
    job.config()
    assert job.stage("prepare") == 0
    process = job.started("sleep 300")
    away = host.place / "away"
    host.store.path.rename(away)
    said, _none = process.communicate(timeout=90)
    assert process.returncode == SYSTEM_FAILURE and "share_not_mounted: " in said and "the job stops" in said, said
    away.rename(host.store.path)
    assert job.stage("cleanup") == 0 and host.is_clean()


@slow
def test_a_cancelled_job(host: Host) -> None:
    """The runner sends SIGTERM to its process group. The script gets it, and what follows is cleanup."""
    job = Job(host, 1)
    job.config()
    assert job.stage("prepare") == 0
    process = job.started("trap 'echo told; exit 1' TERM; sleep 300 & wait")
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGTERM)
    said, _none = process.communicate(timeout=30)
    assert process.returncode == BUILD_FAILURE and "told" in said
    assert job.stage("cleanup") == 0
    host.until_still()
    assert host.is_clean()


@slow
def test_another_transport(host: Host) -> None:
    """The program that REMOTEFS_CI_SHELL names gets the script and its stage."""
    program = host.place / "to the guest"
    program.write_text('#!/bin/sh\necho "stage $2"\nexec sh -s <"$1"\n')
    program.chmod(0o755)
    host.env["REMOTEFS_CI_SHELL"] = str(program)
    job = Job(host, 1)
    job.config()
    assert job.stage("prepare") == 0
    path = job.place / "step"
    path.write_text('echo "by $0"; exit 5')
    assert job.stage("run", str(path), "step_script") == BUILD_FAILURE and job.said.startswith("stage step_script\nby sh\n"), job.said
    assert job.stage("cleanup") == 0 and host.is_clean()


def killed_after(job: Job, seconds: float) -> str | None:
    """A job that is killed with the process group of its stage; the stage, or None if it was faster."""
    end = time.monotonic() + seconds
    job.config()
    script = job.script("step", "sleep 0.5")
    for stage, words in (("prepare", ()), *(("run", (script, name)) for name in Job.SUBSTAGES), ("cleanup", ())):
        with (job.place / "log").open("a") as log:
            process = job.start(stage, *words, output=log)
        try:
            assert process.wait(max(0.01, end - time.monotonic())) == 0, (job.place / "log").read_text()
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return stage
    return None


@slow
def test_killed_at_random(host: Host) -> None:
    """After each kill every volume is somebody's, no script runs on, and once its lease has ended the next job leaves nothing of it."""
    host.store.present("gitlab-database", size=MIB)
    host.settings(workers=4)
    chance, seen = random.Random(7), []
    began = time.monotonic()
    assert killed_after(Job(host, 1), 300) is None
    whole = time.monotonic() - began
    for number in range(KILLS):
        part = (number + chance.random()) / KILLS  # one of each part of a job's life
        job = Job(host, 10 + number)
        seen.append(killed_after(job, part * whole))
        host.until_still()
        owners = {one["id"]: one["volumes"] for one in leases.read_all(host.store.share)}
        for name in host.volumes():
            told = host.store.info(name)
            if name not in ("golden", "gitlab-database") and "error_code" not in told and not told["pending"]:
                assert name in owners.get(told["lease"], ()), f"{name} is nobody's"
        again = chance.random() < 0.5
        if again:  # the runner is still there, and cleans up
            assert job.stage("cleanup") == 0, job.said
        else:
            host.all_pass(200000)
        nextone = Job(host, 1000 + number)
        assert nextone.play("true") == "success" and nextone.cleaned == 0, nextone.log
        assert host.volumes() == ["gitlab-database", "golden"] and not leases.read_all(host.store.share), (seen, again)
        assert not list(host.jobs.iterdir()) and not list((host.store.path / ".remotefs" / "tmp").iterdir())
    assert sum(stage is not None for stage in seen) >= KILLS // 2 and "prepare" in seen, seen


@slow
@pytest.mark.parametrize("who", ["run alone", "all of its group"])
def test_a_script_does_not_outlive_its_stage(host: Host, who: str) -> None:
    job = Job(host, 1)
    job.config()
    assert job.stage("prepare") == 0
    with (job.place / "log").open("w") as log:
        process = job.start("run", job.script("step", "trap '' TERM; echo began; sleep 300 & wait; sleep 300"), "step_script", output=log)
    end = time.monotonic() + 30
    while "began" not in (job.place / "log").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    (os.kill if who == "run alone" else os.killpg)(process.pid, signal.SIGKILL)
    process.wait()
    host.until_still()
    assert job.stage("cleanup") == 0 and host.is_clean()


# -- GitHub --------------------------------------------------------------------------------------------------------------


class Workflow:
    """A self-hosted runner of GitHub Actions with one job."""

    def __init__(self, host: Host, run: int, attempt: int = 1, runner: str = "one", **variables: str) -> None:
        self.host, self.file = host, host.place / f"github-env-{run}"
        self.file.touch()
        hooks = (FILES / "github" / "runner.env").read_text()
        self.hooks = dict(re.findall(r"^ACTIONS_RUNNER_HOOK_JOB_(\w+)=(.*)$", hooks, re.MULTILINE))
        self.env = {"GITHUB_RUN_ID": str(run), "GITHUB_RUN_ATTEMPT": str(attempt), "RUNNER_NAME": runner, "GITHUB_ENV": str(self.file),
                    "GITHUB_SERVER_URL": "https://github.example.org", **variables}

    def hook(self, name: str) -> subprocess.CompletedProcess:
        return self.host.run("bash", "-e", self.hooks[name], env=self.env)

    def told(self) -> dict:
        return dict(line.split("=", 1) for line in self.file.read_text().splitlines())


@slow
@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="qemu-system-x86_64 is missing")
def test_machines_of_a_job(host: Host, sockets: Path) -> None:
    """They run for the job, which is told where they are, start anew with a reset, and end with the job; after a kill with the next one."""
    how = {"memory": "32M", "board": "pc", "accelerators": ["tcg,tb-size=32"]}
    host.settings(consumer="qemu", wait_for="none", machine=how, run_dir=str(sockets / "run"))
    look = f"""test "$REMOTEFS_ADDRESS_0" && echo "at $REMOTEFS_ADDRESS_0"; ls {sockets}/run; {host.files}/environment reset && cat {sockets}/run/*/pid"""
    done = host.environment("with", "try", "1", "--", "sh", "-c", look)
    assert done.returncode == 0 and re.search(r"^at 127\.0\.0\.1:[0-9]+$", done.stdout, re.MULTILINE) and "try-1-00\n" in done.stdout, done
    assert int(done.stdout.split()[-1]) and not host.processes() and host.is_clean() and not list((sockets / "run").iterdir())
    assert host.environment("present", "try", "2").returncode == 0  # a runner that dies says no more
    assert host.processes() == [int((sockets / "run" / "try-2-00" / "pid").read_text())]
    host.all_pass(3 * 3600)
    assert host.environment("with", "try", "3", "--", "true").returncode == 0 and not host.processes() and host.is_clean()


@slow
def test_hooks_of_github(host: Host) -> None:
    """Disks for the steps, gone at the end; a matrix on two runners; and what a runner that died left goes with its next job."""
    job, beside = Workflow(host, 5, GITHUB_JOB="$(id) {{ x }}", ANSIBLE_CONFIG="/nowhere"), Workflow(host, 5, runner="two")
    for one in (job, beside):
        done = one.hook("STARTED")
        assert done.returncode == 0, done.stderr
    told = job.told()
    assert sorted(told) == ["REMOTEFS_CI_NAME", "REMOTEFS_DISK_0", "REMOTEFS_DISK_1", "REMOTEFS_WORKERS"] and Path(told["REMOTEFS_DISK_0"]).exists()
    assert len(host.volumes()) == 5
    name = Path(told["REMOTEFS_DISK_0"]).name.partition(".")[0]
    write(host.store, name, 9)
    done = host.environment("reset", env=told)
    assert done.returncode == 0 and content(host.store, name)[:1] == b"\x07", done.stderr
    assert host.environment("renewed", env=told).returncode == 0
    assert job.hook("COMPLETED").returncode == 0 and job.hook("COMPLETED").returncode == 0
    assert len(host.volumes()) == 3
    later = Workflow(host, 6, runner="two")  # which was killed, so there was no second hook
    done = later.hook("STARTED")
    assert done.returncode == 0 and "removed what github-5-" in done.stderr, done.stderr
    assert len(host.volumes()) == 3 and later.hook("COMPLETED").returncode == 0 and host.is_clean()


@slow
def test_hooks_that_fail(host: Host) -> None:
    """The first one fails the job and says why; the second one never does."""
    job = Workflow(host, 5)
    host.settings(golden={"volume": "none", "snapshot": "ready"})
    done = job.hook("STARTED")
    assert done.returncode == 1 and done.stderr.startswith("remotefs-ci: volume_not_found: ") and not job.file.read_text()
    assert host.is_clean()
    host.settings(share=str(host.place / "gone"))
    done = job.hook("COMPLETED")
    assert done.returncode == 0 and "share_not_mounted" in done.stderr
    host.settings()
    assert job.hook("COMPLETED").returncode == 0 and host.is_clean()
    for name in ("GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT", "RUNNER_NAME", "GITHUB_ENV"):
        job = Workflow(host, 5)
        del job.env[name]
        assert job.hook("STARTED").returncode == 1 and job.hook("COMPLETED").returncode == 0
    assert Workflow(host, 5, GITHUB_RUN_ID="$(id)").hook("STARTED").returncode == 1 and host.is_clean()


# -- Jenkins -------------------------------------------------------------------------------------------------------------

GROOVY = (FILES / "jenkins" / "Jenkinsfile").read_text()


def test_the_jenkinsfile_is_well_formed() -> None:
    """Without Jenkins: brackets are paired outside of texts, all texts are in single quotes, and the sections are those of a declarative pipeline."""
    without = re.sub(r"'''.*?'''|'[^'\n]*'", "''", GROOVY, flags=re.DOTALL)
    without = re.sub(r"//.*", "", without)
    assert '"' not in without and "$" not in without
    waiting = []
    for letter in without:
        if letter in "({[":
            waiting.append(letter)
        elif letter in ")}]":
            assert waiting.pop() + letter in ("()", "{}", "[]")
    assert not waiting
    words = re.findall(r"(\w+)(?:\(''\))? \{", without)
    assert words == ["pipeline", "agent", "options", "stages", *["stage", "steps"] * 3, "post", "always"]


@slow
def test_the_steps_of_the_jenkinsfile(host: Host) -> None:
    """As the durable task runs them, with sh -xe, whatever the job is called; post comes last."""
    steps = [one or other for one, other in re.findall(r"\bsh (?:'''(.*?)'''|'([^'\n]*)')", GROOVY, re.DOTALL)]
    assert len(steps) == 5 and GROOVY.index("post {") < GROOVY.index(steps[-1])
    env = {"BUILD_NUMBER": "12", "JENKINS_URL": "https://jenkins.example.org/", "JOB_NAME": "team/$(id) 'x' \"y\" {{ z }}"}
    for number, step in enumerate(steps):
        done = host.run("sh", "-xec", step.replace(INSTALLED, str(host.files)), env=env)
        assert done.returncode == 0, done.stderr
        assert len(host.volumes()) == (1 if number == 4 else 3)
        if number == 0:
            (name,) = (name for name in host.volumes() if name.endswith("-00"))
            write(host.store, name, 9)
    assert host.is_clean()


# -- the page ------------------------------------------------------------------------------------------------------------

COMMANDS = [line[2:] for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()]


@slow
def test_the_commands_of_the_page(host: Host) -> None:
    """As they stand, with stand-ins for autopkgtest, tmt and a guest, whose words are looked at."""
    copy, first, reset, renewed, autopkgtest, tmt = COMMANDS
    shutil.rmtree(host.files)
    place = host.home / ".ansible" / "collections" / "ansible_collections" / "remotefs"
    place.mkdir(parents=True)
    (place / "storage").symlink_to(CHECKOUT)
    done = host.run("sh", "-ec", copy.replace(INSTALLED, str(host.files)))
    assert done.returncode == 0, done.stderr
    host.settings()
    programs = host.place / "programs"
    programs.mkdir()
    for name in ("autopkgtest", "tmt", "start-guest"):
        (programs / name).write_text(f'#!/bin/sh\nfor word; do printf "{name} <%s>\\n" "$word"; done\n[ {name} != start-guest ] || sleep 300 >/dev/null &\n')
        (programs / name).chmod(0o755)
    host.env["PATH"] = f"{programs}{os.pathsep}{host.env['PATH']}"

    def played(command: str, **env: str) -> str:
        done = host.run("bash", "-c", command.replace(INSTALLED, str(host.files)), env=env, cwd=programs)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "file format: qcow2" in played(first) and host.is_clean()
    host.environment("present", "try", "2")
    for command in (reset, renewed):
        played(command, REMOTEFS_CI_NAME="try-2")
    assert host.environment("absent", "try", "2").returncode == 0
    told = played(autopkgtest)
    assert f"autopkgtest <{host.jobs}/autopkgtest-1>\nautopkgtest <{host.store.path}/autopkgtest-1-00.pristine>\n" in told and host.is_clean()
    told = played(tmt)
    assert f"start-guest <{host.store.path}/tmt-1-00.pristine>\n" in told and "tmt <connect>\n" in told
    host.until_still()  # the guest, which was left running
    assert host.is_clean()


def test_what_the_page_names() -> None:
    """Its table has every file, its variables are those of the scripts, and the settings are the role's."""
    named = set(re.findall(r"\]\(pipelines/([^)]+)\)", PAGE))
    assert named == {str(path.relative_to(FILES)) for path in FILES.rglob("*") if path.is_file()}
    texts = "".join(path.read_text() for path in FILES.rglob("*") if path.is_file())
    wanted = set(re.findall(r"\bREMOTEFS_[A-Z_]+", texts)) - {"REMOTEFS_DISK_", "REMOTEFS_ADDRESS_"}
    assert wanted <= set(re.findall(r"\bREMOTEFS_[A-Z_]+", PAGE))
    spec = yaml.safe_load((CHECKOUT / "roles" / "ci_environment" / "meta" / "argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert set(yaml.safe_load((FILES / "settings.yml").read_text())) <= set(spec)
    assert {CONFIG[f"{stage}_exec"] for stage in ("config", "prepare", "run", "cleanup")} == {f"{INSTALLED}/gitlab/executor"}


@pytest.mark.parametrize("words", [[], ["nonsense"], ["present"], ["present", "gitlab"], ["present", "GitLab", "1"], ["present", "gitlab", "1; id"],
                                   ["present", "gitlab", "١"], ["present", "gitlab", "9" * 21], ["present", "../x", "1"], ["with", "try", "1"],
                                   ["with", "try", "1", "--"]])
def test_words_that_name_no_job(words: list[str], tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "REMOTEFS_CI_DIRECTORY": str(tmp_path / "jobs"), "REMOTEFS_CI_ANSIBLE": "/bin/false"}
    done = subprocess.run([str(FILES / "environment"), *words], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 75 and done.stderr.startswith("remotefs-ci: ") and len(done.stderr.splitlines()) == 1 and not (tmp_path / "jobs").exists()


def test_its_help_is_for_people() -> None:
    done = subprocess.run([str(FILES / "environment"), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "environment with" in done.stdout and "shellcheck" not in done.stdout and "set -" not in done.stdout


def test_names_that_are_given(tmp_path: Path) -> None:
    """REMOTEFS_CI_NAME leads nowhere else."""
    for name in ("../x", "gitlab-1/../..", "gitlab-1\nx", "gitlab-1-ABCDEFABCDEF", "gitlab", "-1"):
        env = {"PATH": os.environ["PATH"], "REMOTEFS_CI_DIRECTORY": str(tmp_path), "REMOTEFS_CI_NAME": name}
        done = subprocess.run([str(FILES / "environment"), "absent"], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 75 and "say which job" in done.stderr and not list(tmp_path.iterdir()), shlex.quote(name)
