# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One session for each stage of the tests: ``nox -l`` names them, ``nox -s unit`` runs one, ``nox -s "unit(2.21)"`` on one ansible-core.

Words after ``--`` go to pytest or to ansible-test (``nox -s "unit(2.21)" -- -k chains``); the word ``fast`` leaves out what takes long.
`scripts/test` runs many of them in lanes, with a log and a time limit for each.

Most sessions want no environment of nox: the same few under .venv/ serve them all (tests/sessions/machine.py). Twenty of their
own, with the same packages, would make CI some minutes longer. antsibull-nox adds the sessions of antsibull-nox.toml; those that
belong to a stage are lent these environments too. One that a machine cannot run is skipped; its reason is also written to the file that
STAGE_NOT_POSSIBLE names.
"""

# /// script
# dependencies = ["nox>=2025.2.9", "antsibull-nox>=1.0.0"]
# ///

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Callable, Iterator, Mapping

import antsibull_nox
import nox

CHECKOUT = Path(__file__).resolve().parent
sys.path.insert(0, str(CHECKOUT / "tests"))

from sessions import docsite, machine, stages, tree  # noqa: E402

for slow in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):  # either makes Ansible up to three times slower
    os.environ.pop(slow, None)

nox.options.sessions = ["ruff", f"unit({stages.NEWEST})", "lint"]
nox.options.reuse_venv = "yes"


# ------------------------------------------------------------------------------------------- what a stage is


class Work:
    """What a stage works with: nox's session, a directory that is removed afterwards, and whether it is to be fast."""

    def __init__(self, session: nox.Session, scratch: Path) -> None:
        self.session, self.scratch = session, scratch
        self.fast = "fast" in session.posargs
        self.words = [word for word in session.posargs if word != "fast"]

    def run(self, *argv: str | Path, bin: Path | None = None, env: dict | None = None) -> None:
        """Runs a program, of the environment ``bin`` if it has it."""
        program, *rest = map(str, argv)
        ours = {"PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"} if bin else {}
        found = str(bin / program) if bin and (bin / program).exists() else program
        self.session.run(found, *rest, env={**ours, **(env or {})}, external=True)

    def pytest(self, bin: Path, *paths: str, env: dict | None = None) -> None:
        options = ["-n", "2", "--timeout=600", "-p", "no:cacheprovider", "--durations=12", *(["-m", "not slow"] if self.fast else [])]
        self.run("pytest", *options, *paths, *self.words, bin=bin, env=env)


def part_of_today(work: Work, kept: int, parts: int) -> dict:
    """The variable that leaves out some of the tests: of so many parts this many are kept, others from day to day, and at night all."""
    if work.fast or work.words:
        return {}
    today = int(time.strftime("%j"))
    return {"PART_OF_THE_TESTS": f"{','.join(str((today + number) % parts) for number in range(kept))}/{parts}"}


def part_for_core(core: str, parts: int, apart: int = 1) -> dict:
    """The same for one of the older ansible-cores: one part, another one from day to day and for each of them, and at night all.

    :param apart: how many parts lie between those of two cores on one day.
    """
    today = int(time.strftime("%j"))
    return {"PART_OF_THE_TESTS": f"{(apart * stages.CORES.index(core) + today) % parts}/{parts}"}


def say(text: str) -> None:
    """A session's last word to the reader of a long log; scripts/test shows it."""
    print(f":: {text}", flush=True)


def stage(work: Callable | None = None, *, cores: tuple[str, ...] = (), **options: object) -> Callable:
    """Makes a session of a function that takes its Work, and the ansible-core if there are several ``cores``."""
    if work is None:
        return functools.partial(stage, cores=cores, **options)

    def session_function(session: nox.Session, **core: str) -> None:
        with _scratch_directory() as scratch:
            try:
                work(Work(session, scratch), **core)
            except machine.NotPossible as lacking:
                if os.environ.get("STAGE_NOT_POSSIBLE"):
                    Path(os.environ["STAGE_NOT_POSSIBLE"]).write_text(f"{lacking}\n")
                session.skip(str(lacking))

    session_function.__doc__ = work.__doc__
    if cores:
        session_function = nox.parametrize("core", [nox.param(core, id=core) for core in cores])(session_function)
    return nox.session(name=options.pop("name", work.__name__), venv_backend="none", **options)(session_function)


