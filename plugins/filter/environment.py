# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an environment consists of: its workers with their volumes. Documented in environment_*.yml beside this file."""
from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from ansible.errors import AnsibleFilterError

_WORKERS = "remotefs.storage.environment_workers"
_TOLD = "remotefs.storage.environment_told"
_ADDRESSES = "remotefs.storage.environment_addresses"
_LEFT = "remotefs.storage.environment_left"
_SUFFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_SEED = "seed"  # the suffix of the volume that cloud-init reads
_LABEL = "remotefs_worker"  # the label of the first disk of a worker: its index. The inventory knows workers by it
_ADDRESS = "remotefs_address"  # the label that says where its guest is
_LIBVIRT = "libvirt"
_MOST = 10000


def environment_workers(name: object, workers: object, disks: object = (), seeded: bool = False) -> list:
    """The workers of an environment, in order.

    :param name: of the environment. :param workers: how many, or their suffixes. :param disks: further disks of each, with suffix and size.
    :param seeded: whether their machines have the volumes that cloud-init reads.
    :raises AnsibleFilterError: one of them is not what it must be, or two volumes would have one name.
    """
    if not isinstance(name, str) or not _SUFFIX.match(name):
        raise AnsibleFilterError(f"{_WORKERS}: {name!r} is no name of an environment; give letters, digits, '.', '_' and '-'.")
    every, further = _suffixes(workers), _disks(disks)
    found = [_worker(name, suffix, index, further, bool(seeded)) for index, suffix in enumerate(every)]
    names = [one for worker in found for one in worker["volumes"]]
    twice = sorted({one for one in names if names.count(one) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise AnsibleFilterError(f"{_WORKERS}: two volumes would be called {', '.join(twice[:5])}; give other suffixes.")
    return found


def _worker(name: str, suffix: str, index: int, disks: list, seeded: bool) -> dict:
    root = f"{name}-{suffix}"
    others = [{**disk, "name": f"{root}-{disk['suffix']}"} for disk in disks]
    seed = f"{root}-{_SEED}"
    first, names = {"name": root, "labels": {_LABEL: str(index)}}, [root, *(one["name"] for one in others)]
    machine = {"name": root, "volumes": names, **({"seed": seed} if seeded else {})}
    worker = {"name": root, "index": index, "suffix": suffix, "root": first, "disks": others, "seed": seed, "machine": machine}
    return {**worker, "named": {"name": root}, "volumes": [*names, seed]}


def _suffixes(workers: object) -> list:
    """The suffixes of the workers: those that were given, or 00, 01 and so on."""
    if isinstance(workers, (str, int)) and not isinstance(workers, bool) and str(workers).strip().isdigit():
        count = int(workers)
        if count > _MOST:
            raise AnsibleFilterError(f"{_WORKERS}: {count} workers are more than {_MOST}; make several environments.")
        return [f"{number:02}" for number in range(count)]
    if isinstance(workers, (str, bytes, Mapping)) or not isinstance(workers, Iterable):
        raise AnsibleFilterError(f"{_WORKERS}: workers must be a number or a list of suffixes, not {workers!r}.")
    return [_suffix(one, "a worker") for one in workers]


def _suffix(given: object, what: str) -> str:
    text = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
    if not isinstance(text, str) or not _SUFFIX.match(text) or text == _SEED:
        raise AnsibleFilterError(f"{_WORKERS}: {given!r} cannot be the suffix of {what}; give letters, digits, '.', '_' and '-', and not {_SEED}.")
    return str(text)


def _disks(disks: object) -> list:
    """Further disks, each with suffix, size and format."""
    if isinstance(disks, (str, bytes, Mapping)) or not isinstance(disks, Iterable):
        raise AnsibleFilterError(f"{_WORKERS}: disks must be a list of dictionaries with suffix and size, not {disks!r}.")
    found = []
    for disk in disks:
        unknown = sorted(set(disk) - {"suffix", "size", "format"}) if isinstance(disk, Mapping) else ["it"]
        if unknown or not disk.get("size"):
            raise AnsibleFilterError(f"{_WORKERS}: disk {disk!r} must have suffix and size, and may have format.")
        found.append({"suffix": _suffix(disk.get("suffix"), "a disk"), "size": str(disk["size"]), "format": str(disk.get("format") or "raw")})
    return found


def environment_told(workers: Iterable, volumes: Iterable, machines: Iterable = ()) -> list:
    """The workers as the role returns them.

    :param workers: as :func:`environment_workers` returns them. :param volumes: as modules return them; of those that are not there nothing is told.
    :param machines: as remotefs_machine returns them.
    """
    try:
        known, running = {volume["name"]: volume for volume in volumes if "path" in volume}, {one["name"]: one["consumer"] for one in machines}
        return [_told(worker, known, running) for worker in workers]
    except (TypeError, KeyError) as error:
        raise AnsibleFilterError(f"{_TOLD}: the input must be workers, and the argument volumes ({error}).") from error


def _told(worker: Mapping, known: Mapping, running: Mapping) -> dict:
    names = [worker["name"], *(disk["name"] for disk in worker["disks"])]
    disks = [{key: known[name][key] for key in ("name", "path", "format", "size")} for name in names if name in known]
    seed = {key: known[worker["seed"]][key] for key in ("name", "path")} if worker["seed"] in known else None
    if seed is None and disks and "seed" in worker["machine"]:  # a reset does not ask for it; it lies beside the first disk, and has no snapshots
        seed = {"name": worker["seed"], "path": os.path.join(os.path.dirname(disks[0]["path"]), worker["seed"])}
    return {"name": worker["name"], "index": worker["index"], "disks": disks, "seed": seed, "consumer": running.get(worker["name"])}


def environment_addresses(workers: Iterable, machines: Iterable, labels: Mapping = MappingProxyType({}), address: str = "") -> list:
    """The first disks of workers with the labels by which the inventory finds their guests.

    :param workers: as :func:`environment_workers` returns them. :param machines: as remotefs_machine returns them. :param labels: further ones.
    :param address: of the host that runs them; empty: that at which their ports listen.
    """
    try:
        running = {one["name"]: one["consumer"] or {} for one in machines}
        found = [(worker, _address(running.get(worker["name"], {}), address)) for worker in workers]
        return [{**worker["named"], "labels": {**labels, **worker["root"]["labels"], **known}} for worker, known in found]
    except (TypeError, KeyError) as error:
        raise AnsibleFilterError(f"{_ADDRESSES}: the input must be workers, and the first argument machines ({error}).") from error


def environment_left(results: Iterable) -> list:
    """What a task about many snapshots could not do, by volume: name, error_code and msg of each that failed.

    :param results: as remotefs_snapshot returns them.
    """
    try:
        return [{"name": one["volume_name"], "error_code": one["error_code"], "msg": one["msg"]} for one in results if one["failed"]]
    except (TypeError, KeyError) as error:
        raise AnsibleFilterError(f"{_LEFT}: the input must be results of remotefs_snapshot ({error}).") from error


def _address(consumer: Mapping, address: str) -> dict:
    if not consumer.get("port"):
        return {}
    host = consumer["host"] if consumer["kind"] == _LIBVIRT else address or consumer["host"]  # whose guests have addresses of their own
    return {_ADDRESS: f"[{host}]:{consumer['port']}" if ":" in host else f"{host}:{consumer['port']}"}


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict:
        """The filters by name."""
        return {
            "environment_workers": environment_workers,
            "environment_told": environment_told,
            "environment_addresses": environment_addresses,
            "environment_left": environment_left,
        }
