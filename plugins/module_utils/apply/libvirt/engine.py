# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine for images of a domain of libvirt, whether it runs or is off. libvirt does the work on a domain that runs, and never its QEMU
behind libvirt's back. Of a domain that is off the definition follows the volume."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Iterable, Sequence

from ... import attachments, errors, model
from ...plan import abilities, steps
from ...plan.plan import CREATE_SNAPSHOT, Plan
from ...store.files.directory import ShareDirectory
from .. import machine_engine, machine_session, merges, turns
from . import definition, possible
from .connection import Connection, Domain, open_connection
from .domain import VolumeDomain, having, told
from .domain import is_off as is_off_now

if TYPE_CHECKING:
    import socket

    from ...plan.intent import Intent, ObservedState, Resumption
    from ..engine import CopySource, Engine, Session, Terms

_OFF = abilities.Abilities()
_RUNNING = abilities.Abilities(truncates=False, replaces_active=False, removes=False, flattens=False, grows_over_longer=False, pulls=False)


class LibvirtEngine(machine_engine.MachineEngine):
    """The :class:`engine.Engine` for a domain.

    :param files: the engine that works on files. :param connection: to libvirt. None: the engine is only asked what an interrupted task left.
    :param domain: None: there is none of that name. :param is_off: it does not run. :param turn: given back at the end.
    """

    name = abilities.LIBVIRT

    def __init__(
        self,
        directory: ShareDirectory,
        terms: Terms,
        files: Engine,
        connection: Connection | None = None,
        domain: Domain | None = None,
        is_off: bool = True,
        turn: socket.socket | None = None,
    ) -> None:
        super().__init__(terms)
        self._directory, self._files = directory, files
        self._connection, self._domain, self._is_off, self._turn = connection, domain, is_off, turn
        self._named = terms.attachment
        self.attachment: attachments.Attachment | None = None  # if there is no domain, no definition has to follow
        if terms.attachment is not None and domain is not None:
            self.attachment = replace(terms.attachment, boot=_boot())
        self.abilities = _OFF if is_off else _RUNNING

    # -- sessions ----------------------------------------------------------------------------------------------------

    def session(self, plan: Plan, source: CopySource | None = None) -> Session:
        """See :meth:`engine.Engine.session`."""
        machine = self._ready_for(plan)
        if machine is None:
            return self._files.session(plan, source)
        if self._is_off:
            from .shut_off import ShutOffSession

            return ShutOffSession(machine, plan, self._files.session(plan, source), _files_of(plan))
        return self._running(machine, plan, _files_of(plan))

    def session_to_end(self, resumption: Resumption) -> Session:
        """See :meth:`engine.Engine.session_to_end`."""
        machine, known = self._ready_to_end(resumption)
        if machine is None:
            return self._files.session_to_end(resumption)
        if self._is_off:
            from .shut_off import ShutOffSession

            return ShutOffSession(machine, resumption.plan, self._files.session_to_end(resumption), known)
        from ...plan.intent_fields import SWITCHING_SUSPENDED

        return self._running(machine, resumption.plan, known, resumption.phase == SWITCHING_SUSPENDED)

    def _running(self, machine: VolumeDomain, plan: Plan, known: tuple[str, ...], resumes: bool = False) -> Session:
        from .running import RunningSession

        pace = self._terms.pace(machine.subject, plan.steps)
        with told(machine.subject, machine.attachment):
            return RunningSession(machine, plan, self._files.session(machine_session.without_steps(plan)), known, pace, self._terms.end, resumes)

    def barrier(self, sessions: Sequence[Session]) -> None:
        """See :meth:`engine.Engine.barrier`. One call switches all disks of the domain or none."""
        from .running import RunningSession

        live = [session for session in sessions if isinstance(session, RunningSession)]
        if not live or self._domain is None:
            return
        machine = live[0].machine
        with told(machine.subject, machine.attachment):
            todo = [(session, pair) for session in live for pair in [session.next_overlay()] if pair is not None]
            if todo and len(todo) < len([session for session in live if session.takes]):
                machine.refuse("the guest uses the overlays of a part of its group only", "run the task again")
            if todo:
                overlays = dict(pair for _session, pair in todo)
                others = [target for target in definition.targets(self._domain.xml(False)) if target not in overlays]
                with RunningSession.resting([session for session, _pair in todo], self._quiescing):
                    self._domain.take_snapshot(definition.overlays_xml(overlays, others))
            for session, (_target, path) in todo:
                session.require_used(path)
        for session in live:
            session.go_on()

    def withdraw(self, sessions: Sequence[Session]) -> bool:
        """See :meth:`engine.Engine.withdraw`."""
        from .running import RunningSession

        live = [session for session in sessions if isinstance(session, RunningSession)]
        return bool(live) and all(session.withdraw() for session in live)

    # -- questions ---------------------------------------------------------------------------------------------------

    def written(self, volume: model.Volume, files: Sequence[str]) -> str | None:
        """See :meth:`engine.Engine.written`."""
        machine = self._machine(volume)
        if machine is None or self._is_off:
            return None
        with told(machine.subject, machine.attachment):
            tops = [disk.images[0].path for disk in machine.disks(False, volume.own_files)]
            return next((file for path in tops for file in [machine.file_of(path, files)] if file is not None), None)

    def thaw(self, agent: str, volume: str) -> None:
        """See :meth:`engine.Engine.thaw`."""
        if self._domain is None or self._is_off:
            return
        from .freezing import thaw_left

        subject = f"volume {volume} on {self._directory.share.label}"
        with told(subject, self._named or attachments.Attachment()):
            thaw_left(self._domain, agent, subject, self._terms.warn)

    def predict(self, plan: Plan, foretold: bool = False) -> None:
        """See :meth:`engine.Engine.predict`. Of a volume whose state is only predicted nothing can be asked but the guest."""
        if foretold:
            machine = self._machine(plan.before)
            if machine is not None and plan.before is not None and not self._is_off:
                with told(machine.subject, machine.attachment):
                    if machine.disks(False, plan.before.own_files):
                        self._require_guest(plan, machine)
        elif self._ready_for(plan) is None or self._is_off:
            self._files.predict(plan)

    def predict_end(self, resumption: Resumption) -> None:
        """See :meth:`engine.Engine.predict_end`."""
        if self._ready_to_end(resumption)[0] is None or self._is_off:
            self._files.predict_end(resumption)

    def require_unused(self, file: str, check_only: bool) -> None:
        """See :meth:`engine.Engine.require_unused`."""
        machine_engine.require_readable(self._files, file, check_only)

    def observe(self, volume: str, intent: Intent) -> ObservedState:
        """See :meth:`engine.Engine.observe`. If the domain was about to get another active image, it is asked which one it has."""
        found = self._files.observe(volume, intent)
        if not intent.phase or self._named is None or not self._named.has_definition or intent.after is None:
            return found
        from .switched import is_switched

        return replace(found, switched=is_switched(self._directory, self._named, intent.before, intent.after))

    def close(self) -> None:
        """See :meth:`engine.Engine.close`."""
        super().close()
        if self._connection is not None:
            self._connection.close()
        if self._turn is not None:
            self._turn.close()

    # -- readiness ---------------------------------------------------------------------------------------------------

    def _machine(self, volume: model.Volume | None) -> VolumeDomain | None:
        if volume is None or self._domain is None or self._named is None:
            return None
        return VolumeDomain(self._domain, self._named, self._directory, volume)

    def _ready_for(self, plan: Plan) -> VolumeDomain | None:
        """The domain, if the plan needs it. None: it works on the files alone.

        :raises InUse: the domain is not ready, or somebody else has the volume.
        """
        if plan.before is None or not any(step.touches() for step in plan.steps):
            return None
        machine, files = self._machine(plan.before), plan.before.files
        if machine is None:
            self._require_nobody(plan.before, plan.before.own_files)
            return None
        with told(machine.subject, machine.attachment):
            if self._terms.mixed and not machine.disks(self._is_off, plan.before.own_files):
                self._require_nobody(plan.before, plan.before.own_files)
                return None
            if self._is_off:
                disk = machine.require_definable(plan.before.own_files, files[:1])
                if plan.after is None:
                    remedy = "detach it (virsh detach-disk --config), and run the task without attachment"
                    machine.refuse(f"{machine.attachment} has it as disk {disk.target}", remedy)
                return machine
            disk, _top = machine.require_ready(files, files[:1])
            machine.require_chain(disk, files)
            possible.require_possible(plan, machine, disk, files[0])
            self._require_guest(plan, machine)
        return machine

    def _require_guest(self, plan: Plan, machine: VolumeDomain) -> None:
        from .freezing import DomainFreezer  # late: hardly any task freezes a guest

        self._ask_guest(plan, machine.subject, lambda: DomainFreezer(machine.domain, machine.attachment.uri, self._terms.patience))

    def _ready_to_end(self, resumption: Resumption) -> tuple[VolumeDomain | None, tuple[str, ...]]:
        """The domain, and all files that may be in the chain of its disk. None: the work is ended on the files alone.

        :raises InUse: the domain is not ready. :raises NeedsRecovery: it is on another image than the interrupted task can have left.
        """
        plan = resumption.plan
        before, after = plan.before, plan.after
        volumes = [volume for volume in (before, after) if volume is not None]
        known = tuple(dict.fromkeys([*resumption.images, *_files_of(plan)]))
        machine = self._machine(before)
        if machine is None or before is None:
            if before is not None:
                self._require_nobody(before, known)
            return None, known
        self.abilities.require_for(plan)
        tops = {*resumption.images[:1], *(volume.active.file for volume in volumes)}
        if plan.operation == CREATE_SNAPSHOT:
            tops |= {file for volume in volumes for file in volume.files[:2]}
        with told(machine.subject, machine.attachment):
            if self._terms.mixed and not machine.disks(self._is_off, known):
                self._require_nobody(before, known)
                return None, known
            if self._is_off:
                machine.require_definable(known, tops)
                return machine, known
            disk, top = machine.require_ready(known, tops, job=True)
            self._require_flushed(resumption, machine, disk)
            self._require_right(plan, machine, top)
            possible.require_possible(plan, machine, disk, top)
        return machine, known

    def _require_right(self, plan: Plan, machine: VolumeDomain, top: str) -> None:
        """The guest writes to the file that the end of the work needs."""
        after = plan.after
        if after is None:
            return
        if plan.operation == CREATE_SNAPSHOT:
            if not merges.is_taken(plan) and top != after.active.file:
                machine.refuse(f"the domain writes to {top}, which would be removed", "shut the domain off, and run the task again")
            return
        expected = machine.volume.active.file if any(isinstance(step, (steps.Commit, steps.Pull, steps.Repoint)) for step in plan.steps) else after.active.file
        if top != expected:
            raise errors.NeedsRecovery(
                machine.subject,
                f"{machine.attachment} writes to {top}, and the volume's data is in {expected}: it was started on the wrong file",
                f"shut it off, and decide which of the two counts; see docs/worst-day.md. Then start it on {expected}",
            )

    def _require_flushed(self, resumption: Resumption, machine: VolumeDomain, disk: definition.Disk) -> None:
        """libvirt ends a merge by itself, and QEMU shows it before its tables are on the disk. They are when the task has looked at them. Other data is
        certain to be there once the task has synced it, or while the host runs on.

        :raises InUse: the domain runs on what a merge has left that QEMU or the host did not outlive.
        """
        then, seen = resumption.attachment, [machine.file_of(image.path, resumption.images) for image in disk.images]
        merged = [file for file in resumption.images if file not in seen]
        if not merged or resumption.plan.operation == CREATE_SNAPSHOT:
            return
        why = "the host was started anew" if then is not None and then.boot and then.boot != _boot() else ""
        try:
            self._require_tables(machine.volume, resumption.images, [file for file in seen if file is not None])
        except errors.ToolFailed:
            why = why or "QEMU ended"
        if why:
            machine.refuse(
                f"{why} while {model.listed(merged)} was merged, and the domain has run since on what may be incomplete",
                "shut it off, and run the task again, which merges it again; then look whether what the guest has written since is right",
            )

    def _require_tables(self, volume: model.Volume, files: Sequence[str], seen: Sequence[str]) -> None:
        """Check that images under the active one hold what was merged into them. An active one was flushed before the guest could use it, and may
        have lost some to the guest's discards.

        :param files: of the interrupted plan, active first. :param seen: those of the domain. :raises ToolFailed: one does not.
        """
        formats = {image.file: image.format for image in volume.chain}
        layers: list[str] = []
        for position, file in enumerate(files):
            if file not in seen:
                layers.append(file)
                continue
            there = [layer for layer in layers if self._directory.root.status(layer) is not None]
            if there and len(layers) < position and formats.get(file) == "qcow2":
                merges.require_held(self._directory, file, there)
            layers = []

    def _require_nobody(self, volume: model.Volume, files: Iterable[str]) -> None:
        """There is no domain of that name, or it does not have the volume.

        :raises InUse: another domain has it, so that its definition would not follow; or the share cannot show whether somebody has.
        """
        if self._connection is None or self._named is None:
            return
        subject = f"volume {volume.name} on {self._directory.share.label}"
        with told(subject, self._named):
            others = [domain.name for domain in having(self._connection, self._directory, files)]
        if others:
            named = f"there is no {self._named}" if self._domain is None and not self._terms.mixed else f"{self._named} does not"
            remedy = "work on this volume by itself, with the domain that has it" if self._terms.mixed else "give the domain that has it"
            raise errors.InUse(subject, f"domain {model.listed(others)} has it as a disk, and {named}", remedy)
        if not self._directory.share.locks_visible:
            problem = f"{self._named} does not have it as a disk, and this file system cannot tell whether somebody has the images open"
            raise errors.InUse(subject, problem, "name the domain; or make sure that nobody uses it, leave attachment out and say assume_unused: true")

    def give_up_domain(self) -> None:
        """It has none of the volumes. From now on this is the engine for volumes that no domain has."""
        if self._turn is not None:
            self._turn.close()
        self._domain, self._turn, self._is_off, self.attachment, self.abilities = None, None, True, None, _OFF

    def has_some(self, volumes: Sequence[model.Volume]) -> bool:
        """Whether the domain has one of these volumes."""
        for volume in volumes:
            machine = self._machine(volume)
            if machine is not None:
                with told(machine.subject, machine.attachment):
                    if machine.disks(self._is_off, volume.own_files):
                        return True
        return False


