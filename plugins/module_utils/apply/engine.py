# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an engine is. An engine carries out the steps of a plan that make or change images. One is chosen for each change.

The executor orders the work: intent, steps, ``.info``, final record, removal of files. It knows engines only by the protocols in
this file. An engine knows how to reach images: as files that nobody has open (:mod:`offline`), or through the machine that has
them open. A new engine is a package next to ``offline`` and a line in :func:`open_engine`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable, ContextManager, Iterable, Iterator, Mapping, NamedTuple, Protocol, Sequence

from .. import errors
from ..pace import Pace
from ..plan.abilities import LIBVIRT, OFFLINE, QMP

if TYPE_CHECKING:
    from .. import attachments, model, progress
    from ..plan.abilities import Abilities
    from ..plan.intent import Intent, ObservedState, Resumption
    from ..plan.plan import Plan
    from ..plan.steps import Step
    from ..store.files.directory import Directory, ShareDirectory
    from ..store.metadata import records
    from ..store.volumes.look import Look

NEVER, REQUIRED = "false", "true"  # values of quiesce. The third one, "auto", is neither


class Readable(Protocol):
    """Where images are read: ``root`` has them. A share's directory is one, and so is a folder of images that have just arrived."""

    @property
    def root(self) -> Directory:
        """The images' directory."""

    @property
    def share(self) -> model.Share:
        """The share that it is on."""

    def verify(self, name: str) -> None:
        """Check that the task may still rely on a file there. :raises LockTimeout: it may not."""


@dataclass(frozen=True)
class CopySource:
    """What a copy reads: a place, and the images there that make up the source, top first. ``known``: only what a replica lacks is copied.
    ``is_checked``: what was written is read again and compared. ``sums`` gets the checksums of what was read again, by file, and
    ``marks`` what the file was then (see :mod:`unchanged`). ``content`` is what a seed is to hold, which comes from no image. It may be secret."""

    directory: Readable
    images: tuple[model.Image, ...]
    known: Known | None = None
    is_checked: bool = False
    sums: dict[str, str] = field(default_factory=dict)
    marks: dict[str, tuple[int, int]] = field(default_factory=dict)
    content: bytes | None = field(default=None, repr=False)


class Known(NamedTuple):
    """What a replica has already of the point that it receives: ``source`` is a file of the source's chain, and ``replica`` one of its own
    chain, which shows the same. None for both: nothing. ``sent`` takes the number of bytes that were written."""

    source: str | None
    replica: str | None
    sent: Callable[[int], None]


class Side(NamedTuple):
    """Images that are compared with others, top first. What ``known`` shows, a file of them, is known to be the same on both sides (None:
    nothing is)."""

    directory: ShareDirectory
    images: tuple[model.Image, ...]
    known: str | None = None


class Difference(NamedTuple):
    """The first ``offset`` in bytes at which two points show different content, or at which one of them ends; ``files``: of each, the file that
    holds that byte."""

    offset: int
    files: tuple[str, str]


class Written(NamedTuple):
    """How a point is written out: the ``format``, whether clusters are ``compressed``, and the ``name`` of the file."""

    format: str
    compressed: bool
    name: str


class Sums(NamedTuple):
    """Hex digits of sha256: of a file, and of what a guest sees of it (None: it was not asked for)."""

    file: str
    content: str | None


class Shown(Protocol):
    """A point of a volume, opened for reading. ``size`` is its virtual size in bytes."""

    size: int

    def pieces(self) -> Iterator[bytes]:
        """What a guest sees, from the beginning to the end. :raises LockTimeout: somebody else may have had the files."""

    def write(self, fd: int, written: Written) -> Sums:
        """Write it into an empty file. The caller makes that durable. :raises StorageError, OSError: it is not complete."""

    def compare(self, fd: int, image_format: str) -> Sums | None:
        """The checksums of a file that is an image of this format and shows the same; None if it is not."""

    def verify(self) -> None:
        """:raises LockTimeout: somebody else may have had the files, so that what was read does not count."""


class Quiesced(NamedTuple):
    """Whether the guest was frozen at the instant of a snapshot, and why not."""

    quiesced: bool
    reason: str = ""

    def describe(self) -> dict:
        """As modules return it: ``quiesced``, and if not, ``quiesce_reason``."""
        return {"quiesced": True} if self.quiesced else {"quiesced": False, "quiesce_reason": self.reason}


UNUSED = Quiesced(False, "no machine has it open")


