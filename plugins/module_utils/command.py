# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only file that starts programs.

Every program runs without a shell, in the C locale, with closed standard input, in a process group of its own, and with a time
limit. It dies with the thread that started it, because a merge must not outlive the lock that protects it. Files are passed as
opened descriptors. ``STARTED`` counts the programs; docs/performance.md lists their number for each operation.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import signal
import subprocess
import tempfile
import threading
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Callable, Iterator, Sequence

from . import errors

if TYPE_CHECKING:
    from .pace import Pace

_OUT_OF_MEMORY = ("Cannot allocate memory", "failed to allocate", "Could not allocate", "Out of memory")
_GRACE = 5  # seconds between the signal for an exceeded processor limit and the kill
_LOOK = 0.02  # seconds between two looks at a program whose pace is limited
_SHARE = re.compile(rb"\((\d+\.\d+)/100%\)")
_COUNTERS = re.compile(rb"^(?:rchar|wchar): (\d+)$", re.MULTILINE)
_LAST_WORDS = 64  # bytes
_OUTPUT_KEPT = 64 * 1024  # bytes of each stream that are read back
_STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Limits:
    """Resource limits of a program that reads untrusted content. A stricter limit of this process stays in force."""

    cpu_seconds: int | None = None
    memory: int | None = None  # bytes of address space
    file_size: int | None = None  # the most bytes of a file that the program writes


@dataclass(frozen=True)
class Result:
    """What a program returned: exit status, standard output, standard error; and the limits and command line that it ran with."""

    rc: int
    out: str
    err: str
    limits: Limits = Limits()
    argv: tuple[str, ...] = ()

    @property
    def details(self) -> dict:
        """The keys ``cmd``, ``rc`` and ``stderr`` for the result of a failure. A command line never contains secrets."""
        return {"cmd": " ".join(map(shlex.quote, self.argv)), "rc": self.rc, "stderr": self.err}

    @property
    def reason(self) -> str:
        """The last line that the program printed, for a message."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[-1] if lines else f"it exited with status {self.rc} and said nothing"


class _Counter:
    """Counts the programs that this process has started. ``programs``: name → number."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.programs: dict[str, int] = {}

    def add(self, name: str) -> None:
        """Count one start of program ``name``."""
        with self._lock:
            self.programs[name] = self.programs.get(name, 0) + 1

    @property
    def total(self) -> int:
        """The number of all programs that were started."""
        return sum(self.programs.values())


STARTED = _Counter()


def find(name: str, package: str) -> str:
    """The path of program ``name``.

    :raises ToolMissing: it is not installed. The message names the ``package`` that has it.
    """
    for directory in (os.environ.get("PATH") or _STANDARD_PATH).split(":") + _STANDARD_PATH.split(":"):
        candidate = os.path.join(directory, name)
        if directory and os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    raise errors.ToolMissing(f"program {name}", "it is not installed on this host", f"install it (package {package}) and run the task again")