def _boot() -> str:
    """What tells this boot of the host from all others."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        return stream.read().strip()


def _files_of(plan: Plan) -> tuple[str, ...]:
    """All files of the volume's chain, before and after."""
    return tuple(dict.fromkeys(file for volume in (plan.before, plan.after) if volume is not None for file in volume.files))


def attached(
    directory: ShareDirectory, terms: Terms, files: Engine, volumes: Sequence[model.Volume], are_group: bool, known: Sequence[model.Volume] = ()
) -> Engine:
    """The engine for the domain that the user names.

    :param volumes: what is worked on. If a domain that may have only some has none of them, the engine is for those that no domain has.
    :param are_group: the domain must have some of them. :param known: what is worked on, where nothing of that is to be judged.
    :raises InUse: it has not, or another task works with the domain. :raises ToolFailed: libvirt cannot be reached.
    """
    attachment = terms.attachment or attachments.Attachment()
    subject = str(attachment)
    with told(subject, attachment):
        connection = open_connection(attachment.uri)
        try:
            engine = _found(directory, terms, files, connection, _named(connection, directory, attachment, volumes or known))
        except BaseException:
            connection.close()
            raise
    try:
        if terms.mixed and volumes and attachment.domain and not engine.has_some(volumes):
            if are_group:
                problem = f"{attachment} does not have any of them as a disk"
                raise errors.InUse(f"group of {len(volumes)} volumes", problem, "name the domain that uses them, or leave attachment out if none does")
            engine.give_up_domain()
    except BaseException:
        engine.close()
        raise
    return engine