class Terms(NamedTuple):
    """The conditions under which an engine works.

    ``locks`` are descriptors of the held volume locks. Programs that the engine starts inherit them. ``assume_unused``: the user
    promises that nobody has the images open, for file systems where this cannot be checked. ``warn`` takes sentences for the
    user. ``look`` takes the name of a volume and returns what was read of it under its lock. ``attachment`` is the
    machine that has the images open, as the user names it; if nobody listens there, errors say so.
    ``drop_bitmaps``: its dirty bitmaps may be lost. ``mixed``: of the volumes that are worked on the machine has some open, and nobody the
    others. ``speed`` (bytes a second, 0: any) and ``timeout`` (seconds, None: any) are about the data that a plan moves. ``patience`` is
    for how many seconds to wait until another task has done with the monitor. ``quiesce`` is the option of that name: whether the guest
    is frozen for a snapshot. ``agent`` is the socket of its agent's channel, if the user names it. ``meter``
    notes how far the work is, if anybody watches.
    """

    locks: tuple[int, ...] = ()
    assume_unused: bool = False
    warn: Callable[[str], None] = lambda _text: None
    look: Callable[[str], Look] | None = None
    attachment: attachments.Attachment | None = None
    drop_bitmaps: bool = False
    mixed: bool = False
    speed: int = 0
    timeout: float | None = None
    patience: float = 0
    quiesce: str = NEVER
    agent: str | None = None
    meter: progress.Meter | None = None

    def pace(self, subject: str, steps: Iterable[Step], sleep: Callable[[float], None] = time.sleep) -> Pace:
        """The pace of a plan's data. :param subject: how messages name the volume."""
        part = self.meter.part(step.moves() for step in steps) if self.meter is not None else None
        return Pace(subject, self.speed, self.timeout, sleep, part)

    def end(self, pace: Pace) -> None:
        """The plan that :meth:`pace` was told of has ended."""
        if self.meter is not None and pace.part is not None:
            self.meter.end(pace.part)


_LOOKING = Terms()


class Session(Protocol):
    """One plan being carried out. A session keeps everybody else away from the images that the plan works on.

    It is a context manager. At its end it releases what it holds.
    """

    def __enter__(self) -> Session: ...

    def __exit__(self, *_exc: object) -> None: ...

    def can(self, step: Step) -> bool:
        """Whether the step makes or changes images. The executor itself does all other steps."""

    def do(self, step: Step) -> None:
        """Carry out a step. The result is durable when this returns. Doing the step again gives the same result.

        :raises StorageError, OSError: the step could not be done.
        """

    def prepared(self, steps: Iterable[Step]) -> ContextManager[Mapping[str, records.Disk]]:
        """Create the files of these steps under temporary names. So a record that is written before the steps can identify the files.

        The context has the marks of these files, by their final names. Files that no step has published by its end are removed.
        """

    def closing(self, file: str) -> ContextManager[None]:
        """A context in which the caller removes the name of ``file``. Nobody can open it any more meanwhile."""

    def settle(self, announce: Callable[[str], None]) -> None:
        """Called when all image steps are done, directly before ``.info`` is written: bring the images to where the files that ``.info``
        names now and those that it will name are both right, and keep them so until :meth:`Engine.barrier` or the session's end.

        :param announce: records durably that the plan is in this phase, which an intent can have.
        """

    def withdraw(self) -> bool | None:
        """Take back what a plan that failed has made ready. True if it is certain that no data was moved and that a machine goes on with
        the old active image. Then the plan can be undone. False where that is not known. None where what is on the share decides."""


class Engine(Protocol):
    """A way to reach the images of one share. Every method except :meth:`barrier` may raise the errors of the share."""

    name: str  # what an intent records
    abilities: Abilities
    attachment: attachments.Attachment | None  # the machine that has the images open, which an intent records

    @property
    def agent(self) -> str | None:
        """How the guest is reached that is going to be frozen, which an intent records. None if none is."""

    def session(self, plan: Plan, source: CopySource | None = None) -> Session:
        """Begin to carry out a plan. ``source`` is what a full clone is copied from.

        :raises InUse: somebody else has an image open that the plan needs for itself.
        """

    def session_to_end(self, resumption: Resumption) -> Session:
        """Begin to end an interrupted task. The session keeps others away from all images of the volume.

        :raises InUse: somebody else has one open, or writes to one.
        """

    def barrier(self, sessions: Sequence[Session]) -> None:
        """Switch to the images that ``.info`` names. The executor calls this between ``.info`` and the final record.

        The images of a group are switched all at once. This is the instant of the group's snapshots.
        """

    def withdraw(self, sessions: Sequence[Session]) -> bool:
        """Take back what was made ready for the snapshots of a group, as :meth:`Session.withdraw` does. True if it is certain that no
        machine uses any of the overlays, and that there was a machine which could."""

    def written(self, volume: model.Volume, files: Sequence[str]) -> str | None:
        """Which of these files of a volume a guest writes to. None if it is none of them, or no machine can be asked."""

    def thaw(self, agent: str, volume: str) -> None:
        """Let a guest go on that an interrupted task may have left frozen. :param agent: as an intent records it."""

    def quiesced(self, volume: str) -> Quiesced:
        """Whether the guest was frozen for the snapshot of this volume that was taken or predicted."""

    def predict(self, plan: Plan, foretold: bool = False) -> None:
        """Check whether :meth:`session` would fail, without taking anything.

        :param foretold: the volume is not yet as the plan has it before. That is only predicted.
        :raises InUse: it would.
        """

    def predict_end(self, resumption: Resumption) -> None:
        """Check whether :meth:`session_to_end` would fail, without taking anything. :raises InUse: it would."""

    def require_unused(self, file: str, check_only: bool) -> None:
        """Check that nobody uses ``file`` before it is read as the present content of a volume.

        :param check_only: take nothing, not even for a moment. :raises InUse: somebody has it open.
        """

    def observe(self, volume: str, intent: Intent) -> ObservedState:
        """What an interrupted task left: the volume's ``.info`` and the files that the intent names, as they are now."""

    def close(self) -> None:
        """Give up what the engine has open. It is not used any more."""


