# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ISO 9660 images hold the files that they are made of, whatever these are, and are known again by themselves."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from functional.iso_parser import parsed
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.images import iso9660

from .examples import property_settings

NAMES = ("user-data", "meta-data", "network-config", "vendor-data")
SIZES = st.one_of(st.integers(0, 70000), st.sampled_from([0, 1, 2047, 2048, 2049, 4096, 65535, 65536]))
FILES = st.dictionaries(st.sampled_from(NAMES), st.tuples(SIZES, st.integers(0, 255)))
OTHERS = st.dictionaries(st.text("abcXYZ019-_.", min_size=1, max_size=64), st.binary(max_size=10), max_size=12)


def contents(described: dict[str, tuple[int, int]]) -> dict[str, bytes]:
    return {name: random.Random(dice).randbytes(size) for name, (size, dice) in described.items()}


def known(image: bytes, label: str = "cidata", application: str = "IT") -> bool:
    return iso9660.is_image(image[: iso9660.HEAD], len(image), label, application)


@given(FILES)
@property_settings(200)
def test_it_holds_its_files(described: dict) -> None:
    files = contents(described)
    image = iso9660.image(files, "cidata", "IT")
    found = parsed(image)
    assert found.joliet == files and sorted(found.plain.values()) == sorted(files.values()) and found.labels == ("cidata", "cidata")
    assert image == iso9660.image(dict(files), "cidata", "IT") and known(image)
    assert not known(image, "config") and not known(image, application="OTHER") and not known(image[:-2048]) and not known(image + bytes(512))


@given(OTHERS)
@property_settings(200)
def test_any_names(files: dict) -> None:
    """Those that would look the same in the form 8.3, or are too many, are refused, and no file is lost."""
    try:
        image = iso9660.image(files, "label", "IT")
    except ValueError:
        short = {name: "".join(part[:most] for part, most in zip(name.upper().replace("-", "_").split(".", 1), (8, 3))) for name in files}
        assert len(set(short.values())) < len(files) or any("." in name for name in files)
        return
    assert parsed(image).joliet == files


@pytest.mark.parametrize(
    "files, label, application",
    [
        ({"": b""}, "a", "b"),
        ({"x" * 65: b""}, "a", "b"),
        ({f"{number:02}": b"" for number in range(60)}, "a", "b"),
        ({"same-name-1": b"", "same-name-2": b""}, "a", "b"),
        ({}, "a" * 17, "b"),
        ({}, "a", "b" * 65),
        ({}, "\u00e9", "b"),
    ],
)
def test_what_has_no_place(files: dict, label: str, application: str) -> None:
    with pytest.raises(ValueError):
        iso9660.image(files, label, application)


@pytest.mark.skipif(shutil.which("isoinfo") is None, reason="needs isoinfo (package genisoimage)")
@given(FILES)
@property_settings(20)
def test_another_program_finds_the_same(described: dict) -> None:
    files = contents(described)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "image"
        place.write_bytes(iso9660.image(files, "cidata", "IT"))
        for name, data in files.items():
            words = ["isoinfo", "-J", "-x", f"/{name}", "-i", str(place)]
            assert subprocess.run(words, check=True, capture_output=True).stdout == data
