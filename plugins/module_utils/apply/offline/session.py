# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out the steps of one plan on images that nobody has open, with Python and qemu-img."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Iterable, Iterator

from ... import errors, model
from ...pace import UNLIMITED, OutOfTime, Pace
from ...plan.steps import (
    Commit,
    CopyImage,
    CreateClone,
    CreateImage,
    CreateOverlay,
    FreeLeaks,
    Grow,
    Pull,
    ReceiveOverlay,
    ReplaceOverlay,
    Repoint,
    SetAttributes,
    Step,
    Truncate,
    WriteSeed,
)
from ...store import qcow2
from ...store.files import access
from ...store.files.directory import ShareDirectory
from ...store.locks import in_use
from ...store.metadata import records
from ...store.qcow2 import clusters
from ...store.volumes import chains, look, raw_disks
from .. import engine, merges
from . import copying, growing, leaks, making_room, moving, new_image, qemu_img, receiving, seeds
from .guard import Guard, LockBytesReleased

_CUT = "restore the file from a backup; docs/worst-day.md shows how to save what is left of it"


class OfflineSession:
    """The :class:`engine.Session` of the offline engine. The guard already holds the files. They are released at the end.

    :param guard: holds the files that the plan works on.
    :param given_up: files whose data may be discarded first, if a revert finds no space.
    :param pace: how fast data moves, and for how long.
    """

    def __init__(
        self,
        directory: ShareDirectory,
        terms: engine.Terms,
        volume: str,
        guard: Guard,
        source: engine.CopySource | None = None,
        given_up: tuple[str, ...] = (),
        pace: Pace = UNLIMITED,
    ) -> None:
        self._directory, self._terms, self._pace = directory, terms, pace
        self._locks, self._warn = terms.locks, terms.warn
        self._volume = volume
        self._look = terms.look(volume) if terms.look is not None else look.Look(directory, volume)
        self._guard = guard
        self._source = source
        self._given_up = given_up
        self._begun = self._can_be_withdrawn = False
        self._prepared: dict[str, tuple[int, str]] = {}  # files that are not published yet, by final name: (descriptor, temporary name)
        self._methods: dict[type, Callable] = {
            CreateImage: self._create_image,
            CopyImage: self._copy_image,
            WriteSeed: self._write_seed,
            CreateClone: self._create_clone,
            CreateOverlay: self._create_overlay,
            ReceiveOverlay: self._receive_overlay,
            ReplaceOverlay: self._replace_overlay,
            Grow: self._grow,
            Commit: self._commit,
            Truncate: self._truncate,
            Pull: self._pull,
            Repoint: self._repoint,
            FreeLeaks: self._free_leaks,
            SetAttributes: self._set_attributes,
        }

    def can(self, step: Step) -> bool:
        """See :meth:`engine.Session.can`."""
        return type(step) in self._methods

    def do(self, step: Step) -> None:
        """See :meth:`engine.Session.do`."""
        self._pace.step(step.moves())
        try:
            self._methods[type(step)](step)
        except OutOfTime:  # what a pull has copied until then its file shows anyway
            self._can_be_withdrawn = isinstance(step, Pull) and not self._begun
            raise
        self._begun = True

    def __enter__(self) -> OfflineSession:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._terms.end(self._pace)
        self._guard.drop_all()

    @contextmanager
    def closing(self, file: str) -> Iterator[None]:
        """See :meth:`engine.Session.closing`. If an open file can be removed on this share, its lock bytes are held until it is removed.
        So nobody opens it in between."""
        if not self._directory.share.locks_visible:
            self._guard.drop([file])
        yield
        self._guard.drop([file])

    def settle(self, announce: Callable[[str], None]) -> None:
        """Nothing to do: nobody changes the images, whatever ``.info`` says."""

    def withdraw(self) -> bool | None:
        """See :meth:`engine.Session.withdraw`. Nobody has the images open, and what is on the share decides."""
        return True if self._can_be_withdrawn else None

    # -- new files ---------------------------------------------------------------------------------------------------

    @contextmanager
    def prepared(self, steps: Iterable[Step]) -> Iterator[dict[str, records.Disk]]:
        """See :meth:`engine.Session.prepared`. Only base files of new volumes and of full clones are created early."""
        try:
            made = {}
            for step in steps:
                if isinstance(step, (CreateImage, CopyImage)) or (isinstance(step, WriteSeed) and not step.replaces):
                    fd, _temporary = self._prepared[step.file] = self._directory.create_temporary(self._volume)
                    made[step.file] = raw_disks.mark_of(self._directory, fd, step.size)
            yield made
        finally:
            for fd, temporary in self._prepared.values():
                os.close(fd)
                self._directory.discard_temporary(temporary)
            self._prepared = {}

    def _new_file(self, name: str, fill: Callable[[int], None]) -> None:
        """Fill a temporary file, sync it and publish it as ``name``. A failure leaves nothing behind."""
        made = self._prepared.pop(name) if name in self._prepared else self._directory.create_temporary(self._volume)
        temporary = self._filled(made, fill)
        try:
            self._directory.publish(temporary, name)
        except BaseException:
            self._directory.discard_temporary(temporary)
            raise

    def _set_access(self, fd: int, step: CreateImage | CopyImage | CreateClone) -> None:
        """Set owner, group and mode of a new file as the step says."""
        if self._directory.share.keeps_modes:
            root = self._directory.root
            access.set_access_of_new(fd, root.fd, step.uid, step.gid, step.mode, self._warn, root.subject(step.file))

    def _give_access_of(self, original: int, fd: int, file: str) -> None:
        """Give the file behind ``fd``, which will have the name ``file``, the access of the file that it replaces."""
        access.copy_access(original, fd, self._directory.share.keeps_modes, self._warn, self._directory.root.subject(file))

    def _create_image(self, step: CreateImage) -> None:
        def fill(fd: int) -> None:
            self._set_access(fd, step)
            new_image.write(fd, step, self._directory, self._locks, self._warn, self._pace)

        self._new_file(step.file, fill)

    def _copy_image(self, step: CopyImage) -> None:
        source = self._source
        if source is None:
            raise errors.ChainBroken(f"copy {step.file}", "its source is not open", "run the task again")

        def fill(fd: int) -> None:
            self._set_access(fd, step)
            self._copy_content(fd, step, source)
            if source.is_checked:
                receiving.require_same(fd, step, source, self._pace)
            source.directory.verify(source.images[0].file)  # what was read counts if nobody else had it meanwhile

        self._new_file(step.file, fill)

    def _write_seed(self, step: WriteSeed) -> None:
        publish = self._replace if step.replaces else self._new_file
        publish(step.file, partial(seeds.fill, self._directory, step, self._source, self._warn))

    def _copy_content(self, fd: int, step: CopyImage, source: engine.CopySource) -> None:
        if self._copy_as_it_is(fd, step, source):
            return
        self._make_empty(fd, step)
        if self._without_qemu_img(lambda mover: mover.copy(source.directory, source.images, fd, step.format)):
            return
        os.ftruncate(fd, 0)
        self._make_empty(fd, step)
        self._require_whole(source.directory, source.images)
        with qemu_img.OpenedChain(source.directory, source.images, pace=self._pace) as chain:
            qemu_img.convert(chain, fd, step.format, self._locks)

    def _make_empty(self, fd: int, step: CopyImage) -> None:
        if step.format == "raw":
            os.ftruncate(fd, step.size)
        else:
            qcow2.write_image(fd, step.size)

    def _copy_as_it_is(self, fd: int, step: CopyImage, source: engine.CopySource) -> bool:
        """Copy a source byte by byte, if it is one complete file of the same format as the clone. False where it is not, or where the
        copy is too small and cannot grow. Then the new file is empty."""
        if len(source.images) != 1 or source.images[0].format != step.format:
            return False
        (image,) = source.images
        with source.directory.root.opened(image.file) as original:
            in_use.hold_for_reading(original, image.file, source.directory.share)
            if step.format == "qcow2" and not self._codec(image.file, lambda: copying.stands_alone(original)):
                return False
            source.directory.verify(image.file)
            copying.copy_data(original, fd, self._pace)
        if step.format == "raw":
            os.ftruncate(fd, step.size)
            return True
        if image.size == step.size or growing.can_grow(fd, step.size):
            return True
        os.ftruncate(fd, 0)
        return False

    def _fill_overlay(self, fd: int, like: str, step: CreateOverlay | ReplaceOverlay) -> None:
        """Write an empty overlay into a new file, with the access of the file ``like``."""
        with self._directory.root.opened(like) as original:
            self._give_access_of(original, fd, step.file)
        qcow2.write_image(fd, step.size, step.backing_file, step.backing_format)

    def _create_clone(self, step: CreateClone) -> None:
        def fill(fd: int) -> None:
            self._set_access(fd, step)
            with self._directory.root.opened(step.backing_file) as original:
                access.copy_labels(original, fd, self._warn, self._directory.root.subject(step.file))
            qcow2.write_image(fd, step.size, step.backing_file, step.backing_format)

        self._new_file(step.file, fill)

    def _create_overlay(self, step: CreateOverlay) -> None:
        self._new_file(step.file, lambda fd: self._fill_overlay(fd, step.backing_file, step))

    def _receive_overlay(self, step: ReceiveOverlay) -> None:
        source = self._source
        if source is None:
            raise errors.ChainBroken(f"snapshot {step.source}", "its source is not open", "run the task again")
        below = self._chain(step.backing_file)

        def fill(fd: int) -> None:
            with self._directory.root.opened(step.instead_of) as original:
                self._give_access_of(original, fd, step.file)
            qcow2.write_image(fd, step.size, step.backing_file, step.backing_format)
            with LockBytesReleased(self._guard, below):
                receiving.Receiver(self._directory, below, source, self._pace, partial(self._directory.verify, step.file)).fill(fd, step.file)

        self._new_file(step.file, fill)

    def _replace_overlay(self, step: ReplaceOverlay) -> None:
        making = making_room.NewOverlay(self._directory, self._volume, step, self._filled, self._fill_overlay, self._give_access_of)
        self._put_in_place(making.make(self._given_up), step.file)

    def _replace(self, file: str, fill: Callable[[int], None]) -> None:
        """Fill a temporary file, sync it and replace ``file`` with it. A failure leaves nothing behind."""
        self._put_in_place(self._filled(self._directory.create_temporary(self._volume), fill), file)

    def _filled(self, made: tuple[int, str], fill: Callable[[int], None]) -> str:
        """Fill, sync and close a temporary file (descriptor, name). Returns its name."""
        fd, temporary = made
        try:
            try:
                fill(fd)
                self._directory.waiting.sync_file(fd)
            finally:
                os.close(fd)
        except BaseException:
            self._directory.discard_temporary(temporary)
            raise
        return temporary

    def _put_in_place(self, temporary: str, file: str) -> None:
        self._guard.drop([file])
        try:
            self._directory.replace(temporary, file)
        except BaseException:
            self._directory.discard_temporary(temporary)
            raise

    # -- existing files ----------------------------------------------------------------------------------------------

    def _chain(self, file: str) -> tuple[model.Image, ...]:
        """The present chain from ``file`` downwards, top first, read from the headers."""
        return chains.walk(self._directory, self._volume, file, self._look.info, self._look.record)

    def _without_qemu_img(self, move: Callable[[moving.Mover], None]) -> bool:
        """Move clusters without qemu-img. False where the images are not plain or are damaged. qemu-img then reports any damage.

        :raises UnsafeImage: a file was cut short. qemu-img would read the missing part as zeros.
        """
        try:
            move(moving.Mover(self._directory, self._volume, self._guard, self._pace))
        except qcow2.CutShort as error:
            raise errors.UnsafeImage(f"volume {self._volume} on {self._directory.share.label}", f"one of its files is damaged: {error}", _CUT) from error
        except qcow2.Qcow2Error:
            return False
        return True

    def _require_whole(self, directory: engine.Readable, images: Iterable[model.Image]) -> None:
        """Check images before qemu-img reads them. :raises UnsafeImage: a file ends before its data."""
        for image in (image for image in images if image.format == "qcow2"):
            with directory.root.opened(image.file) as fd:
                self._codec(image.file, partial(qcow2.require_whole, fd))

    def _repoint(self, step: Repoint) -> None:
        with self._directory.root.opened(step.file, write=True) as fd:
            self._codec(step.file, lambda: qcow2.repoint(fd, step.backing_file, step.backing_format))

    def _codec(self, file: str, action: Callable[[], Any]) -> Any:
        """The result of ``action``, with errors of the qcow2 codec as errors for the user. :raises UnsafeImage: ``file`` is damaged."""
        try:
            return action()
        except qcow2.Qcow2Error as error:
            raise self._unsafe(file, error) from error

    def _unsafe(self, file: str, error: qcow2.Qcow2Error) -> errors.UnsafeImage:
        advice = _CUT if isinstance(error, qcow2.CutShort) else "nothing was changed; see docs/worst-day.md"
        return errors.UnsafeImage(self._directory.root.subject(file), str(error), advice)

    def _truncate(self, step: Truncate) -> None:
        with self._directory.root.opened(step.file, write=True) as fd:
            os.ftruncate(fd, step.size)
            self._directory.waiting.sync_file(fd)

    def _grow(self, step: Grow) -> None:
        if not step.zero and self._grow_in_place(step):
            return
        images = self._chain(step.file)

        def fill(fd: int) -> None:
            with self._directory.root.opened(step.file) as original:
                self._give_access_of(original, fd, step.file)
                copying.copy_data(original, fd, self._pace)
            with LockBytesReleased(self._guard, images[1:]):
                self._codec(step.file, lambda: growing.grow_copy(self._directory, images, fd, step.size, step.zero, self._locks))

        self._replace(step.file, fill)

    def _grow_in_place(self, step: Grow) -> bool:
        """Grow a file in place. False where data behind its end cannot be removed in place. Then nothing was written."""
        with self._directory.root.opened(step.file, write=True) as fd:
            if step.format == "raw":
                os.ftruncate(fd, step.size)
                self._directory.waiting.sync_file(fd)
                return True
            try:
                if qcow2.grow(fd, step.size):
                    return True
            except clusters.Unsuited:
                return False
            except qcow2.Qcow2Error as error:
                raise self._unsafe(step.file, error) from error
        images = self._chain(step.file)
        with LockBytesReleased(self._guard, images), qemu_img.OpenedChain(self._directory, images, [step.file]) as chain:
            qemu_img.resize(chain, step.file, step.size, self._locks)
        return True

    def _commit(self, step: Commit) -> None:
        images = self._chain(step.file)
        if self._without_qemu_img(lambda mover: mover.commit(images, step.into)):
            return
        self._require_whole(self._directory, images)
        into = next(image for image in images if image.file == step.into)
        if into.format == "qcow2":
            merges.require_settled(self._directory, step.into)
            if into.size < images[0].size:
                with self._directory.root.opened(step.into, write=True) as fd:
                    self._codec(step.into, lambda: qcow2.clear_tail(fd))
        with LockBytesReleased(self._guard, images), qemu_img.OpenedChain(self._directory, images, [step.file, step.into], pace=self._pace) as chain:
            qemu_img.commit(chain, step.file, step.into, self._locks)

    def _pull(self, step: Pull) -> None:
        images = self._chain(step.file)
        if step.backing_file == (images[1].file if len(images) > 1 else None):
            return  # it was done before: there is nothing in between
        if self._without_qemu_img(lambda mover: self._pull_clusters(mover, images, step)):
            return
        self._require_whole(self._directory, images)
        with LockBytesReleased(self._guard, images):
            try:
                with qemu_img.OpenedChain(self._directory, images, [step.file], pace=self._pace) as chain:
                    qemu_img.rebase(chain, step.file, step.backing_file, step.backing_format, self._locks)
            except OutOfTime:
                if not self._is_pulled(step):
                    raise

    def _is_pulled(self, step: Pull) -> bool:
        """Whether qemu-img had written the header, which it does last, when it was stopped. Then its work is done, and is made durable."""
        with self._directory.root.opened(step.file, write=True) as fd:
            os.fsync(fd)
            return bool(self._codec(step.file, lambda: qcow2.read_header(fd)).backing_file == step.backing_file)

    def _pull_clusters(self, mover: moving.Mover, images: tuple[model.Image, ...], step: Pull) -> None:
        mover.pull(images, step.backing_file)
        with self._directory.root.opened(step.file, write=True) as fd:
            qcow2.repoint(fd, step.backing_file, step.backing_format)

    def _free_leaks(self, step: FreeLeaks) -> None:
        leaks.free(self._directory, self._guard, self._chain(step.file)[0], self._locks, self._pace)

    def _set_attributes(self, step: SetAttributes) -> None:
        self._directory.verify(step.file)
        with self._directory.root.opened(step.file) as fd:
            access.set_ownership(fd, step.uid, step.gid, step.mode, self._directory.root.subject(step.file))
            self._directory.waiting.sync_file(fd)
