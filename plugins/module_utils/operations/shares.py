# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The use cases of shares: bring one or many into a state, and describe them. Observe, plan, apply.

The failure of one share among many is not raised: it becomes part of that share's result.
"""
from __future__ import annotations

from .. import errors, limited, model
from ..mounts import applier, mount_warnings, observer, parameters, planner, probe, record, resolve, shares_file, tables, types
from ..mounts import options as mount_options
from ..mounts.steps import MountShare, Remount, Step, Unmount, WriteFstab
from ..store.metadata import maintenance
from . import share_marks

_OF_SERVER = ("total", "free", "used", "writable", "maintenance")  # of a share that answers


def ensure_all(params: dict, check_mode: bool = False) -> dict:
    """Bring each share of ``shares`` and ``shares_file`` into its desired state.

    :param params: the options of remotefs_share. Every option has a key.
    :return: ``changed``, ``failed``, ``results`` (one dict per share in input order, as :func:`ensure` returns it without ``diff`` and ``warnings``),
        ``shares`` (the ``share`` of each result that has one), ``actions``, ``diff`` and ``warnings`` (each a list for all shares). If a share
        failed, also the keys of :func:`together.failure_of_all`.
    :raises StorageError: the shares file cannot be read.
    """
    items: list[dict] = list(params["shares"] or ())
    warnings: list[str] = []
    if params["shares_file"]:
        listed, warnings = shares_file.read(params["shares_file"])
        items += listed
    results: list[dict] = []
    number_of_path: dict[str, int] = {}
    for number, item in enumerate(_with_defaults(items, params), 1):
        results.append(_ensure_item(item, check_mode, number_of_path, number))
    item_errors = [result.pop("error", None) for result in results]
    failed = [([result["name"]], error) for result, error in zip(results, item_errors) if error is not None]
    combined = {
        "changed": any(result["changed"] for result in results),
        "failed": bool(failed),
        "results": results,
        "shares": [result["share"] for result in results if result["share"]],
        "actions": [action for result in results for action in result["actions"]],
        "diff": [diff for diff in (result.pop("diff") for result in results) if diff],
        "warnings": warnings + [warning for result in results for warning in result.pop("warnings")],
    }
    if failed:
        from ..together import failure_of_all  # late: most tasks succeed

        combined.update(failure_of_all("shares", len(results), failed))
    return combined


def _with_defaults(items: list[dict], params: dict) -> list[dict]:
    """The items of a bulk list. A value that an item does not give comes from the task."""
    defaults = {key: value for key, value in params.items() if key not in ("shares", "shares_file")}
    defaults.update(src=None, path=None)
    whole = []
    for item in items:
        own = {key: value for key, value in item.items() if value is not None}
        inherited = {**defaults, "type": None} if own.get("fstype", defaults["fstype"]) != defaults["fstype"] else defaults  # it belongs to its fstype
        whole.append({**inherited, **own})
    return whole


def ensure(params: dict, check_mode: bool = False) -> dict:
    """Bring one share into ``params["state"]``.

    :param params: the options of remotefs_share. Every option has a key.
    :return: ``name`` and ``src`` (texts), ``changed`` and ``failed``, ``actions`` (the steps as :meth:`Step.describe` returns them),
        ``share`` (the share as the module documents it, None after a failure), ``diff`` (``before`` and ``after`` as :func:`planner.state_of`
        returns them, and their headers) and ``warnings`` (texts). If ``failed``, also ``error_code``, ``msg`` and the details of the error.
    """
    result = _ensure_item(params, check_mode, {}, 1)
    result.pop("error", None)
    return result


def _ensure_item(params: dict, check_mode: bool, number_of_path: dict, number: int) -> dict:
    """As :func:`ensure`, with the exception under ``error`` if the item failed.

    :param number_of_path: the number of the item for each path so far, so that a second item for the same path is refused.
    """
    name = params["src"] or params["path"] or f"item {number}"
    result = {"name": name, "src": params["src"], "changed": False, "failed": False, "actions": [], "share": None, "diff": {}, "warnings": []}
    done: list = []
    try:
        _ensure(params, check_mode, number_of_path, number, result, done)
    except Exception as error:  # an unexpected exception, too, is the failure of this share only
        known = errors.as_storage_error(error, f"share {name}")
        result.update(failed=True, error_code=known.error_code, msg=str(known), error=known, **known.details)
    result["actions"] = [step.describe() for step in done]
    result["changed"] = bool(done)
    return result


def _ensure(params: dict, check_mode: bool, number_of_path: dict, number: int, result: dict, done: list) -> None:
    deadline = _deadline(params)
    mounts = tables.read_mounts()
    entries = tables.parse_fstab(tables.read_fstab(resolve.clean_path(params["fstab"], "fstab")))
    mounts = _after_automounts(params, mounts, entries, deadline)
    desired = parameters.read_wish(params, mounts, entries)
    result["src"], subject = desired.src, f"share {desired.name}"
    share_marks.check(params, desired)
    if number_of_path.setdefault(desired.path, number) != number:
        raise errors.InvalidParameter(subject, f"item {number_of_path[desired.path]} of the list has the same path {desired.path}", "name every share once")
    if not desired.row.mount_type and desired.state in planner.KEPT:
        resolve.check_mounted(desired.path, resolve.follow(desired.path, mounts), mounts, entries, resolve.clean_path(params["mount_base"], "mount_base"))
    observed = observer.observe(desired, mounts, entries, deadline)
    steps = planner.plan(desired, observed)
    result["diff"] = {
        "before": planner.state_of(observed),
        "after": planner.state_after(observed, desired, steps),
        "before_header": desired.path,
        "after_header": desired.path,
    }
    _check_source(desired, observed, steps, deadline)
    applier.check_possible(steps, subject)
    if check_mode:
        done.extend(steps)
    for step in () if check_mode else steps:
        try:
            as_done = applier.apply(step, deadline, params["attempts"], subject)
            if as_done is not None:
                done.append(as_done)
        except errors.StorageError:
            done[:] = applier.undo(done, planner.restore(desired, observed), observed.credentials, deadline, subject)
            _record(desired, observed, steps, failed=True)
            raise
    if not check_mode:
        _record(desired, observed, steps)
    if params.get("maintenance") is not None:
        done.extend(share_marks.bring(params, desired, bool(steps), check_mode, result["diff"]))
    result["warnings"] = _warnings(desired, observed, steps, check_mode) + mount_warnings.of_the_mount(desired, params["path"], mounts, entries, done)
    result["share"] = _report(desired, steps, check_mode, deadline, params["mount_base"])


def _after_automounts(
    params: dict, mounts: tuple[tables.Mount, ...], entries: tuple[tables.Entry, ...], deadline: probe.Deadline
) -> tuple[tables.Mount, ...]:
    """The mounts after autofs has mounted what the task is about. A share that is to be unmounted or removed is not accessed for that."""
    paths = [parameters.share_path(params, mounts, entries)] if params["state"] in planner.MOUNTED else []
    src = params["src"]
    if src and params["path"] and resolve.is_directory_name(src):  # a bind mount is recognised by the directory that its source is
        paths.append(resolve.clean_path(src, "src"))
    for path in filter(None, paths):
        mounts = resolve.after_automount(path, mounts, deadline.left, f"share {src or path}")
    return mounts


def _record(desired: planner.DesiredShare, observed: planner.Seen, steps: tuple[Step, ...], failed: bool = False) -> None:
    """Write the record of the mount if the steps mounted the share. Remove it if the share is unmounted or its state is uncertain."""
    if not any(isinstance(step, (MountShare, Remount, Unmount)) for step in steps):
        return
    mounts = tables.read_mounts()
    mount = None if failed else tables.mounted_at(mounts, resolve.follow(desired.path, mounts))
    record.write(desired.path, mount, planner.effective_options(desired, observed), desired.src)


def _deadline(params: dict) -> probe.Deadline:
    for key in ("timeout", "attempts"):
        if params[key] < 1:
            raise errors.InvalidParameter(f"{key} {params[key]}", "it is less than 1", "give a positive number")
    return probe.Deadline(params["timeout"])


def _check_source(desired: planner.DesiredShare, observed: planner.Seen, steps: tuple[Step, ...], deadline: probe.Deadline) -> None:
    """Check that the source of a bind mount is a directory. No other kind of source can be checked before mounting."""
    if not desired.row.local or not any(isinstance(step, (MountShare, WriteFstab)) for step in steps) or observed.mount is not None:
        return
    if desired.src is not None and not probe.directory_state(desired.src, deadline.left, f"share {desired.src}")[1]:
        raise errors.MountFailed(f"share {desired.src}", "there is no such directory to show elsewhere", "create it, or correct src")


def _warnings(desired: planner.DesiredShare, observed: planner.Seen, steps: tuple[Step, ...], check_mode: bool) -> list[str]:
    mounting = any(isinstance(step, (MountShare, Remount)) for step in steps)
    wanted = desired.state in planner.MOUNTED and bool(desired.row.mount_type)
    warnings = []
    if mounting and observed.mount is None and not observed.empty:
        warnings.append(f"{desired.path} was not empty: what lies there is hidden while {desired.name} is mounted")
    mounts = tables.read_mounts()
    real = resolve.follow(desired.path, mounts)
    if wanted and not (check_mode and steps):
        mount = tables.mounted_at(mounts, real)
        live = () if mount is None else tables.options_of(mount, desired.row)
        drifted = mount_options.drift(desired.row, planner.effective_options(desired, observed), live)
        if drifted:
            warnings.append(f"share {desired.name}: {', '.join(drifted)} not in force; {_why_not_in_force(desired, observed)}")
    if desired.state == "absent" and observed.trigger:
        warnings.append(f"autofs still manages {desired.path}: {desired.name} is mounted at the next access, unless the automounter's own table is changed")
    here = tables.enclosing(mounts, real)
    if not desired.row.mount_type and here is not None and not here.is_trigger and resolve.is_unknown_file_system(here):
        remedy = "tasks that change an image need assume_unused: true"
        warnings.append(f"share {desired.name}: it is unknown whether other hosts have images open on its file system ({here.fstype}); {remedy}")
    return warnings


def _why_not_in_force(desired: planner.DesiredShare, observed: planner.Seen) -> str:
    if observed.trigger:
        return "the automounter's own table decides (systemctl daemon-reload after a change of fstab), and state: remounted makes it mount the share again"
    apart = f" ({desired.row.separating} separates the two)" if desired.row.separating else ""
    return f"another mount of the same export on this host decides{apart}, or the server"


def _report(desired: planner.DesiredShare, steps: tuple[Step, ...], check_mode: bool, deadline: probe.Deadline, mount_base: str) -> dict:
    """The share as it is now, with the keys of :func:`_share_dict`; in check mode as far as it is known."""
    mounts = tables.read_mounts()
    real = resolve.follow(desired.path, mounts)
    mount = tables.mounted_at(mounts, real)
    if not desired.row.mount_type:
        if not probe.directory_state(real, deadline.left, f"path {desired.path}")[1]:
            return _share_dict(desired.path, desired.path, desired.row.name)
        return _with_capacity(_share_dict(desired.path, desired.path, desired.row.name, mounted=True), real, deadline)
    if mount is None or (check_mode and any(isinstance(step, (MountShare, Unmount)) for step in steps)):
        coming = check_mode and desired.state in planner.MOUNTED
        opts = ",".join(mount_options.for_mount(mount_options.complete(desired.row, desired.options))) if coming else ""
        return _share_dict(desired.src, desired.path, desired.row.name, opts, mounted=coming)
    opts = resolve.public_options(mount, desired.row)
    share = _share_dict(desired.src or observer.source_of(mount, mounts), desired.path, desired.row.name, opts, mounted=True)
    return _with_capacity(share, real, deadline) if desired.state != "present" else share


def _share_dict(src: str | None, path: str | None, fstype: str | None, opts: str = "", mounted: bool = False) -> dict:
    """A share as the modules return it. Sizes are bytes; they, ``writable`` and ``maintenance`` are None until :func:`_with_capacity` sets them."""
    return {"src": src, "path": path, "fstype": fstype, "opts": opts, "mounted": mounted, **dict.fromkeys(_OF_SERVER)}


def _with_capacity(share: dict, path: str, deadline: probe.Deadline) -> dict:
    room, marked = probe.bounded(lambda: (probe.room(path), maintenance.is_marked(path)), deadline.left, f"share {share['src']}")
    share.update(total=room.total, free=room.free, used=room.used, writable=room.writable, maintenance=marked)
    return share


def describe_all(names: list[str] | str | None, mount_base: str, fstab: str, timeout: float, contents: bool = False) -> list[dict]:
    """Describe the shares ``names`` (one or a list). None: each mounted share, which is each network file system, and each mount under ``mount_base``.

    :param timeout: seconds that a share may be silent. :param contents: also the keys of :func:`share_contents.of_share`.
    :return: one dict per share: ``src``, ``path``, ``fstype``, ``opts`` (separated by commas), ``mounted``, ``total``, ``free`` and ``used`` (bytes),
        ``writable`` and ``maintenance``. A share that cannot be read has ``error_code`` and ``msg`` as well, and None for the unknown values.
    :raises StorageError: the names or the table of mounts cannot be read.
    """
    return [_describe(name, mount_base, fstab, timeout, contents) for name in named(names, mount_base)]


def named(names: list[str] | str | None, mount_base: str) -> list[str]:
    """The shares that an option names, or all mounted ones for None. :raises StorageError: the names or the table of mounts cannot be read."""
    return _mounted_paths(mount_base) if names is None else resolve.share_names(names)


def _mounted_paths(mount_base: str) -> list[str]:
    mounts = tables.read_mounts()
    base = mount_base.rstrip("/")
    paths = []
    for mount in mounts:
        wanted = types.by_kernel_type(mount.fstype) is not None or (mount.path != base and tables.is_within(mount.path, base))
        if wanted and mount.path not in paths and tables.mounted_at(mounts, mount.path) == mount:
            paths.append(mount.path)
    return paths


def look(name: str, mount_base: str, fstab: str, timeout: float) -> tuple[dict, model.Share | None]:
    """A share as :func:`describe_all` returns it, without what it holds, and the share itself. That is None if it cannot be read."""
    share = _share_dict(name, name if resolve.is_directory_name(name) else None, None)
    try:
        found = resolve.find_share(name, mount_base, fstab, timeout)
        share.update(src=found.source, path=found.path, fstype=found.fstype, opts=found.options, mounted=True)
        return _with_capacity(share, found.path, probe.Deadline(timeout)), found
    except (errors.StorageError, OSError) as error:
        return _with_error(share, error), None


def _describe(name: str, mount_base: str, fstab: str, timeout: float, contents: bool) -> dict:
    share, found = look(name, mount_base, fstab, timeout)
    if not contents or found is None:
        return share
    from . import share_contents  # late: it reads volumes

    subject, room = f"share {share['src']}", (share["total"], share["free"])
    try:
        return {**share, **limited.within(timeout, lambda alive: share_contents.of_share(found, *room, alive), subject)}
    except (errors.StorageError, OSError) as error:  # such as of a user who may not read what lies there
        known = errors.as_storage_error(error, subject)
    if isinstance(known, errors.ShareNotMounted):  # its server died after it had told the capacity
        return _with_error({**share, **dict.fromkeys(_OF_SERVER)}, known)
    return {**share, **share_contents.unknown(str(known))}


def _with_error(share: dict, error: Exception) -> dict:
    known = errors.as_storage_error(error, f"share {share['src']}")
    return {**share, "error_code": known.error_code, "msg": str(known)}
