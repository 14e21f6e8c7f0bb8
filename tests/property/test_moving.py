# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Moves clusters between files of chains that QEMU's tools made: nothing is lost, nothing else is written, tables stay sound."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.apply.offline import allocate, copying
from ansible_collections.remotefs.storage.plugins.module_utils.errors import NoSpace
from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2.cluster_writer import ClusterWriter
from ansible_collections.remotefs.storage.plugins.module_utils.store.qcow2.clusters import QcowLayer, big_endian

from .examples import FAST, property_settings
from .moving_world import CLEAN, KIB, LEAKS, OWN, Chain, LayerPlan, pattern, run

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")

MIB = 1 << 20
_MOST_CLUSTERS = {9: 2048, 12: 300, 16: 24, 21: 4}
_PLAIN = [""] * 6 + ["lazy_refcounts=on", "compat=0.10", "compat=0.10"]
_STRANGE = ["refcount_bits=1", "refcount_bits=8", "refcount_bits=64", "extended", "snapshot", "bitmap", "compressed", "other clusters"]


# -- any chains ------------------------------------------------------------------------------------------------------------


@st.composite
def writes(draw: Any, bits: int, size: int, value: int, plain: bool) -> tuple[str, ...]:
    cluster, found = 1 << bits, []
    kinds = ["data", "data", "data", "zeros", "zeros", "unmapped", "discarded"] + ([] if plain else ["compressed"])
    for number in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(kinds))
        aligned = kind != "data" or draw(st.booleans())
        grain = cluster if aligned else 512
        offset = draw(st.integers(0, max(0, (size - 1) // grain))) * grain
        longest = max(1, min(size // grain, _MOST_CLUSTERS[bits] * cluster // 3 // grain))
        length = min(draw(st.integers(1, longest)) * grain, size - offset)
        if kind == "compressed":
            length = min(length, cluster)
        name = {"data": f"write -P {value + number}", "zeros": "write -z", "unmapped": "write -z -u", "discarded": "discard"}
        if length > 0:
            found.append(f"{name.get(kind, f'write -c -P {value + number}')} {offset} {length // 512 * 512 or 512}")
    return tuple(found)


@st.composite
def chains(draw: Any, strange: bool) -> list[LayerPlan]:
    bits = draw(st.sampled_from([9, 9, 12, 16, 16, 21] if strange else [9, 9, 12, 16, 16]))
    depth = draw(st.integers(2, 6))
    unit = draw(st.sampled_from([512, 1 << bits]))
    most = _MOST_CLUSTERS[bits] << bits
    size = draw(st.integers(1, max(1, most // unit // 2))) * unit
    plans = []
    for number in range(depth):
        if number and draw(st.integers(0, 3)) == 0:
            size += draw(st.integers(1, max(1, most // unit // 2))) * unit
        plans.append(draw(layers(bits, size, 10 * number + 1, not number, strange and draw(st.integers(0, 4)) == 0)))
    return plans


@st.composite
def layers(draw: Any, bits: int, size: int, value: int, lowest: bool, odd: bool) -> LayerPlan:
    done = draw(writes(bits, size, value, not odd))
    if lowest and draw(st.integers(0, 2)) == 0:
        return LayerPlan(max(1, size - draw(st.integers(0, 511))), "raw", "", done)
    strange = draw(st.sampled_from(_STRANGE)) if odd else ""
    if strange == "extended":
        bits = max(bits, 14)
    elif strange == "other clusters":
        bits = draw(st.sampled_from([9, 16]))
    options = [f"cluster_size={1 << bits}"]
    if strange.startswith("refcount"):
        options.append(strange)
    elif strange == "extended":
        options.append("extended_l2=on")
    elif strange not in ("snapshot", "bitmap"):
        options += [one for one in [draw(st.sampled_from(_PLAIN))] if one]
    if lowest and bits < 20:
        options.append(f"preallocation={draw(st.sampled_from(['off', 'off', 'metadata', 'falloc', 'full']))}")
    more = strange if strange in ("snapshot", "bitmap") else ""
    longer = draw(st.sampled_from([0, 0, 0, 512, 1 << bits, (3 << bits) // 2 // 512 * 512]))
    return LayerPlan(size, "qcow2", ",".join(options), done, more, strange == "compressed", longer)


def move(plans: list[LayerPlan], verb: str, first: int, second: int, short: int) -> bool:
    """Make the chain and do one thing to it; the numbers choose the files."""
    with tempfile.TemporaryDirectory(prefix="remotefs-property-") as directory:
        chain = Chain(Path(directory), plans)
        if short and verb != "commit" and short < plans[-1].size:
            chain.add(LayerPlan(short * 512))
        files = chain.files
        top = first % (len(files) - 1)
        lower = top + 1 + second % (len(files) - top - 1)
        if verb == "commit":
            return chain.commits_well(files[top], files[lower])
        if verb == "pull":
            return chain.pulls_well(files[top], files[lower] if lower > top + 1 else None)
        if verb == "grow":
            return chain.grows_well(files[top], (1 + second) * 512)
        return chain.copies_well(files[top], verb)


VERBS = st.sampled_from(["commit", "commit", "commit", "pull", "pull", "raw", "qcow2", "grow", "grow"])
FILES = st.integers(0, 60)


def sometimes_short(draws: int = 12) -> st.SearchStrategy[int]:
    return st.integers(0, draws).map(lambda drawn: drawn if drawn > draws - 2 else 0)


@given(chains(strange=False), VERBS, FILES, FILES)
@property_settings(12 if FAST else 60)
def test_plain_chains(plans: list[LayerPlan], verb: str, first: int, second: int) -> None:
    event(f"{verb}: {'done' if move(plans, verb, first, second, 0) else 'left to qemu-img'}")


@pytest.mark.slow
@given(chains(strange=True), VERBS, FILES, FILES, sometimes_short())
@property_settings(15 if FAST else 300)
def test_any_chains(plans: list[LayerPlan], verb: str, first: int, second: int, short: int) -> None:
    event(f"{verb}: {'done' if move(plans, verb, first, second, short) else 'left to qemu-img'}")


# -- what must be done here ------------------------------------------------------------------------------------------------


def default_chain(path: Path, base: str = "qcow2", size: int = 3 * MIB, options: str = "") -> Chain:
    """Four files; data over data, data over zeros, zeros over data, zeros over nothing, and what each has for itself."""
    c = 64 * KIB
    beneath = (pattern(1, 0, 20 * c), pattern(2, 30 * c, c + 512))
    lower = (pattern(3, 2 * c, c), f"write -z -u {4 * c} {2 * c}", f"write -z {6 * c} {c}", pattern(4, 21 * c + 1024, 512))
    upper = (
        pattern(5, 4 * c, c),
        f"write -z -u {2 * c} {c}",
        pattern(6, 10 * c, 3 * c),
        f"write -z -u {25 * c} {c}",
        f"discard {12 * c} {c}",
    )
    active = (pattern(7, 11 * c, 2 * c), f"write -z -u {8 * c} {c}")
    return Chain(
        path,
        [
            LayerPlan(size, base, options if base == "qcow2" else "", beneath),
            LayerPlan(size, options=options, writes=lower),
            LayerPlan(size + MIB + 512, options=options, writes=upper),
            LayerPlan(size + 2 * MIB, options=options, writes=active),
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [OWN, "", "lazy_refcounts=on", "cluster_size=4096"])
@pytest.mark.parametrize("base", ["raw", "qcow2"])
def test_plain_chains_are_moved_here(tmp_path: Path, base: str, options: str) -> None:
    """Otherwise the properties above could hold because nothing is done."""
    pairs = list(itertools.combinations(range(4), 2))
    for top, lower in pairs:
        for verb in ("commit", "pull"):
            path = tmp_path / f"{verb}-{top}-{lower}"
            path.mkdir()
            chain = default_chain(path, base, options=options)
            file, onto = chain.files[top], chain.files[lower]
            if verb == "commit":
                assert chain.commits_well(file, onto), (file, onto)
            else:
                below = onto if lower > top + 1 else None
                assert chain.pulls_well(file, below), (file, below)


def test_copies_are_made_here(tmp_path: Path) -> None:
    for base, image_format in itertools.product(["raw", "qcow2"], ["raw", "qcow2"]):
        path = tmp_path / f"{base}-{image_format}"
        path.mkdir()
        chain = default_chain(path, base)
        assert chain.copies_well(chain.files[0], image_format)


@pytest.mark.parametrize("preallocation", ["metadata", "falloc", "full"])
def test_preallocated_files_take_clusters(tmp_path: Path, preallocation: str) -> None:
    chain = Chain(
        tmp_path,
        [
            LayerPlan(4 * MIB, options=f"preallocation={preallocation}", writes=(pattern(1, 0, MIB),)),
            LayerPlan(4 * MIB, writes=(pattern(2, 512 * KIB, MIB), f"write -z -u {64 * KIB} {64 * KIB}")),
        ],
    )
    assert chain.commits_well("f1", "f0")


def test_zeros_that_kept_their_cluster_at_the_end_of_the_file(tmp_path: Path) -> None:
    """The last cluster in use is one that reads as zeros: its place is not free."""
    zeroed = (pattern(1, 0, 64 * KIB), pattern(2, 64 * KIB, 128 * KIB), f"write -z {64 * KIB} {128 * KIB}")
    chain = Chain(tmp_path, [LayerPlan(MIB, writes=zeroed), LayerPlan(MIB, writes=(pattern(3, 512 * KIB, 256 * KIB),))])
    assert chain.commits_well("f1", "f0")


def test_zeros_that_kept_their_cluster_take_data(tmp_path: Path) -> None:
    zeroed = (pattern(1, 0, 256 * KIB), f"write -z {64 * KIB} {128 * KIB}")
    chain = Chain(tmp_path, [LayerPlan(MIB, writes=zeroed), LayerPlan(MIB, writes=(pattern(3, 64 * KIB, 64 * KIB),))])
    assert chain.commits_well("f1", "f0")


@pytest.mark.parametrize("below", ["f0", None])
def test_own_overlays_leave_what_they_rested_on(tmp_path: Path, below: str | None) -> None:
    """Without qemu-img: a header of the collection's own always has room."""
    chain = default_chain(tmp_path, options=OWN)
    before = chain.shows("f3")
    assert chain.pull("f3", below) and chain.repoint("f3", below)
    assert chain.shows("f3") == before
    assert [image.file for image in chain.images("f3")] == (["f3", below] if below else ["f3"])


# -- counts and tables -----------------------------------------------------------------------------------------------------


def small(size: int, writes: tuple[str, ...]) -> LayerPlan:
    return LayerPlan(size, options="cluster_size=512", writes=writes)


def refcount_table(path: Path) -> tuple[int, list[int]]:
    data = path.read_bytes()
    offset, clusters = struct.unpack_from(">QI", data, 48)
    size = 1 << struct.unpack_from(">I", data, 20)[0]
    return offset, list(big_endian(data[offset : offset + clusters * size]))


@pytest.mark.parametrize("verb", ["commit", "pull"])
def test_many_new_refcount_blocks(tmp_path: Path, verb: str) -> None:
    """With clusters of 512 bytes a block counts 256 clusters: more than ten new ones are needed, also for themselves."""
    chain = Chain(tmp_path, [small(2 * MIB, (pattern(1, 0, 4 * KIB),)), small(2 * MIB, (pattern(2, 100 * KIB, 1500 * KIB),))])
    if verb == "pull":
        chain.add(small(2 * MIB, (pattern(3, 0, 512),)))
    target = "f0" if verb == "commit" else "f2"
    blocks = len([entry for entry in refcount_table(tmp_path / target)[1] if entry])
    assert chain.commits_well("f1", "f0") if verb == "commit" else chain.pulls_well("f2", None)
    assert len([entry for entry in refcount_table(tmp_path / target)[1] if entry]) > blocks + 10


@pytest.mark.parametrize("spare", range(250, 262))
def test_the_end_of_a_refcount_block(tmp_path: Path, spare: int) -> None:
    """Clusters up to the last of a block, and the next few behind it."""
    chain = Chain(tmp_path, [small(MIB, ()), small(MIB, (pattern(2, 0, (spare - 10) * 512),))])
    assert chain.commits_well("f1", "f0")


def test_a_full_refcount_table(tmp_path: Path) -> None:
    """One cluster of 512 bytes names 64 blocks, which count 8 MiB: there is no room for more."""
    chain = Chain(
        tmp_path, [small(12 * MIB, (pattern(1, 0, 4 * KIB),)), small(12 * MIB, (pattern(2, 0, 6 * MIB), pattern(3, 6 * MIB, 5 * MIB)))]
    )
    assert len(refcount_table(tmp_path / "f0")[1]) == 64
    assert not chain.commits_well("f1", "f0")


def test_an_l1_table_that_is_too_short(tmp_path: Path) -> None:
    """A table of 512 bytes covers 2 MiB; what is left to qemu-img is unchanged."""
    chain = Chain(tmp_path, [small(2 * MIB, (pattern(1, 0, 4 * KIB),)), small(4 * MIB, (pattern(2, 3 * MIB, 4 * KIB),))])
    data = chain.bytes()
    assert not chain.commits_well("f1", "f0")
    assert data == chain.bytes()


def test_an_l1_table_that_grows_in_its_cluster(tmp_path: Path) -> None:
    chain = Chain(tmp_path, [small(MIB, (pattern(1, 0, 4 * KIB),)), small(2 * MIB, (pattern(2, 3 * MIB // 2, 4 * KIB),))])
    assert chain.commits_well("f1", "f0")


def test_a_longer_file_beneath_is_left_to_qemu(tmp_path: Path) -> None:
    """What the short file hides of it is in no table."""
    chain = Chain(tmp_path, [LayerPlan(2 * MIB, writes=(pattern(1, 0, 2 * MIB),)), LayerPlan(MIB), LayerPlan(3 * MIB)])
    assert not chain.pulls_well("f2", "f0")
    assert not chain.pulls_well("f2", None)
    assert not chain.copies_well("f2", "raw")


@pytest.mark.parametrize("size", [MIB - 512, MIB - 64 * KIB + 512, MIB - 32 * KIB])
@pytest.mark.parametrize("base", ["raw", "qcow2"])
def test_last_clusters_that_are_cut(tmp_path: Path, base: str, size: int) -> None:
    """The last cluster of the lower file ends within one of the upper file, which shows zeros behind it."""
    for verb in ("commit", "pull", "raw", "qcow2"):
        path = tmp_path / verb
        path.mkdir()
        plans = [
            LayerPlan(size, base, "", (pattern(1, size - 128 * KIB, 128 * KIB),)),
            LayerPlan(size, writes=(pattern(2, size - 1024, 1024),)),
        ]
        chain = Chain(path, [*plans, LayerPlan(2 * MIB, writes=(pattern(3, 0, 512),)), LayerPlan(2 * MIB)])
        if verb == "commit":
            chain.commits_well("f2", "f0")
        elif verb == "pull":
            assert chain.pulls_well("f3", None)
        else:
            assert chain.copies_well("f3", verb)


def test_what_lies_behind_the_size_is_not_copied(tmp_path: Path) -> None:
    """The rest of a last cluster may hold anything; what grew over it shows zeros there."""
    short = LayerPlan(MIB, writes=(pattern(1, 0, MIB),))
    for verb in ("pull", "raw", "qcow2"):
        path = tmp_path / verb
        path.mkdir()
        chain = Chain(path, [short])
        run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", str(path / "f0"), str(MIB - 32 * KIB))
        chain.add(LayerPlan(2 * MIB))
        assert chain.pulls_well("f1", None) if verb == "pull" else chain.copies_well("f1", verb)


def test_what_lay_behind_the_end_is_not_in_a_cluster_that_takes_data(tmp_path: Path) -> None:
    """A cluster that read as zeros kept old data in its place, also behind the end of the disk, where a later growth would show them."""
    last = (pattern(1, 0, 64 * KIB), pattern(9, 960 * KIB, 64 * KIB), f"write -z {960 * KIB} {64 * KIB}")
    chain = Chain(tmp_path, [LayerPlan(992 * KIB, writes=last, longer=32 * KIB), LayerPlan(992 * KIB, writes=(pattern(2, 960 * KIB, 4 * KIB),))])
    assert chain.commits_well("f1", "f0")
    with open(tmp_path / "f0", "rb") as stream:
        run_of_data = list(QcowLayer(stream.fileno()).runs(0))[-1]
        stream.seek(run_of_data.start)
        assert (run_of_data.position, stream.read(64 * KIB)) == (15, b"\2" * 4 * KIB + bytes(60 * KIB))


# -- holes -----------------------------------------------------------------------------------------------------------------


def test_sparse_clusters_stay_sparse(tmp_path: Path) -> None:
    """Clusters that were only reserved in the tables take no space in the file that they come to."""
    chain = Chain(tmp_path, [LayerPlan(64 * MIB, options="preallocation=metadata", writes=(pattern(1, 0, MIB),)), LayerPlan(64 * MIB)])
    assert chain.allocated("f0") < 3 * MIB
    assert chain.pulls_well("f1", None)
    assert chain.allocated("f1") < 3 * MIB
    assert chain.copies_well("f1", "raw") and chain.allocated("copy") < 3 * MIB
    assert chain.copies_well("f1", "qcow2") and chain.allocated("copy") < 3 * MIB


def test_holes_of_a_raw_file_stay_holes(tmp_path: Path) -> None:
    chain = Chain(tmp_path, [LayerPlan(64 * MIB, "raw", "", (pattern(1, 0, MIB), pattern(2, 40 * MIB, MIB))), LayerPlan(64 * MIB)])
    assert chain.pulls_well("f1", None)
    assert chain.allocated("f1") < 4 * MIB


@pytest.mark.parametrize("base", ["raw", "qcow2"])
def test_zeros_give_space_back(tmp_path: Path, base: str) -> None:
    chain = Chain(
        tmp_path, [LayerPlan(8 * MIB, base, "", (pattern(1, 0, 8 * MIB),)), LayerPlan(8 * MIB, writes=(f"write -z -u 0 {6 * MIB}",))]
    )
    assert chain.commits_well("f1", "f0")
    assert chain.allocated("f0") < 4 * MIB


# -- what is left at the end of a file, and holes within clusters ------------------------------------------------------------


def test_what_was_left_behind_the_end_does_not_show(tmp_path: Path) -> None:
    """Places behind the last cluster in use are taken for free space, also where an attempt left data there."""
    chain = Chain(tmp_path, [LayerPlan(MIB, "raw", "", (pattern(1, 0, 4096), pattern(2, 500 * KIB, 4096))), LayerPlan(MIB, options=OWN)])
    with open(tmp_path / "f1", "ab") as stream:
        stream.write(b"\xff" * MIB)
    assert chain.pulls_well("f1", None)


def test_counts_behind_the_end_are_taken_back(tmp_path: Path) -> None:
    chain = Chain(tmp_path, [LayerPlan(MIB, options=OWN), LayerPlan(MIB, options=OWN, writes=(pattern(1, 0, 64 * KIB),))])
    (block, *_others) = refcount_table(tmp_path / "f0")[1]
    with open(tmp_path / "f0", "r+b") as stream:
        stream.truncate(50 * 64 * KIB)
        stream.seek(block + 2 * 30)
        stream.write(b"\0\1" * 20)
    assert chain.check("f0") == LEAKS
    assert chain.commit("f1", "f0")
    assert chain.check("f0") == CLEAN
    assert (tmp_path / "f0").read_bytes()[block + 2 * 30 :][:40] == bytes(40), "qemu-img check does not look at what lies behind the file"


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("base", ["raw", "qcow2"])
def test_a_hole_within_a_cluster_hides_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, by_hand: bool) -> None:
    chain = Chain(
        tmp_path, [LayerPlan(MIB, base, "", (pattern(1, 0, MIB),)), LayerPlan(MIB, options=OWN, writes=(pattern(2, 0, 256 * KIB),))]
    )
    with open(tmp_path / "f1", "r+b") as stream:
        (run_of_data,) = QcowLayer(stream.fileno()).runs(0)
        assert allocate.make_hole(stream.fileno(), run_of_data.start + 32 * KIB, 100 * KIB)
    if by_hand:
        monkeypatch.setattr(copying.Copier, "_copy_by_kernel", nothing_copied)
    assert chain.commits_well("f1", "f0")


def nothing_copied(*_arguments: Any) -> int:
    return 0


# -- interruptions ---------------------------------------------------------------------------------------------------------


def tables_of(path: Path) -> list:
    """All entries that lead to clusters."""
    with open(path, "rb") as stream:
        layer = QcowLayer(stream.fileno())
        return [(index, layer.l1[index], layer.table(index)) for index in sorted(layer.indices())]


class Interrupted(Exception):
    """Instead of a crash."""


def grown_chain(path: Path) -> Chain:
    plans = [small(MIB, (pattern(1, 0, 60 * KIB), f"write -z {4 * KIB} {2 * KIB}")), small(MIB, (pattern(2, 10 * KIB, 10 * KIB),))]
    plans.append(small(MIB, (pattern(3, 50 * KIB, 150 * KIB), f"write -z -u {12 * KIB} {4 * KIB}", pattern(4, 5 * KIB, 512))))
    return Chain(path, [*plans, small(MIB, (pattern(5, 2 * KIB, 512),))])


@pytest.mark.parametrize("target", ["f0", "f1"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_interruption_at_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, number: int) -> None:
    """After the counts, after the new blocks, after the tables: what shows is right, and the next attempt takes the leaks back."""
    chain = grown_chain(tmp_path)
    before, tables = chain.all_show(), tables_of(tmp_path / target)
    finish = ClusterWriter.finish

    def interrupted(self: ClusterWriter, sync: Callable[[], None]) -> list[int]:
        calls = itertools.count(1)

        def failing() -> None:
            if next(calls) == number:
                raise Interrupted
            sync()

        return finish(self, failing)

    with monkeypatch.context() as patched:
        patched.setattr(ClusterWriter, "finish", interrupted)
        with pytest.raises(Interrupted):
            chain.commit("f2", target)
    if number == 1:
        assert tables_of(tmp_path / target) == tables, "tables lead to what may not be durable"
    assert {file: chain.shows(file) for file in ("f2", "f3")} == {file: before[file] for file in ("f2", "f3")}
    assert chain.check(target) in (CLEAN, LEAKS)
    assert chain.commits_well("f2", target, (CLEAN,) if number == 1 else (CLEAN, LEAKS))


_CALLS = ("copy_file_range", "pwrite", "ftruncate", "fsync")


class FailsAt:
    """The n-th of all calls that change a file ends with ENOSPC, or every one from there on."""

    def __init__(self, number: int, sticky: bool) -> None:
        self.calls, self.number, self.sticky = 0, number, sticky

    def patch(self, patched: pytest.MonkeyPatch) -> None:
        for name in _CALLS:
            patched.setattr(os, name, self._failing(getattr(os, name)))
        patched.setattr(allocate, "_fallocate", self._failing(allocate._fallocate))

    def _failing(self, call: Callable) -> Callable:
        def wrapped(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self.number or (self.sticky and self.calls > self.number):
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*arguments)

        return wrapped


def attempts(path: Path, build: Callable[[Path], Chain]) -> Iterator[Chain]:
    """The same chain again and again, each in a directory of its own."""
    (path / "first").mkdir()
    first = build(path / "first")
    for number in itertools.count():
        again = Chain(path / str(number))
        shutil.copytree(path / "first", again.path)
        again.files, again.formats = list(first.files), dict(first.formats)
        yield again
        shutil.rmtree(again.path)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["commit", "pull", "raw"])
def test_no_space_left_at_any_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """Whatever call fails, every point shows what it showed, and doing it again finishes it."""
    before: dict[str, bytes] = {}
    chains_again = attempts(tmp_path, raw_chain if verb == "raw" else grown_chain)
    for number, chain in enumerate(chains_again, 1):
        before = before or chain.all_show()
        top, target, kept = {"commit": ("f2", "f1", ("f0", "f2", "f3")), "raw": ("f1", "f0", ("f1",)), "pull": ("f2", "f2", chain.files)}[
            verb
        ]
        failing = FailsAt(number, number % 2 == 0)
        with monkeypatch.context() as patched:
            failing.patch(patched)
            try:
                assert chain.pull("f2", None) if verb == "pull" else chain.commit(top, target)
                failed = False
            except (OSError, NoSpace):
                failed = True
        if failing.calls < number:
            break
        for file in kept:
            assert chain.shows(file) == before[file], (number, file)
        assert chain.check(target) in ((CLEAN, LEAKS) if failed else (CLEAN,)), number
        if failed:
            assert chain.pulls_well("f2", None, (CLEAN, LEAKS)) if verb == "pull" else chain.commits_well(top, target, (CLEAN, LEAKS))
            assert chain.shows(target) == before[top]
    assert number > 4, "the calls were not met"


def raw_chain(path: Path) -> Chain:
    plans = [LayerPlan(MIB - 700, "raw", "", (pattern(1, 0, 400 * KIB),))]
    upper = (pattern(2, 100 * KIB, 100 * KIB), f"write -z -u {256 * KIB} {64 * KIB}", pattern(3, 900 * KIB, 64 * KIB))
    return Chain(path, [*plans, LayerPlan(MIB + 512, writes=upper)])


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EOPNOTSUPP, None])
def test_copying_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None) -> None:
    """Where the kernel does not copy between the files, or says that it did and copied nothing."""

    def refused(*_arguments: Any) -> int:
        if number is None:
            return 0
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", refused)
    moves: list[Callable[[Chain], bool]] = [
        lambda chain: chain.commits_well(chain.files[1], chain.files[3]),
        lambda chain: chain.pulls_well(chain.files[0], None),
        lambda chain: chain.copies_well(chain.files[0], "raw"),
        lambda chain: chain.copies_well(chain.files[0], "qcow2"),
    ]
    for base, (place, done_well) in itertools.product(["raw", "qcow2"], enumerate(moves)):
        path = tmp_path / f"{base}-{place}"
        path.mkdir()
        assert done_well(default_chain(path, base))


def test_copying_where_nothing_tells_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without SEEK_DATA and without holes: zeros are written, and the tables are followed all the same."""
    lseek = os.lseek

    def blind(fd: int, offset: int, whence: int) -> int:
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "Invalid argument")
        return lseek(fd, offset, whence)

    def never(*_arguments: Any) -> bool:
        return False

    monkeypatch.setattr(os, "lseek", blind)
    monkeypatch.setattr(allocate, "_fallocate", never)
    for verb in ("commit", "pull"):
        path = tmp_path / verb
        path.mkdir()
        chain = default_chain(path)
        assert chain.commits_well("f2", "f1") if verb == "commit" else chain.pulls_well("f3", "f0")
