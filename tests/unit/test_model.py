# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes and names at the edge."""

from __future__ import annotations

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils import errors, model


@pytest.mark.parametrize(
    "text, size",
    [
        (512, 512),
        ("512", 512),
        ("1K", 1024),
        ("10G", 10 << 30),
        ("10g", 10 << 30),
        ("1 TiB", 1 << 40),
        ("3MiB", 3 << 20),
        ("2P", 2 << 50),
        (" 1M ", 1 << 20),
        ("4096B", 4096),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert model.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", 0, -512, "-1G", 511, "1000", "1.5G", "10X", "G", "8192P", 2**63, True, None, "0x200", "1K1", "١K"]
)
def test_no_sizes(text: object) -> None:
    with pytest.raises(errors.InvalidSize) as caught:
        model.parse_size(text)
    assert caught.value.error_code == "invalid_size"


@pytest.mark.parametrize("text, advice", [("10GB", "say 10G for 10 GiB"), ("1 tb", "say 1T for 1 TiB"), ("512kb", "say 512K for 512 KiB")])
def test_a_size_that_some_read_as_powers_of_1000_is_refused(text: str, advice: str) -> None:
    with pytest.raises(errors.InvalidSize, match=advice):
        model.parse_size(text)


@pytest.mark.parametrize("name", ["ci-*", "ci-?", "[ab]"])
def test_a_glob_is_no_name_and_the_message_says_what_takes_it(name: str) -> None:
    with pytest.raises(errors.InvalidName, match="remotefs_volume_info .*remotefs.storage.items"):
        model.check_volume_name(name)
    with pytest.raises(errors.InvalidName, match="globs go into volumes"):
        model.check_volume_name(name, "globs go into volumes")
    with pytest.raises(errors.InvalidName, match="globs go into names"):
        model.check_snapshot_name("v", name)


def test_names_leave_room_for_temporary_ones() -> None:
    longest = "v" * (255 - 24 - len(".info"))
    assert model.check_volume_name(longest) == longest
    with pytest.raises(errors.InvalidName):
        model.check_volume_name(longest + "v")
    assert model.check_snapshot_name("v", "s" * 229)
    with pytest.raises(errors.InvalidName):
        model.check_snapshot_name("v" * 100, "s" * 150)


def test_every_error_has_a_code_of_its_own_and_a_whole_sentence() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.StorageError) and kind is not errors.StorageError
    ]
    codes = [kind.error_code for kind in kinds]
    assert len(codes) == len(set(codes))
    assert str(kinds[0]("volume x", "it is wrong", "mend it")) == "volume x: it is wrong; mend it."


@pytest.mark.parametrize(
    "size, told",
    [
        (0, "0 bytes"),
        (512, "512 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB (1024 bytes)"),
        (1536 << 20, "1.5 GiB (1610612736 bytes)"),
        (10 << 30, "10 GiB (10737418240 bytes)"),
        ((10 << 30) + 512, "10 GiB (10737418752 bytes)"),
        ((1 << 63) - 512, "8 EiB (9223372036854775296 bytes)"),
        (1 << 80, "1048576 EiB (1208925819614629174706176 bytes)"),
    ],
)
def test_sizes_for_people(size: int, told: str) -> None:
    assert model.size_text(size) == told


def test_lists_for_people() -> None:
    assert model.listed([]) == "" and model.listed("ab") == "a, b"
    assert model.listed(range(20)).endswith(", 19") and model.listed(range(37)).endswith(", 19 and 17 more")
    assert model.listed(range(5), 3) == "0, 1, 2 and 2 more"


@pytest.mark.parametrize("text", ["1.5G", "1,5g", "0.5 TiB"])
def test_a_fraction_is_refused_with_a_way_to_say_it(text: str) -> None:
    with pytest.raises(errors.InvalidSize, match="not a whole number; give it in a smaller unit"):
        model.parse_size(text)