def open_engine(name: str, directory: ShareDirectory, terms: Terms = _LOOKING) -> Engine:
    """The engine of this name for the images of one share.

    :param terms: not needed by a caller who only reads.
    :raises NeedsRecovery: this release does not have the engine that an intent names.
    """
    if name == QMP:
        from .live.engine import QmpEngine

        return QmpEngine(directory, terms, open_engine(OFFLINE, directory, terms))
    if name == LIBVIRT:
        from .libvirt.engine import LibvirtEngine

        return LibvirtEngine(directory, terms, open_engine(OFFLINE, directory, terms))
    if name != OFFLINE:
        raise errors.NeedsRecovery(
            f"share {directory.share.label}",
            f"an interrupted task used the engine {name!r}, which this release does not have",
            "run the task with the release that began it, or a newer one",
        )
    from .offline.engine import OfflineEngine  # an import statement, because Ansible sends only modules that it sees imported

    return OfflineEngine(directory, terms)


def attached_engine(
    directory: ShareDirectory, terms: Terms, volumes: Sequence[model.Volume] = (), are_group: bool = False, known: Sequence[model.Volume] = ()
) -> Engine:
    """The engine for images that ``terms.attachment`` has open. If nobody is there, it is the one for images that nobody has open; then the
    user's word that they are unused does not count.

    :param volumes: what is worked on, where the machine may have some of it open (``terms.mixed``). If it has none, that is as if nobody
        was there. :param are_group: then that is an error. :param known: what is worked on, where nothing of that is to be judged.
    :raises InUse: whoever is there does not answer, or the share cannot show whether somebody has the images open.
    """
    terms = terms._replace(assume_unused=False)
    files = open_engine(OFFLINE, directory, terms._replace(attachment=None))
    if terms.attachment is not None and terms.attachment.has_definition:
        from .libvirt.engine import attached as attached_to_domain

        return attached_to_domain(directory, terms, files, volumes, are_group, known)
    from .live.engine import attached

    return attached(directory, terms, files, volumes, are_group) or open_engine(OFFLINE, directory, terms)


def shown(directory: ShareDirectory, images: Sequence[model.Image], terms: Terms, pace: Pace, is_present: bool, hashes_content: bool) -> ContextManager[Shown]:
    """A context with what these images show, top first. Nobody can begin to write to them meanwhile, where the share shows locks.

    :param is_present: they are a volume's present, which somebody may be writing. :param hashes_content: see :class:`Sums`.
    :raises InUse: somebody writes to them. :raises ChainBroken, UnsafeImage, ToolFailed: they cannot be read.
    """
    from .offline.exporting import opened

    return opened(directory, images, terms, pace, is_present, hashes_content)


def difference(one: Side, other: Side, pace: Pace) -> Difference | None:
    """The first difference of two points. None: they are the same.

    :raises InUse: somebody writes to them. :raises ChainBroken, UnsafeImage, ToolFailed: they cannot be read.
    """
    from .offline.comparing import first_difference

    return first_difference(one, other, pace)


def layer_sum(layer: Side, pace: Pace) -> str | None:
    """The checksum of what a file holds by itself (see :class:`offline.layer_sums.LayerSum`): the topmost of these images, all of which may lie
    below it. None: its tables do not tell it.

    :raises InUse: somebody writes to it. :raises ChainBroken, UnsafeImage, ToolFailed: it cannot be read.
    """
    from .offline.layer_sums import sum_of_layer

    return sum_of_layer(layer.directory, layer.images, pace)


def try_out(directory: ShareDirectory, volume: str) -> None:
    """Find out what the file system of a share can do, and keep that there: see :func:`offline.trying.try_out`."""
    from .offline import trying  # late: only the first change of a share does it

    trying.try_out(directory, volume)


def predict_end(engine: Engine, resumption: Resumption) -> None:
    """Check whether an interrupted task can be ended, without taking anything. :raises InUse: it cannot."""
    then = resumption.attachment
    if then is not None and then.has_definition and engine.name != LIBVIRT:
        raise errors.InUse(
            f"volume {resumption.plan.volume}",
            f"a task was interrupted that worked with {then}, of which the definition has to follow the volume",
            "run the task on that domain's host with that attachment; if the domain is gone for good, recover: discard gives the record up",
        )
    engine.predict_end(resumption)
    if resumption.begins:
        engine.predict(resumption.plan)