@contextmanager
def _scratch_directory() -> Iterator[Path]:
    """What tests leave goes with the session: many runs would fill the disk."""
    before = os.environ.get("TMPDIR")
    tempfile.tempdir = None
    with tempfile.TemporaryDirectory(prefix="remotefs-", ignore_cleanup_errors=True) as scratch:
        os.environ["TMPDIR"], tempfile.tempdir = scratch, None
        try:
            yield Path(scratch)
        finally:
            tempfile.tempdir = None
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


# ----------------------------------------------------------------------------------------------- with pytest


@stage
def ruff(work: Work) -> None:
    """ruff over everything"""
    work.run("ruff", "check", ".", bin=machine.core_venv(machine.best_core()))
    say("no findings")


@stage(cores=stages.CORES)
def unit(work: Work, core: str) -> None:
    """Pure parts, and parts that need a directory only"""
    bin = machine.core_venv(core)
    machine.need_qemu()
    work.pytest(bin, "tests/unit", env={} if work.words or core == machine.best_core() else part_for_core(core, 2))


@stage(cores=stages.CORES)
def functional(work: Work, core: str) -> None:
    """Through the modules and the real qemu-img, without Ansible"""
    bin = machine.core_venv(core)
    machine.need_qemu()
    if not work.fast:
        machine.try_to_have("acl=setfacl", "nfs-common=mount.nfs", "cifs-utils=mount.cifs", "glusterfs-client=mount.glusterfs", "sshfs=sshfs",
                            "e2fsprogs=mkfs.ext4", "xfsprogs=mkfs.xfs", "btrfs-progs=mkfs.btrfs", "genisoimage=isoinfo",
                            "qemu-system-common=qemu-storage-daemon", "fuse3=fusermount3", "fdisk=sfdisk", "openssh-sftp-server=/usr/lib/openssh/sftp-server")
    if core == machine.best_core():
        machine.axe()  # where tests/functional/browser.py looks for it
        if not work.fast:
            machine.try_to_have("qemu-system-x86=qemu-system-x86_64", "libxml2-utils=xmllint", "chromium=chromium", "prometheus=promtool")
        if work.fast or work.words:
            work.pytest(bin, "tests/functional")
        else:  # most of the slow ones play playbooks
            work.pytest(bin, "-m", "not slow", "tests/functional")
            work.pytest(bin, "-m", "slow", "tests/functional", env=part_of_today(work, 1, 8))
    else:  # what takes long does not depend on Ansible's version, but for the roles' templates
        fast, work.fast = work.fast, True
        work.pytest(bin, "tests/functional", env=part_for_core(core, 8, apart=4))
        work.fast = fast
        work.pytest(bin, "tests/functional/test_roles.py", env=part_for_core(core, 3))


@stage
def property(work: Work) -> None:
    """Random lives beside a model, the codec against broken images, what tasks import"""
    bin = machine.core_venv(machine.best_core())
    machine.need_qemu()
    if not work.fast:
        machine.try_to_have("strace=strace", "curl=curl")
    if work.fast or work.words:
        work.pytest(bin, "tests/property", "tests/fuzz", "tests/benchmark", env={"HYPOTHESIS_PROFILE": "fast" if work.fast else "sample"})
        return
    for marks, part in (("not slow", {}), ("slow", part_of_today(work, 1, 2))):
        work.pytest(bin, "-m", marks, "tests/property", "tests/fuzz", "tests/benchmark", env={"HYPOTHESIS_PROFILE": "sample", **part})


@stage
def hostile(work: Work) -> None:
    """Files that somebody planted on a share, under every task, with every file watched that is opened"""
    bin = machine.core_venv(machine.best_core())
    machine.need_qemu()
    machine.need("strace=strace")
    work.pytest(bin, "tests/hostile", env=part_of_today(work, 1, 2))


@stage
def crash(work: Work) -> None:
    """Operations killed, cut off from power or failed at a sample of their system calls"""
    interrupt(work, part_of_today(work, 1, 3), os.environ.get("CRASH_TIMEOUT", "600"))


