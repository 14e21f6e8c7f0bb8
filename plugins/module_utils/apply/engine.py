# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an engine is. An engine carries out the steps of a plan that make or change images; it is chosen for each change.

The executor orders the work: intent, steps, ``.info``, final record, removal of files. It knows engines by these protocols
only. An engine knows how images are reached: as files that nobody has open (:mod:`offline`), or through the machine that has
them open. A new engine is a package beside ``offline`` and a line in :func:`open_engine`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, ContextManager, Iterable, Mapping, NamedTuple, Protocol, Sequence

from ..errors import NeedsRecovery
from ..plan.abilities import OFFLINE

if TYPE_CHECKING:
    from ..model import Image
    from ..plan.abilities import Abilities
    from ..plan.intent import Found, Intent, Resumption
    from ..plan.plan import Plan
    from ..plan.steps import Step
    from ..store.files.directory import ShareDirectory
    from ..store.metadata.records import Disk
    from ..store.volumes.look import Look


@dataclass(frozen=True)
class CopySource:
    """Where a full clone reads: an opened share and the images that make up the point, top first."""

    directory: ShareDirectory
    images: tuple[Image, ...]


class Terms(NamedTuple):
    """Under which conditions an engine works.

    ``locks`` are descriptors of the held volume locks, which the programs that it starts inherit. ``assume_unused``: the user
    vouches that nobody has the images open, where the file system cannot tell. ``warn`` takes sentences for the user. ``look``
    has what is known of a volume under its lock, by its name.
    """

    locks: tuple[int, ...] = ()
    assume_unused: bool = False
    warn: Callable[[str], None] = lambda _text: None
    look: Callable[[str], Look] | None = None


_LOOKING = Terms()


class Session(Protocol):
    """The time in which one plan is carried out. What the plan works on is kept from everybody else until its end.

    It is a context manager: what it holds is given back at the end.
    """

    def __enter__(self) -> Session: ...

    def __exit__(self, *_exc: object) -> None: ...

    def can(self, step: Step) -> bool:
        """Whether the step makes or changes images. All other steps are the executor's."""

    def do(self, step: Step) -> None:
        """Carry out a step. What it has done is durable when it returns, and doing it again gives the same result.

        :raises StorageError, OSError: it could not be done.
        """

    def begun(self, steps: Iterable[Step]) -> ContextManager[Mapping[str, Disk]]:
        """Make the images of later steps under temporary names, so that a record written before them can say which files they
        are: their marks by the names that they will have. Those that were not published by the end of the context go."""

    def closing(self, file: str) -> ContextManager[None]:
        """While the name of ``file`` is removed: nobody opens it any more."""


class Engine(Protocol):
    """How the images of one share are reached. Every method but :meth:`barrier` may raise the errors of the share."""

    name: str  # what an intent records
    abilities: Abilities

    def session(self, plan: Plan, source: CopySource | None = None) -> Session:
        """Begin to carry out a plan. :raises InUse: somebody else has an image open that it needs for itself."""

    def session_to_end(self, resumption: Resumption) -> Session:
        """The same for what ends an interrupted task: it keeps all images of the volume from others."""

    def barrier(self, sessions: Sequence[Session]) -> None:
        """Between ``.info`` and the final record: the images that ``.info`` names become the ones that are used. Of a group all
        at once, which is the instant of its snapshots."""

    def predict(self, plan: Plan) -> None:
        """Fail where :meth:`session` would fail, by asking only."""

    def predict_end(self, resumption: Resumption) -> None:
        """Fail where :meth:`session_to_end` would fail, by asking only."""

    def require_unused(self, file: str, ask_only: bool) -> None:
        """Before ``file`` is read as the present content of a volume. :raises InUse: somebody has it open."""

    def found(self, volume: str, intent: Intent) -> Found:
        """What is so of an interrupted task: the volume's ``.info`` and the files that the intent names, as they are now."""


def open_engine(name: str, directory: ShareDirectory, terms: Terms = _LOOKING) -> Engine:
    """The engine of this name for the images of one share.

    :param terms: may be left out by who only looks.
    :raises NeedsRecovery: an intent names an engine that this release does not have.
    """
    if name != OFFLINE:
        raise NeedsRecovery(
            f"share {directory.share.label}",
            f"an interrupted task used the engine {name!r}, which this release does not have",
            "run the task with the release that began it, or a newer one",
        )
    from .offline.engine import OfflineEngine  # a statement, because Ansible sends what it sees imported

    return OfflineEngine(directory, terms)