def run(
    argv,
    *,
    descriptors=(),
    timeout: float | None = None,
    limits: Limits = Limits(),
    cwd: str = "/",
    secret: bytes | None = None,
    pace: Pace | None = None,
) -> Result:
    """Run ``argv`` (the absolute path of a program first) and return its result, whatever its exit status is.

    :param descriptors: opened files that the program inherits with the same numbers.
    :param timeout: seconds after which the whole process group is killed; None for no limit.
    :param cwd: the working directory of the program.
    :param secret: bytes for its standard input, such as a password that must not be visible on a command line.
    :param pace: how fast it moves data, and for how long. It gets no standard input then. :raises OutOfTime: longer than that.
    :raises ToolFailed: it ran longer than ``timeout`` or could not be started.
    """
    STARTED.add(os.path.basename(argv[0]))
    with scratch_file("stdout") as out, scratch_file("stderr") as err:
        process = _started(argv, descriptors, limits, cwd, secret is not None, out, err)
        try:
            if pace is not None:
                with nullcontext() if pace.part is None else pace.part.probed(lambda: _told_by(process.pid, out.fileno())):
                    _wait_at_pace(process, pace)
            else:
                process.communicate(secret, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            _kill(process)
            raise errors.ToolFailed(
                f"program {os.path.basename(argv[0])}",
                f"it did not end within {timeout:g} s and was killed",
                "check the share's server, then run the task again",
                {"cmd": " ".join(map(shlex.quote, argv)), "rc": -signal.SIGKILL, "stderr": _read_back(err)},
            ) from error
        except BaseException:
            _kill(process)
            raise
        return Result(process.returncode, _read_back(out), _read_back(err), limits, tuple(argv))


def _started(argv, descriptors, limits: Limits, cwd: str, is_told: bool, out: IO[bytes], err: IO[bytes]) -> subprocess.Popen:
    """The program, started. :param is_told: it has a standard input. :raises ToolFailed: it could not be started."""
    try:
        # run_command of AnsibleModule cannot pass descriptors or kill a process group, and there is no module object here.
        return subprocess.Popen(  # pylint: disable=ansible-bad-function,consider-using-with
            argv,
            stdin=subprocess.PIPE if is_told else subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            pass_fds=tuple(descriptors),
            cwd=cwd,
            env=_environment(),
            start_new_session=True,
            preexec_fn=_child_setup(limits),  # pylint: disable=subprocess-popen-preexec-fn
        )
    except OSError as error:
        raise _not_started(argv, error) from error


def _not_started(argv: Sequence[str], error: OSError) -> errors.ToolFailed:
    return errors.ToolFailed(f"program {argv[0]}", f"it could not be started ({error.strerror})", "check its installation", {"cmd": " ".join(argv)})


@contextmanager
def running(argv, *, descriptors=(), limits: Limits = Limits()) -> Iterator[Callable[[], Result | None]]:
    """A context in which ``argv`` runs beside this process. It is killed at the end. Yields what returns its result if it has ended.

    :param descriptors: as of :func:`run`. :raises ToolFailed: it could not be started.
    """
    STARTED.add(os.path.basename(argv[0]))
    with scratch_file("stdout") as out, scratch_file("stderr") as err:
        process = _started(argv, descriptors, limits, "/", False, out, err)

        def ended() -> Result | None:
            return None if process.poll() is None else Result(process.returncode, _read_back(out), _read_back(err), limits, tuple(argv))

        try:
            yield ended
        finally:
            _kill(process)


class Detached:
    """A program that outlives this process, as far as this process knows it. What it says of errors is kept until nobody asks any more.

    :param descriptors: opened files that it inherits with the same numbers. :param told: bytes for its standard input.
    :raises ToolFailed: it could not be started.
    """

    def __init__(self, argv: Sequence[str], descriptors: Sequence[int] = (), told: bytes | None = None) -> None:
        STARTED.add(os.path.basename(argv[0]))
        self._argv = tuple(argv)
        try:
            self._process = subprocess.Popen(  # pylint: disable=ansible-bad-function,consider-using-with
                self._argv,
                stdin=subprocess.DEVNULL if told is None else subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=tuple(descriptors),
                cwd="/",
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise _not_started(argv, error) from error
        self.pid = self._process.pid
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it has ended; its result says why
                self._process.stdin.write(told or b"")
                self._process.stdin.close()

    def ended(self) -> Result | None:
        """Its result, if it has ended."""
        if self._process.poll() is None or self._process.stderr is None:
            return None
        return Result(self._process.returncode, "", self._process.stderr.read(_OUTPUT_KEPT).decode("utf-8", "replace"), argv=self._argv)

    def let_go(self) -> None:
        """Do not ask any more. Its errors go nowhere from now on."""
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._process.returncode = 0  # or Python would warn that it still runs


def require_success(result: Result, subject: str) -> Result:
    """Return ``result`` if the program succeeded. :raises NoSpace: the file system is full. :raises ToolFailed: it failed otherwise."""
    if result.rc == 0:
        return result
    if "No space left on device" in result.err or "Disk quota exceeded" in result.err:
        raise errors.NoSpace(subject, "the share is full", "free some space and run the task again, nothing was lost", result.details)
    limit = _limit_met(result)
    if limit:
        remedy = "the image is damaged or hostile (docs/hostile-content.md says how limits are set)"
        raise errors.ToolFailed(subject, f"it was stopped because it {limit}", remedy, result.details)
    raise errors.ToolFailed(subject, f"the program said: {result.reason}", "mend what it names and run the task again, nothing was lost", result.details)


def private_directory() -> str:
    """Make a directory that only this user may open. :raises ToolFailed: this host has no room for temporary files."""
    try:
        return tempfile.mkdtemp(prefix="remotefs-")
    except OSError as error:
        raise _no_temporary(error) from error


def scratch_file(name: str) -> IO[bytes]:
    """Open a file without a name, in memory if the kernel supports that. :raises ToolFailed: there is no room for it."""
    try:
        return os.fdopen(os.memfd_create(f"remotefs-{name}"), "w+b")
    except (AttributeError, OSError):
        pass
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise _no_temporary(error) from error


def _no_temporary(error: OSError) -> errors.ToolFailed:
    where = os.path.dirname(error.filename) if isinstance(error.filename, str) else tempfile.tempdir or os.environ.get("TMPDIR") or "/tmp"
    return errors.ToolFailed(
        f"directory for temporary files {where} of this host",
        f"nothing can be made there ({error.strerror or error})",
        "free some space there or set TMPDIR to another directory, then run the task again",
    )


def _limit_met(result: Result) -> str:
    """The end of a sentence about the resource limit that ended a program; empty if none did."""
    limits = result.limits
    if limits.cpu_seconds is not None and result.rc == -signal.SIGXCPU:
        return f"took more than {limits.cpu_seconds} s of processor time, far more than images of this size need"
    if limits.file_size is not None and (result.rc == -signal.SIGXFSZ or "File too large" in result.err):
        return f"wrote a file of more than {limits.file_size} bytes, which these images cannot need"
    if limits.memory is not None and any(words in result.err for words in _OUT_OF_MEMORY):
        return f"wanted more than {limits.memory} bytes of memory"
    return ""


def _environment() -> dict[str, str]:
    environment = {"LC_ALL": "C", "LANG": "C", "PATH": os.environ.get("PATH") or _STANDARD_PATH}
    for name in ("HOME", "TMPDIR", "LD_PRELOAD"):
        if name in os.environ:
            environment[name] = os.environ[name]
    return environment


def _child_setup(limits: Limits):
    from .process_copies import dying_with_parent  # late: few tasks start programs

    die = dying_with_parent()

    def setup() -> None:
        die()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if limits.cpu_seconds is not None:
            _limit(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + _GRACE)
        if limits.memory is not None:
            _limit(resource.RLIMIT_AS, limits.memory, limits.memory)
        if limits.file_size is not None:
            _limit(resource.RLIMIT_FSIZE, limits.file_size, limits.file_size)

    return setup


def _limit(which: int, soft: int, hard: int) -> None:
    """Set a limit of this process, but never above its present limit, because only root may raise it."""
    _soft, highest = resource.getrlimit(which)
    if highest != resource.RLIM_INFINITY:
        soft, hard = min(soft, highest), min(hard, highest)
    resource.setrlimit(which, (soft, hard))


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        pass  # it is stuck in the kernel on a dead server, and dies when the kernel returns


def _wait_at_pace(process: subprocess.Popen, pace: Pace) -> None:
    """Wait for the end of a program that moves data, and stop it for a while when it is ahead. It dies with this process, stopped or not.

    :raises OutOfTime: the time is over; the program is still there.
    """
    seen = 0
    while True:
        try:
            process.wait(timeout=None if pace.unlimited else _LOOK)
            return
        except subprocess.TimeoutExpired:
            now = max(seen, _moved_by(process.pid))
        pace.count(now - seen)
        seen = now
        if pace.ahead() > 0:
            os.kill(process.pid, signal.SIGSTOP)  # its exit status was not fetched, so that the number is still its own
            pace.moved(0)
            os.kill(process.pid, signal.SIGCONT)


def _moved_by(pid: int) -> int:
    """The bytes that a program has read or written so far, whichever are more (proc_pid_io(5)). 0 where that cannot be seen any more."""
    try:
        with open(f"/proc/{pid}/io", "rb") as stream:
            return max(map(int, _COUNTERS.findall(stream.read())), default=0)
    except OSError:
        return 0


def _told_by(pid: int, out: int) -> float | int:
    """How far a program is: what it last said on its standard output, as qemu-img does with ``-p``, or else the bytes that it has moved."""
    said = _SHARE.findall(os.pread(out, _LAST_WORDS, max(0, os.fstat(out).st_size - _LAST_WORDS)))
    return min(1.0, float(said[-1]) / 100) if said else _moved_by(pid)


def _read_back(stream) -> str:
    stream.seek(0, os.SEEK_END)
    stream.seek(max(0, stream.tell() - _OUTPUT_KEPT))
    return stream.read().decode("utf-8", "replace")