@stage
def nightly(work: Work) -> None:
    """The same at every one of them, the kills of `live` at every instant, more lives of `property`, every older ansible-core: some hours"""
    interrupt(work, {"CRASH_SWEEP": "full"}, "7200")
    machine.need("qemu-system-x86=qemu-system-x86_64", "qemu-system-common=qemu-storage-daemon")
    machine.try_to_have(*machine.LIBVIRT)
    bin = machine.core_venv(machine.best_core())
    names = ("test_kills.py", "test_domain_kills.py", "test_domain_guests.py", "test_quiesce_kills.py", "test_power.py")
    work.pytest(bin, "--timeout=7200", *(f"tests/live/{name}" for name in names), env={"LIVE_SWEEP": "full"})
    work.pytest(bin, "tests/live/test_guest_for_long.py", env={"LIVE_SECONDS": "600"})
    work.pytest(bin, "-m", "slow", "tests/functional")
    work.pytest(bin, "tests/hostile", "tests/live")
    work.pytest(bin, "--timeout=7200", "tests/property", env={"HYPOTHESIS_PROFILE": "full"})
    work.pytest(bin, "tests/functional/test_progress.py", env={"PROGRESS": "full"})
    work.pytest(bin, "--timeout=7200", "-k", "killed", "tests/functional/test_pipelines.py", env={"PIPELINE_SWEEP": "full"})
    for core in stages.CORES[1:]:
        work.pytest(machine.core_venv(core), "tests/unit")
        work.pytest(machine.core_venv(core), "-m", "not slow", "tests/functional")
        work.pytest(machine.core_venv(core), "tests/functional/test_roles.py")
    real_guests(work)
    try:
        try_role_export(work, {})
        run_lab(work, "NFS3 CIFS", night={"LAB_PIPELINES": "yes"})
    except machine.NotPossible as error:
        print(f"without the labs: {error}")


@stage
def newqemu(work: Work) -> None:
    """The tests of `live` with the QEMU of the next Debian, which is unpacked below build/ and not installed; part of `scripts/test nightly`"""
    bin = machine.core_venv(machine.best_core())
    machine.need_qemu()
    place = machine.BUILD / "newer-qemu"
    machine.need_debian("a newer QEMU comes from")
    work.run("tests/live/newer-qemu", "trixie", place)
    env = {"PATH": os.pathsep.join((str(bin), str(place / "bin"), os.environ["PATH"])), "LIVE_QEMU": "10"}
    work.pytest(bin, "tests/live", env=env)


@stage
def mutation(work: Work) -> None:
    """A sample of all small changes to the code on which data rests, each of which some test must notice; or of one room: -- plan/merge.py"""
    bin = machine.mutation_venv()
    machine.need_qemu()
    rooms = any(word.endswith(".py") for word in work.words)
    work.run("python", "-m", "mutation", *([] if rooms else ["--minutes", "40"]), *work.words, bin=bin, env={"PYTHONPATH": str(CHECKOUT / "tests")})


def interrupt(work: Work, env: dict, timeout: str) -> None:
    bin = machine.core_venv(machine.best_core())
    machine.need_qemu()
    machine.need("gcc=cc", "libc6-dev=/usr/include/stdio.h")
    work.pytest(bin, f"--timeout={timeout}", "tests/crash", env=env)


@stage
def live(work: Work) -> None:
    """Volumes of running machines: a real QEMU, whose disk is written while tasks work; tasks and machines killed at a sample of instants"""
    bin = machine.core_venv(machine.best_core())
    machine.need_qemu()
    machine.need("qemu-system-x86=qemu-system-x86_64", "qemu-system-common=qemu-storage-daemon")
    machine.try_to_have(*machine.LIBVIRT)
    machine.try_to_have("e2fsprogs=debugfs")  # for disks of a real guest, whose own packages are only downloaded
    work.pytest(bin, "tests/live", env=part_of_today(work, 1, 3))


@stage
def interop(work: Work) -> None:
    """OpenStack Cinder's own NFS driver and the collection, in turns on the same volumes; os-brick on volumes of a directory"""
    bin = machine.cinder_venv()
    machine.need_qemu()
    playbooks = machine.core_venv(machine.best_core())  # beside Cinder, whose environment has no Ansible
    path = os.pathsep.join([str(bin), str(playbooks), os.environ["PATH"]])
    work.pytest(bin, "-W", "ignore::DeprecationWarning", "tests/interop", env={"PATH": path})


