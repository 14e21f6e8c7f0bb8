# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums in the spellings in which projects publish them."""

from __future__ import annotations

import pytest

from ansible_collections.remotefs.storage.plugins.module_utils.images.checksums import BadChecksum, Wanted, from_list, wanted

A, B = "a1" * 32, "b2" * 32
LONG = "c3" * 64


@pytest.mark.parametrize(
    "text, expected",
    [
        (f"sha256:{A}", Wanted("sha256", A)),
        (f" sha256:{A.upper()} ", Wanted("sha256", A)),
        (f"sha512:{LONG}", Wanted("sha512", LONG)),
        ("md5:" + "0f" * 16, Wanted("md5", "0f" * 16)),
        ("sha256:https://host/dir/SHA256SUMS", Wanted("sha256", list_url="https://host/dir/SHA256SUMS")),
        ("sha256:HTTP://host/x", Wanted("sha256", list_url="HTTP://host/x")),
    ],
)
def test_what_users_give(text: str, expected: Wanted) -> None:
    assert wanted(text) == expected


@pytest.mark.parametrize("text", ["", A, "sha1:" + "0" * 40, "sha256:", "sha256:xyz", f"sha256:{A}0", f"sha512:{A}", "sha256:ftp://host/x", f"sha256:{A} {B}"])
def test_what_is_no_checksum(text: str) -> None:
    with pytest.raises(BadChecksum):
        wanted(text)


LISTS = {
    "sha256sum": f"{B}  other.img\n{A}  disk.img\n",
    "in binary mode": f"{A} *disk.img\n{B} *other.img\n",
    "with directories": f"{A}  ./images/disk.img\n",
    "windows": f"{B}  other.img\r\n{A}  disk.img\r\n",
    "tagged": f"# disk.img: 5 bytes\nSHA256 (disk.img) = {A}\nSHA512 (disk.img) = {LONG}\nSHA256 (other.img) = {B}\n",
    "openssl": f"SHA256(disk.img)= {A}\nSHA2-512(disk.img)= {LONG}\n",
    "signed": f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{A}  disk.img\n-----BEGIN PGP SIGNATURE-----\n{B}  disk.img\n-----END PGP SIGNATURE-----\n",
    "alone": f"{A}\n",
    "one line with another algorithm's": f"{LONG}  disk.img\n{A}  disk.img\n",
    "twice the same": f"{A}  disk.img\n{A.upper()}  disk.img\n",
    "capital": f"{A.upper()}  disk.img\n",
}


@pytest.mark.parametrize("spelling", LISTS)
def test_a_list(spelling: str) -> None:
    assert from_list(LISTS[spelling], "sha256", "disk.img") == A


def test_names_that_were_escaped() -> None:
    assert from_list(f"\\{A}  a\\\\b\\nc\n", "sha256", "a\\b\nc") == A
    assert from_list(f"{A}  a b (1).img\n", "sha256", "a b (1).img") == A
    assert from_list(f"SHA256 (a b (1).img) = {A}\n", "sha256", "a b (1).img") == A


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "no sha256 of disk.img"),
        (f"{A}  disk.img.sig\n{A}  xdisk.img\n", "no sha256"),
        (f"{LONG}  disk.img\n", "no sha256"),
        (f"{A}  disk.img\n{B}  disk.img\n", "2 different checksums"),
        (f"{A}  x/disk.img\n{B}  y/disk.img\n", "2 different checksums"),
        (f"SHA512 (disk.img) = {A}\n", "no sha256"),
        (f"{LONG}\n", "64 hexadecimal digits"),
        (f"{A}\n{B}\n", "no sha256"),
        ("<html><body>404</body></html>", "no sha256"),
    ],
)
def test_a_list_that_does_not_say(text: str, problem: str) -> None:
    with pytest.raises(BadChecksum, match=problem):
        from_list(text, "sha256", "disk.img")


def test_what_openssl_3_and_windows_write() -> None:
    digits = "ab" * 32
    assert from_list(f"SHA2-256(disk.img)= {digits}", "sha256", "disk.img") == digits
    assert wanted(f"SHA256:{digits.upper()}").digits == digits
