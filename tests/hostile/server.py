# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs modules for the hostile corpus: a process that imports everything once and forks for each task.

It is started under strace. Tasks come one at a time as JSON lines on standard input, so that all system calls between the
two markers of a task belong to that task and to the programs that it started.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import select
import signal
import sys
import time

COLLECTION = "ansible_collections.remotefs.storage.plugins"
MARKER = "/marker-of-hostile-tests"  # exists nowhere: failing to open it leaves a line in the trace
ADDRESS_SPACE = 16 << 30  # bytes: protects the machine that runs the tests; far above what any task may need


def _import_everything() -> None:
    from ansible.module_utils import basic  # noqa: F401

    _hosts().load()
    package = importlib.import_module(f"{COLLECTION}.module_utils")
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
    modules = importlib.import_module(f"{COLLECTION}.modules")
    for found in pkgutil.iter_modules(modules.__path__):
        importlib.import_module(f"{COLLECTION}.modules.{found.name}")


def _hosts():
    """What is beside this file, which is run as a program."""
    return importlib.import_module("hosts")


def mark(text: str) -> None:
    try:
        os.open(f"{MARKER}/{text}", os.O_RDONLY)
    except FileNotFoundError:
        pass


def _arguments(given: dict) -> contextlib.AbstractContextManager:
    """Where a module finds its arguments; ansible-core 2.17 and older have no helper for that."""
    try:
        from ansible.module_utils.testing import patch_module_args
    except ImportError:
        from ansible.module_utils import basic

        basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": given}).encode()
        return contextlib.nullcontext()
    return patch_module_args(given)


def _work(task: dict, output: int) -> None:
    """In the forked child: be an Ansible module."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    if task["module"] == "inventory":
        _hosts().tell(task["args"])
        return
    module = importlib.import_module(f"{COLLECTION}.modules.{task['module']}")
    with _arguments(task["args"]):
        module.main()


def _run(task: dict) -> dict:
    """Fork, wait for at most ``task["timeout"]`` seconds, tell what was said and what it took."""
    reading, writing = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            _work(task, writing)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(writing)
    said, hung = _read(reading, started + task["timeout"])
    os.close(reading)
    if hung:
        os.kill(pid, signal.SIGKILL)
    _pid, status, usage = os.wait4(pid, 0)
    return {
        "said": said.decode("utf-8", "replace"),
        "hung": hung,
        "status": status,
        "peak": usage.ru_maxrss * 1024,
        "seconds": time.monotonic() - started,
    }


def _read(fd: int, deadline: float) -> tuple[bytes, bool]:
    said = b""
    while True:
        ready, _writable, _broken = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return said, True
        data = os.read(fd, 1 << 16)
        if not data:
            return said, False
        said += data


def main() -> None:
    _import_everything()
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        mark(f"begin/{task['number']}")
        answer = _run(task)
        mark(f"end/{task['number']}")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