@stage
def glance(work: Work) -> None:
    """Volumes from images of a real OpenStack Glance, which runs on this machine"""
    python = machine.find_python(machine.GLANCE_PYTHONS)
    if python is None:
        raise machine.NotPossible(f"no Python {' or '.join(machine.GLANCE_PYTHONS)} for Glance")
    server = machine.venv("glance", python, *machine.GLANCE_PACKAGES, compiled=False)
    bin = machine.core_venv(machine.best_core())
    machine.need_qemu()
    work.pytest(bin, "tests/glance", env={"GLANCE_VENV": str(server.parent)})


@stage
def py38(work: Work) -> None:
    """What runs on managed hosts, imported by the oldest Python that they may have"""
    python = machine.find_python([stages.OLDEST_TARGET_PYTHON])
    if python is None:
        raise machine.NotPossible(f"no Python {stages.OLDEST_TARGET_PYTHON}")
    ansible = next(machine.core_venv(stages.OLDEST).parent.glob("lib/python3*/site-packages/ansible"))
    (work.scratch / "path").mkdir()
    (work.scratch / "path" / "ansible").symlink_to(ansible)
    path = [str(work.scratch / "path"), str(tree.link_tree(work.scratch / "tree"))]
    work.run(python, "tests/sessions/import_all.py", env={"PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"})


# --------------------------------------------------------------------------------------------- with ansible-test


@stage(cores=stages.CORES)
def integration(work: Work, core: str) -> None:
    """ansible-test integration on a directory; on the newest ansible-core all targets, and many processes at once"""
    bin = machine.core_venv(core)
    machine.need_qemu()
    best = core == machine.best_core()
    collections = tree.copy_tree(work.scratch / "tree")
    # Those of the group every_core are all that depends on Ansible's version. Each older one has another half of them from day to day.
    group = sorted(path.parent.name for path in CHECKOUT.glob("tests/integration/targets/*/aliases") if "every_core" in path.read_text())
    older = group[(stages.CORES.index(core) + int(time.strftime("%j"))) % 2 :: 2]
    targets = work.words or (["volume_lifecycle", "refusals"] if work.fast else [] if best else older)
    if work.fast or not best:
        (collections / tree.COLLECTION / "tests/integration/integration_config.yml").write_text(json.dumps({"test_formats": ["raw"]}))
    (work.scratch / "home").mkdir()
    with work.session.chdir(collections / tree.COLLECTION):
        work.run("ansible-test", "integration", "--color", "no", "--python", version_of(bin), *targets, bin=bin, env={"HOME": str(work.scratch / "home")})
    if best and not work.fast and not work.words:
        hammer(work, bin, "--seconds", "20", "hammered")
        hammer(work, bin, "--seconds", "10", "--names", "hammered-one", "hammered-two")
    say(f"targets on a directory: {' '.join(targets) or 'all'}")


def hammer(work: Work, bin: Path, *words: str) -> None:
    """Many processes on few volumes at once; words that begin with "hammered" are shares."""
    given = []
    for word in words:
        if word.startswith("hammered"):
            (work.scratch / word).mkdir()
            word = str(work.scratch / word)
        given.append(word)
    work.run("python", "tests/integration/hammer.py", *given, bin=bin, env={"PYTHONPATH": str(tree.link_tree(work.scratch / "linked"))})


@stage(cores=stages.SANITY_CORES)
def sanity(work: Work, core: str) -> None:
    """ansible-test sanity"""
    machine.sanity_venv(core)
    machine.lend(f"sanity-{core}", f"ansible-test-sanity-{core}")
    tree.let_git_see_it()
    work.session.notify(f"ansible-test-sanity-{core}")


def add_sanity_session(core: str) -> None:
    """The session of antsibull-nox, which copies the collection to where ansible-test wants it."""
    name = f"ansible-test-sanity-{core}"
    words = ["sanity", "--color", "no", "--local", "--requirements", "--python"]

    def before() -> None:
        bin = CHECKOUT / ".nox" / name.replace(".", "-") / "bin"
        words[6:] = [version_of(bin)]  # without it, it runs on every Python that looks as if it were here
        if (machine.VENVS / f"sanity-{core}").exists():  # prepared by the session above; else the machine reaches ansible-test's own host
            home = machine.VENVS / "ansible-test-home"
            subprocess.run([bin / "python", CHECKOUT / "tests" / "sessions" / "give_pip.py", home], check=True)
            os.environ["HOME"] = str(home)

    def after() -> None:
        shutil.rmtree("tests/output", ignore_errors=True)  # of the copy: antsibull-nox 1.10 fails to bring folders in folders home

    description = f"The same through antsibull-nox, without what the session sanity({core}) prepares"
    antsibull_nox.add_ansible_test_session(name=name, description=description, ansible_test_params=words, default=False,
                                           ansible_core_version=core, ansible_core_source="pypi", callback_before=before, callback_after=after)