def _found(directory: ShareDirectory, terms: Terms, files: Engine, connection: Connection, attachment: attachments.Attachment) -> LibvirtEngine:
    terms = terms._replace(attachment=attachment)
    domain = connection.find(attachment.domain) if attachment.domain else None
    if domain is None:
        return LibvirtEngine(directory, terms, files, connection)
    turn = turns.take(f"domain-{domain.uuid}", str(attachment), terms.patience)
    try:
        is_off = is_off_now(domain, attachment)
    except BaseException:
        if turn is not None:
            turn.close()
        raise
    return LibvirtEngine(directory, terms, files, connection, domain, is_off, turn)


def _named(connection: Connection, directory: ShareDirectory, attachment: attachments.Attachment, volumes: Sequence[model.Volume]) -> attachments.Attachment:
    """The attachment with the name of the domain that has one of the volumes as a disk, if the user has not named one.

    :raises InUse: several have.
    """
    if attachment.domain:
        return attachment
    names = sorted({domain.name for volume in volumes for domain in having(connection, directory, volume.own_files)})
    if len(names) > 1:
        raise errors.InUse(
            str(attachment), f"these domains have them as disks: {model.listed(names)}", "name one, and work on the volumes of each by themselves"
        )
    return replace(attachment, domain=names[0]) if names else attachment