for core in stages.SANITY_CORES:
    add_sanity_session(core)


def version_of(bin: Path) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([bin / "python", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


# ------------------------------------------------------------------------------------------ linters and documents

antsibull_nox.load_antsibull_nox_toml()


@stage
def tools(work: Work) -> None:
    """The environment of the linters, lent to antsibull-nox's sessions"""
    machine.tools_venv()
    tree.let_git_see_it()
    for name in ("lint", "yamllint", "typing", "ansible-lint", "license-check", "docs-check"):
        machine.lend("tools", name)


@stage(requires=["tools"])
def shellcheck(work: Work) -> None:
    """shellcheck over all shell scripts"""
    scripts = [name for name in tree.known_files() if is_shell_script(CHECKOUT / name)]
    work.run("shellcheck", *scripts, bin=machine.tools_venv())


def is_shell_script(path: Path) -> bool:
    with path.open("rb") as stream:
        first = stream.readline(80)
    return first.startswith(b"#!") and first.rstrip().endswith((b"bash", b"/sh", b" sh"))


@stage(requires=["tools"])
def forms(work: Work) -> None:
    """The workflows and the forms for issues beside GitHub's own schemas"""
    home, bin = CHECKOUT / ".github", machine.tools_venv()
    schemas = {"workflows": "workflows/*.yml", "issue-config": "ISSUE_TEMPLATE/config.yml", "issue-forms": "ISSUE_TEMPLATE/[!c]*.yml"}
    for schema, files in schemas.items():
        work.run("check-jsonschema", "--builtin-schema", f"vendor.github-{schema}", *sorted(home.glob(files)), bin=bin)


# antsibull-nox's own session of this name runs yamllint (also over what plugins document), mypy and a look at its settings.
lint = nox.registry.get()["lint"]
lint.requires = ["tools", "ruff", *lint.requires, "ansible-lint", "license-check", "extra-checks", "shellcheck", "forms"]
lint.func.__doc__ = lint.__doc__ = f"All linters: {', '.join(lint.requires[1:])}"


@stage(requires=["tools", "docs-check"])
def docs(work: Work) -> None:
    """What antsibull-nox checks (docs-check), the changelog, and the site, rendered into build/docs/"""
    bin = machine.tools_venv()
    collections = tree.copy_tree(work.scratch / "tree")
    env = tree.ansible_environment(work.scratch, collections, bin)
    with work.session.chdir(collections / tree.COLLECTION):
        work.run("antsibull-changelog", "lint", bin=bin, env=env)
    changelog = (CHECKOUT / "CHANGELOG.rst").read_text()
    unnamed = [path.stem for path in (CHECKOUT / "plugins" / "modules").glob("*.py") if f"{path.stem} - " not in changelog]
    if unnamed:
        work.session.error(f"CHANGELOG.rst does not name the modules {unnamed}")
    pages = work.scratch / "site"
    reference = pages / docsite.REFERENCE
    reference.mkdir(parents=True)
    work.run("antsibull-docs", "collection", "--use-current", "--fail-on-error", "--squash-hierarchy", "--dest-dir", reference, "remotefs.storage",
             bin=bin, env=env)
    count = docsite.put_together(pages)
    rendered = machine.BUILD / "docs"
    shutil.rmtree(rendered, ignore_errors=True)
    work.run("sphinx-build", "-q", "-W", "--keep-going", "-b", "html", pages, rendered, bin=bin)
    say(f"build/docs/index.html: {count} pages and {len(list(rendered.rglob('*_module.html')))} modules, no warnings")


@stage
def publish(work: Work) -> None:
    """The archive: what it holds, that it installs and documents itself, and that galaxy-importer takes it"""
    bin = machine.tools_venv()
    env = tree.ansible_environment(work.scratch, tree.copy_tree(work.scratch / "tree"), bin)
    work.run("bash", "tests/sessions/publish", work.scratch, bin=bin, env=env)


@stage
def container(work: Work) -> None:
    """The same, and an execution environment that is built from it with podman, and makes volumes; part of `nightly`"""
    machine.need_root()
    machine.need_debian("the base of an execution environment is made of")
    machine.need("mmdebstrap", "podman", "runc")
    bin = machine.tools_venv()
    env = tree.ansible_environment(work.scratch, tree.copy_tree(work.scratch / "tree"), bin)
    work.run("tests/lab/debian-container", "localhost/debian:1", "bash", "tests/sessions/publish", work.scratch, bin=bin, env=env)


# ------------------------------------------------------------------------------------------------------- labs


@stage
def gluster(work: Work) -> None:
    """The lab: a real GlusterFS with two clients, and os-brick on its volumes"""
    packages = ("glusterfs-server=glusterd", "glusterfs-client=mount.glusterfs", "iproute2=ip", "qemu-system-x86=qemu-system-x86_64")
    in_lab("gluster-run", *packages, wanted=os_brick)(work)


@stage
def sshfs(work: Work) -> None:
    """The lab: a real sshfs mount"""
    in_lab("sshfs-run", "openssh-server=sshd", "openssh-client=ssh-keygen", "sshfs=sshfs")(work)


@stage
def ceph(work: Work) -> None:
    """The lab: a real CephFS with two clients of ceph-fuse, and the kernel's own client in user-mode Linux; part of `nightly`"""
    packages = ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph-mds", "ceph-common=ceph", "ceph-fuse", "iproute2=ip", "uuid-runtime=uuidgen")
    in_lab("ceph-run", *packages, brief=("CEPH",))(work)
    try:
        need_user_mode_linux()
    except machine.NotPossible as error:
        raise machine.NotPossible(f"the kernel's own client, without which the rest passed: {error}") from None
    bin = machine.core_venv(machine.best_core())
    kernel = f"modprobe -d /dev/shm/modules-root ceph && exec tests/lab/ceph-run tests/lab/run-playbooks {bin}"
    work.run("tests/lab/uml-run", "-t", str(stages.MINUTES * 60 - 60), "sh", "-c", kernel, env={"LAB_SHARES": "none"})
    say("and mounted with a key by the kernel's client")


@contextmanager
def os_brick() -> Iterator[dict]:
    """The variable that names a Python with os-brick to a lab, which has no network. Without os-brick, all else in the lab runs.

    :raises NotPossible: afterwards, if os-brick is not here.
    """
    try:
        found = {"OS_BRICK_PYTHON": str(machine.cinder_venv() / "python")}
    except SystemExit as error:
        yield {}
        raise machine.NotPossible(f"os-brick, without which the rest of the lab passed: {str(error).splitlines()[0]}") from None
    yield found


def in_lab(
    script: str, *packages: str, wanted: Callable = functools.partial(nullcontext, {}), brief: tuple[str, ...] = ()
) -> Callable[[Work], None]:
    """:param wanted: makes the context in which the lab runs, which gives it environment variables.

    :param brief: the shares on which there are no clones and no refusals.
    """

    def run(work: Work) -> None:
        machine.need_root()
        machine.need_qemu()
        machine.need("qemu-system-common=qemu-storage-daemon", *packages)
        machine.need_fuse()
        bin = machine.core_venv(machine.best_core())
        with wanted() as env:
            work.run(f"tests/lab/{script}", "tests/lab/run-playbooks", bin, *brief, env=env)
        say(f"tests/integration/lab on every share of {script}")

    return run


@stage
def lab(work: Work) -> None:
    """The lab: kernel servers in user-mode Linux, of NFS 4.2, and of NFSv3 and SMB 3.1.1 from day to day in turns (`nightly` takes both); os-brick"""
    today = int(time.strftime("%j"))
    # Such a kernel is slow: clones and refusals run on NFS 4.2 every eighth day, on SMB every fourth one, on both at night, and on NFSv3 never.
    brief = () if today % 8 == 0 else ("NFS4", "CIFS") if today % 4 == 3 else ("NFS4",)
    run_lab(work, ("NFS3", "CIFS")[today % 2], *brief)


def need_user_mode_linux() -> None:
    """:raises NotPossible: it, or a server in it, does not start here."""
    machine.need_root()
    machine.need_qemu()
    if os.uname().machine != "x86_64":
        raise machine.NotPossible("user-mode Linux exists for x86_64 only")
    machine.need("user-mode-linux=linux.uml", "kmod=modprobe", "iproute2=ip", "nfs-kernel-server=rpc.nfsd", "nfs-common=mount.nfs", "rpcbind=rpcbind",
                 "samba=smbd", "samba-common-bin=smbpasswd", "cifs-utils=mount.cifs", "gcc", "libc6-dev=/usr/include/unistd.h",
                 "qemu-system-x86=qemu-system-x86_64")
    # It does not know the registers of every processor to come, and then ends before the first program.
    if subprocess.run(["tests/lab/uml-run", "-t", "120", "true"], stdin=subprocess.DEVNULL, check=False).returncode != 0:
        raise machine.NotPossible("user-mode Linux does not start on this processor")


def run_lab(work: Work, others: str, *brief: str, night: Mapping[str, str] = MappingProxyType({})) -> None:
    """:param others: the shares besides NFS 4.2. :param brief: those on which there are no clones and no refusals. :param night: variables of the lab."""
    need_user_mode_linux()
    bin = machine.core_venv(machine.best_core())
    with os_brick() as env:
        work.run("tests/lab/uml-both", str(stages.MINUTES * 60 - 60), others, "tests/lab/run-playbooks", bin, *brief, env={**env, **night})
    say(f"tests/integration/lab on NFS4 {others}")


def try_role_export(work: Work, env: dict) -> None:
    """The tests of the role export, or the part of them that ``env`` tells."""
    machine.need_root()
    machine.need_qemu()
    machine.need("openssh-server=sshd", "openssh-client=ssh", "iproute2=ip", "openssl=openssl", "xfsprogs=mkfs.xfs", "nfs-kernel-server=exportfs")
    machine.try_to_have("samba=smbd", "samba-common-bin=testparm", "smbclient=smbclient", "ufw=ufw", "glusterfs-server=glusterd",
                        "glusterfs-client=mount.glusterfs")
    bin = machine.core_venv(machine.best_core())
    words = ["--timeout=900", "-p", "no:cacheprovider", "--durations=12", "tests/export", *work.words]
    work.run("tests/lab/nas-run", "-n", "1", bin / "pytest", *words, bin=bin, env=env)


@stage
def nas(work: Work) -> None:
    """The role export on hosts that are reached over SSH: XFS, NFS tables, SMB, ufw; and two of them with one GlusterFS volume, a scenario of molecule"""
    try_role_export(work, part_of_today(work, 1, 8))
    if work.words:
        return
    machine.need("glusterfs-server=glusterd", "glusterfs-client=mount.glusterfs")
    machine.need_fuse()
    with for_molecule(work) as play:
        play("export", "tests/lab/nas-run")
    say("tests/export, and two hosts with one GlusterFS volume")


@stage
def molecule(work: Work) -> None:
    """The scenarios of extensions/molecule, one of them on a real sshfs mount"""
    scenarios = sorted(path.parent.name for path in CHECKOUT.glob("extensions/molecule/*/molecule.yml"))
    if not scenarios:
        work.session.error("no scenarios in extensions/molecule")
    machine.need_qemu()
    with for_molecule(work) as play:
        play("default")
        if os.geteuid() != 0 or not Path("/dev/fuse").is_char_device():
            say("the scenario default; sshfs needs root and /dev/fuse")
            return
        machine.need("openssh-server=sshd", "openssh-client=ssh-keygen", "sshfs=sshfs")
        play("sshfs", "tests/lab/sshfs-run")
    say("the scenarios default and sshfs")


@contextmanager
def for_molecule(work: Work) -> Iterator[Callable[..., None]]:
    """A context with what plays a scenario of extensions/molecule, which it is told by name, and the words of a lab to play it in."""
    bin = machine.tools_venv()
    collections = tree.copy_tree(work.scratch / "tree")
    env = {**tree.ansible_environment(work.scratch, collections, bin), "ANSIBLE_CONFIG": None, "MOLECULE_EPHEMERAL_DIRECTORY": str(work.scratch / "molecule")}

    def play(scenario: str, *lab: str) -> None:
        work.run(*lab, "molecule", "test", "--scenario-name", scenario, bin=bin, env=env)

    with work.session.chdir(collections / tree.COLLECTION):  # where molecule finds extensions/molecule and the settings there
        yield play


@stage
def guest(work: Work) -> None:
    """The scenario of extensions/molecule with real guests: a Debian with systemd and cloud-init in two machines, which are reset"""
    bin = machine.tools_venv()
    collections = tree.copy_tree(work.scratch / "tree")
    with guest_places(work) as places:
        env = guest_environment(work, collections, bin)
        for name, place in places.items():
            env[f"REMOTEFS_{name.upper()}"] = str(place)
        env["MOLECULE_EPHEMERAL_DIRECTORY"] = str(work.scratch / "molecule")
        with work.session.chdir(collections / tree.COLLECTION):
            work.run("molecule", "test", "--scenario-name", "guest", bin=bin, env=env)
    say("two guests booted from clones, were reset and removed")


def real_guests(work: Work) -> None:
    """Twenty seeds, each of which the cloud-init of a real guest reads; and such a guest on a network of libvirt."""
    bin = machine.core_venv(machine.best_core())
    with guest_places(work) as places:
        variables = [word for name, place in places.items() for word in ("-e", f"{name}={place}")]
        env = guest_environment(work, tree.link_tree(work.scratch / "linked"), bin)
        work.run("ansible-playbook", "-i", "localhost,", "tests/integration/playbooks/real_guests.yml", *variables, bin=bin, env=env)
        machine.try_to_have(*machine.LIBVIRT, "dnsmasq-base=dnsmasq", "iptables=iptables")
        work.pytest(bin, "tests/live/test_domain_network.py", env={"LIVE_GUEST": str(places["guest"])})


@stage
def systemd(work: Work) -> None:
    """The roles export, share and collector on a real Debian with systemd and firewalld, which boots once more in between; part of `nightly`"""
    bin = machine.core_venv(machine.best_core())
    older = machine.core_venv("2.19")  # for the Python of the guest
    programs = ("firewalld", "nfs-kernel-server", "nfs-common", "samba", "smbclient", "cifs-utils", "xfsprogs", "qemu-utils", "python3-apt")
    with guest_places(work, *programs) as places:
        key, reach = f"{places['run_dir']}.key", work.scratch / "reach.json"
        env = guest_environment(work, tree.link_tree(work.scratch / "linked"), bin)
        variables = [word for name, place in {**places, "key": key, "reach": reach}.items() for word in ("-e", f"{name}={place}")]
        book = ("ansible-playbook", "-i", "localhost,", "tests/integration/playbooks/systemd_host.yml", *variables)
        work.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        work.run(*book, bin=bin, env=env)
        try:
            (modules,) = (older.parent / "lib").glob("python3.*/site-packages")
            found = {"SYSTEMD_HOST": str(reach), "SYSTEMD_KEY": key, "SYSTEMD_ANSIBLE": str(modules)}
            work.pytest(bin, "-n", "0", "--timeout=3600", "tests/export/test_systemd.py", env=found)
        finally:
            work.run(*book, "-e", "state=absent", bin=bin, env=env)


@contextmanager
def guest_places(work: Work, *programs: str) -> Iterator[dict[str, Path]]:
    """A directory with a real guest, one for volumes and one for machines, whose sockets must have short names.

    :param programs: packages that the guest has besides. :raises NotPossible: no guest can be made.
    """
    machine.need_root()
    machine.need_qemu()
    machine.need_debian("a guest is made of")
    machine.need("mmdebstrap=mmdebstrap", "e2fsprogs=mke2fs", "qemu-system-x86=qemu-system-x86_64", "openssh-client=ssh-keygen")
    place, share = machine.BUILD / ("debian-server" if programs else "debian-guest"), work.scratch / "share"
    if subprocess.run(["tests/lab/debian-guest", place, *programs], stdin=subprocess.DEVNULL, check=False).returncode != 0:
        raise machine.NotPossible("no guest could be made of Debian's packages (the log says why)")
    share.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rfs-", dir="/tmp", ignore_cleanup_errors=True) as short:
        yield {"guest": place, "share": share, "run_dir": Path(short, "run")}


def guest_environment(work: Work, collections: Path, bin: Path) -> dict:
    """Ansible's, without the Python of this host, which a guest has not."""
    found = tree.ansible_environment(work.scratch, collections, bin)
    return {**found, "ANSIBLE_CONFIG": None, "ANSIBLE_PYTHON_INTERPRETER": None, "ANSIBLE_HOST_KEY_CHECKING": "false"}
