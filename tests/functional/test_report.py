# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role report on real shares; its page in a browser, with hostile names and with ten thousand volumes."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
from pathlib import Path

import pytest

from ansible_collections.remotefs.storage.plugins.filter.report import report_data, report_digest
from ansible_collections.remotefs.storage.plugins.module_utils.operations import updating
from ansible_collections.remotefs.storage.plugins.module_utils.operations.volumes import ensure_present
from ansible_collections.remotefs.storage.plugins.module_utils.plan.desired import DesiredVolume

from . import browser
from .test_clones import GOLDEN
from .test_documents import blocks
from .test_documents import play as play_book
from .test_examples import play
from .test_leases import hold, under
from .test_refusals import MIB, Store
from .test_return_detail import check
from .test_share_contents import overlay

ROLE = Path(__file__).resolve().parents[2] / "roles" / "report"
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def role(*shares: str, directory: Path, **more: object) -> dict:
    given = {"report_shares": list(shares), "report_directory": str(directory), **more}
    return {"ansible.builtin.include_role": {"name": "remotefs.storage.report"}, "vars": given}


def parts(page: str) -> tuple[str, dict, str]:
    """The policy of a page, its data and its script."""
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert policy and data and script and page.count("<script") == 2
    return policy[1], json.loads(data[1]), script[1]


@pytest.fixture
def family(store: Store) -> Store:
    """A golden volume, a linked clone, and an environment with one worker."""
    store.present(size=MIB)
    store.snapshot("golden")
    store.present("clone", GOLDEN)
    lease = hold(store, volumes=("ci-00", "ci-01"), uses=("vol",)).after
    with under(store, lease) as options:
        desired = DesiredVolume("ci-00", labels={"remotefs_worker": "0"})
        ensure_present(updating.VolumeRequest(store.candidates, desired, GOLDEN), options)
    return store


@pytest.mark.slow
def test_the_role_writes_what_is_there(family: Store, tmp_path: Path, ansible_environment: dict) -> None:
    recap = play([role("SHARE", "/nowhere/x", directory=tmp_path)], family.path, tmp_path, ansible_environment)
    assert recap["changed"] == 3 and not recap["failed"]
    told = json.loads((tmp_path / "remotefs-report.json").read_text())
    page = (tmp_path / "remotefs-report.html").read_text()
    policy, data, script = parts(page)
    assert page.startswith("<!DOCTYPE html>\n")
    assert data == told and [one["name"] for one in told["volumes"]] == ["ci-00", "clone", "vol"]
    assert [(one["level"], one["share"]) for one in told["warnings"]] == [("bad", "/nowhere/x")]
    (environment,) = told["leases"]
    assert (environment["owner"], environment["made"], environment["workers"]) == ("job-1", ["ci-00"], 1)
    assert environment["golden"] == [{"volume": "vol", "snapshot": "golden"}] and told["shares"][0]["locks"] == []
    assert told["volumes"][1]["parent"] == {"volume": "vol", "snapshot": "golden"}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    markdown = (tmp_path / "remotefs-report.md").read_text()
    assert "```mermaid\ngraph TD\n" in markdown and "| vol |" in markdown
    assert len(list(tmp_path.glob("remotefs-report.*"))) == 3
    recap = play([role("SHARE", directory=tmp_path, report_formats=["json"], report_name="other")], family.path, tmp_path, ansible_environment, "--check")
    assert recap["changed"] == 1 and not list(tmp_path.glob("other*"))


@pytest.mark.slow
def test_a_page_needs_nothing_else(family: Store, tmp_path: Path, ansible_environment: dict) -> None:
    play([role("SHARE", directory=tmp_path, report_formats=["html"], report_title="A <b> & c")], family.path, tmp_path, ansible_environment)
    page = (tmp_path / "remotefs-report.html").read_text()
    assert not re.search(r"https?://(?!www\.gnu\.org/licenses)|<link|<img|<iframe|@import|url\(", page)
    assert "<h1>A &lt;b&gt; &amp; c</h1>" in page


@pytest.mark.slow
def test_the_playbook_of_its_readme(family: Store, tmp_path: Path, ansible_environment: dict) -> None:
    (tmp_path / "backup").mkdir()
    (book,) = blocks((ROLE / "README.md").read_text())
    places = {"storage_client": "localhost", "/srv/volumes": str(family.path), "/srv/backup": str(tmp_path / "backup"), "/tmp": str(tmp_path)}
    text = json.dumps(book)
    for name, path in places.items():
        text = text.replace(json.dumps(name), json.dumps(path))
    book = json.loads(text)
    book[0].update(gather_facts=False, become=False)
    play_book(book, tmp_path, ansible_environment)
    assert len(json.loads((tmp_path / "remotefs-report.json").read_text())["shares"]) == 2


STRANGE = ["a b.iso", "lone", "my disk", "some.iso", "stray/"]


def strange(store: Store) -> None:
    """A volume with a record, one with only an ``.info``, and what nobody names."""
    store.present("recorded", size=MIB)
    (store.path / "volume-1").write_bytes(bytes(MIB))
    overlay(store.path, "volume-1", "volume-1.aaa")
    (store.path / "volume-1.info").write_text(json.dumps({"active": "volume-1.aaa", "aaa": "volume-1.aaa"}))
    for name in STRANGE:
        if name.endswith("/"):
            (store.path / name).mkdir()
        else:
            (store.path / name).write_bytes(b"x" * 4096)


@pytest.mark.slow
def test_what_nobody_names_is_unknown_everywhere(store: Store, tmp_path: Path, ansible_environment: dict) -> None:
    """The same names in the report, the figures, the info of the share and in housekeeping; and the other names are volumes in all of them."""
    strange(store)
    tasks = [
        {"remotefs.storage.remotefs_share_info": {"share": "SHARE"}, "register": "info"},
        check(f"info.shares[0].unknown == {STRANGE}", "info.shares[0].volumes == 2"),
        {"ansible.builtin.include_role": {"name": "remotefs.storage.housekeeping"}, "vars": {"housekeeping_shares": ["SHARE"], "housekeeping_remove": True}},
        check(f"housekeeping_result.unknown == {STRANGE}", "housekeeping_result.removed == []", "housekeeping_result.kept == []"),
        role("SHARE", directory=tmp_path),
        {"remotefs.storage.remotefs_metrics": {"share": "SHARE", "dest": str(tmp_path / "x.prom")}},
    ]
    play(tasks, store.path, tmp_path, ansible_environment)
    told = json.loads((tmp_path / "remotefs-report.json").read_text())
    assert told["shares"][0]["unknown"] == STRANGE
    assert [one["name"] for one in told["volumes"]] == ["recorded", "volume-1"] and told["warnings"] == []
    figures = (tmp_path / "x.prom").read_text()
    assert f'remotefs_share_unknown{{share="{store.path}"}} {len(STRANGE)}\n' in figures and f'remotefs_share_volumes{{share="{store.path}"}} 2\n' in figures
    assert set(re.findall(r'volume="([^"]*)"', figures)) == {"recorded", "volume-1"}
    page, markdown = (tmp_path / "remotefs-report.html").read_text(), (tmp_path / "remotefs-report.md").read_text()
    assert [one["name"] for one in parts(page)[1]["volumes"]] == ["recorded", "volume-1"] and "lone" not in markdown


def test_unknown_names_count_on_their_own_share_only() -> None:
    """Spelt by the source of the share or by its directory; what cannot be read is no volume either, if nobody names it."""
    first = {"src": "nas1:/vols", "path": "/mnt/1", "total": 1, "free": 1, "unknown": ["x", "folder/"]}
    second = {"src": "nas2:/vols", "path": "/mnt/2", "total": 1, "free": 1, "unknown": None}
    volumes: list[dict] = [{"name": "x", "share": share, "snapshots": [], "chain": []} for share in ("nas1:/vols", "nas2:/vols")]
    volumes += [{"name": "folder", "share": share, "error_code": "unsafe_image", "msg": "it is no file"} for share in ("nas1:/vols", "nas2:/vols")]
    volumes.append({"name": "x", "share": "nas1:/vols/", "mountpoint": "/mnt/1", "snapshots": [], "chain": []})
    told = report_data([first, second], volumes, [], None, "2026-06-30T00:00:00Z")
    assert [(one["share"], one["name"]) for one in told["volumes"]] == [("nas2:/vols", "x"), ("nas2:/vols", "folder")]
    assert [one["volume"] for one in told["warnings"]] == ["folder"]


# -- in a browser ----------------------------------------------------------------------------------------------------


def page_of(data: dict, tmp_path: Path) -> Path:
    """The page with these data as a file. The role's template is filled in as Ansible does it."""
    script, style = (ROLE / "files" / name for name in ("report.js", "report.css"))
    text = (ROLE / "templates" / "report.html.j2").read_text().partition("#}\n")[2]
    filled = {
        "report_style": style.read_text().rstrip("\n"),
        "report_script": script.read_text().rstrip("\n"),
        "report_script_hash": report_digest(script.read_text().rstrip("\n")),
        "report_title | escape": "Report",
    }
    for name, value in filled.items():
        text = text.replace("{{ " + name + " }}", value)
    text = re.sub(r"\{\{ report_result .*? \}\}", lambda _match: json.dumps(data).replace("<", "\\u003c"), text)
    assert "{{" not in text
    page = tmp_path / "page.html"
    page.write_text(text)
    return page


def rendered(data: dict, tmp_path: Path) -> str:
    """What a browser makes of the page with these data, which it must do without an error."""
    program, page = browser.need(), page_of(data, tmp_path)
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run([program, *words, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "Uncaught" not in done.stderr and "Refused to" not in done.stderr, done.stderr[-2000:]
    return done.stdout


def of_volumes(count: int) -> dict:
    share = {"src": "nas1:/vols", "fstype": "nfs", "total": 1 << 40, "free": 1 << 39, "virtual": 1 << 41, "held_by_snapshots": 5, "over_subscription": 2.0}
    share.update(leftovers=[], leftovers_allocated=0, unknown=["x"], maintenance=False)
    volumes = []
    for number in range(count):
        name = f"vol-{number:05}"
        snapshots = [{"name": "nightly", "file": f"{name}.nightly", "created": "2026-06-29T00:00:00Z", "expires": None, "protected": False}]
        chain = [{"file": f"{name}.nightly", "format": "qcow2", "allocated": 4096}, {"file": name, "format": "raw", "allocated": 1 << 30}]
        parent = {"volume": "vol-00000", "snapshot": "nightly"} if number % 3 == 1 else None
        volumes.append({"name": name, "share": "nas1:/vols", "size": 1 << 31, "allocated": 1 << 30, "snapshots": snapshots, "chain": chain, "parent": parent})
    return report_data([share], volumes, [], None, "2026-06-30T00:00:00Z")


@pytest.mark.slow
def test_ten_thousand_volumes(tmp_path: Path) -> None:
    page = rendered(of_volumes(10_000), tmp_path)
    assert "10000 of 10000 volumes" in page and "vol-00000" in page and "1 day old" in page
    assert page.count("<tr>") < 150, "a browser becomes slow with that many rows"
    assert "and 3233 more" in page
    typed = "(() => { const began = performance.now(), field = document.getElementById('filter'); field.value = 'vol-09';"
    typed += " field.dispatchEvent(new Event('input')); document.body.offsetHeight; return performance.now() - began; })()"
    with browser.Page(page_of(of_volumes(10_000), tmp_path), tmp_path / "profile") as opened:
        assert min(float(str(opened.ask(typed))) for _again in range(5)) < 300, "milliseconds until what was typed is shown"
        assert opened.ask("document.getElementById('count').textContent") == "1000 of 10000 volumes"


def test_names_run_nothing(tmp_path: Path) -> None:
    share = {"src": EVIL, "fstype": "nfs", "error_code": "share_not_mounted", "msg": EVIL}
    snapshots = [{"name": EVIL, "file": "x", "created": EVIL, "description": EVIL, "expires": None, "protected": True}]
    chain = [{"file": "x", "format": EVIL}]
    volumes: list[dict] = [{"name": EVIL, "share": EVIL, "size": 1, "allocated": 1, "snapshots": snapshots, "chain": chain, "labels": {EVIL: EVIL}}]
    volumes.append({"name": "child", "share": EVIL, "size": 1, "snapshots": [], "chain": [], "parent": {"volume": EVIL, "snapshot": EVIL}})
    held = [{"name": EVIL, "share": EVIL, "owner": EVIL, "expires": "2026-01-01T00:00:00Z", "volumes": [EVIL]}]
    page = rendered(report_data([share], volumes, held, None, "2026-06-30T00:00:00Z"), tmp_path)
    assert "<title>Shares and volumes</title>" in page and "<img" not in page.split("<script")[0]
    assert page.count(html.escape(EVIL, quote=False)) > 5


def test_an_empty_report(tmp_path: Path) -> None:
    page = rendered(report_data([], [], [], None, "2026-06-30T00:00:00Z"), tmp_path)
    assert "Nothing." in page and "0 of 0 volumes" in page and "2026-06-30 00:00:00 UTC" in page


# -- for everybody ---------------------------------------------------------------------------------------------------


GOLDEN_PARENT = {"volume": "vol-00000", "snapshot": "nightly"}


def everything() -> dict:
    """A report in which each part of the page is shown, and some are shown only in part."""
    (share, *_more), volumes = (of_volumes(140)[name] for name in ("shares", "volumes"))
    lock = {"name": "vol-00003", "host": "host2", "task": "remotefs_volume", "since": "2026-06-01T00:00:00Z", "dead": False}
    full = {**share, "src": "nas2:/full", "free": 1 << 30, "locks": [lock], "maintenance": True}
    gone = {"src": "nas3:/gone", "fstype": None, "error_code": "share_not_mounted", "msg": "Share nas3:/gone: it is not mounted."}
    workers = [
        {**volumes[1], "name": f"ci-main-{number:02}", "lease": "1" * 16, "labels": {"remotefs_worker": str(number)}, "parent": GOLDEN_PARENT}
        for number in range(3)
    ]
    first = {**volumes[0], "description": "The first", "created": "2026-01-01T00:00:00Z", "labels": {"team": "web"}}
    first["snapshots"] = [{**first["snapshots"][0], "expires": "2026-06-29T12:00:00Z", "protected": False, "description": "before the change"}]
    broken = {"name": "broken", "share": "nas1:/vols", "error_code": "chain_broken", "msg": "Volume broken: a file of its chain is missing."}
    deep = {**volumes[2], "name": "deep", "chain": [{"file": f"deep.{number}", "format": "qcow2", "allocated": number << 20} for number in range(40)]}
    late = {**first, "name": "vol-00001", "share": "nas2:/full", "replica": True, "snapshots": [{**first["snapshots"][0], "created": "2026-06-24T00:00:00Z"}]}
    names = [one["name"] for one in workers]
    over = {"share": "nas1:/vols", "id": "1" * 16, "owner": "job-17", "acquired": "2026-06-29T20:00:00Z", "expires": "2026-06-29T21:00:00Z"}
    leases_of = [{"name": "ci-main", "volumes": [*names, "ci-main-03"], "uses": ["vol-00000"], **over}]
    leases_of += [{"name": "by-hand", "share": "nas1:/vols", "id": "2" * 16, "owner": "ann", "expires": None, "volumes": []}]
    leases_of += [{"name": "torn", "share": "nas1:/vols", "error_code": "chain_broken", "msg": "Lease torn: it cannot be read."}]
    return report_data([share, full, gone], [first, *volumes[1:], *workers, broken, deep, late], leases_of, None, "2026-06-30T00:00:00Z")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(dark: bool, tmp_path: Path) -> None:
    """The whole page, the details of volumes, a list that is empty, and a report of nothing."""
    browser.axe_script()
    data = everything()
    with browser.Page(page_of(data, tmp_path), tmp_path / "profile", dark) as page:
        assert page.ask("matchMedia('(prefers-color-scheme: dark)').matches") == dark
        assert page.violations() == []
        page.ask("document.querySelector('.table').style.maxHeight = 'none'")  # it cannot judge colours of rows that are scrolled out of sight
        assert page.violations(undecided=True) == []
        page.ask("document.querySelector('.table').style.maxHeight = ''")
        for name in ("vol-00000", "broken", "deep"):
            page.ask(f"[...document.querySelectorAll('#volumes button')].find(one => one.textContent === '{name}').click()")
            assert page.ask("document.getElementById('volume-heading').textContent") == name
            assert page.violations() == []
        page.picture(tmp_path / "full.png")
        page.ask("document.getElementById('filter').value = 'no such'; document.getElementById('filter').dispatchEvent(new Event('input'))")
        assert page.ask("document.getElementById('count').textContent") == "0 of 146 volumes"
        assert page.violations() == []
        assert page.errors == []
    empty = report_data([], [], [], None, "2026-06-30T00:00:00Z")
    with browser.Page(page_of(empty, tmp_path), tmp_path / "profile", dark) as page:
        assert page.violations() == [] and page.errors == []
        page.picture(tmp_path / "empty.png")


def test_everything_is_reached_and_used_by_keys(tmp_path: Path) -> None:
    """Keys as a browser gets them from a keyboard. No control is left out, the order is that of the page, and nothing holds the focus."""
    focus = "(document.activeElement.id || document.activeElement.textContent || document.activeElement.getAttribute('aria-label'))"
    with browser.Page(page_of(everything(), tmp_path), tmp_path / "profile") as page:
        controls = page.ask(
            "[...document.querySelectorAll('a, button, input, select, [tabindex=\"0\"]')].filter(one => one.checkVisibility())"
            ".map(one => one.id || one.textContent || one.getAttribute('aria-label'))"
        )
        assert isinstance(controls, list) and len(controls) > 100
        reached = []
        for _control in controls:
            page.press("Tab")
            reached.append(page.ask(focus))
            assert page.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid", "nobody sees where the focus is"
        assert reached == controls and {"filter", "sort", "more-volumes"} <= set(reached)

    with browser.Page(page_of(everything(), tmp_path), tmp_path / "profile") as page:
        page.press("Tab", "Enter")  # the link that skips what comes before the volumes
        assert page.ask(focus) == "volumes-heading"
        page.press("Tab", *"deep")
        assert page.ask(focus) == "filter" and page.ask("document.getElementById('count').textContent") == "1 of 146 volumes"
        page.press("Tab", "ArrowDown")
        assert page.ask("document.getElementById('sort').value") == "size"
        page.press("Tab", "Tab", "Enter")  # over the table, which scrolls, to its only volume
        assert page.ask(focus) == "volume-heading" and page.ask("document.querySelectorAll('#chain li').length") == 40
        page.press("Tab", " ")
        assert page.ask(focus) == "deep" and page.ask("document.getElementById('detail').hidden") is True
        page.press("Enter", "Escape")
        assert page.ask(focus) == "deep" and page.ask("document.getElementById('detail').hidden") is True
        page.ask("document.getElementById('filter').focus()")
        page.press(*["Backspace"] * 4)
        page.ask("document.getElementById('more-volumes').focus()")
        page.press("Enter")
        assert page.ask("document.querySelectorAll('#volumes tr').length") == 146
        assert page.ask("document.activeElement === document.querySelectorAll('#volumes button')[100]"), "the focus goes on where the new rows begin"
        assert page.errors == []


def test_what_is_told_of_environments_and_replicas(tmp_path: Path) -> None:
    with browser.Page(page_of(everything(), tmp_path), tmp_path / "profile") as page:
        shown = page.ask("[...document.querySelectorAll('#leases > li')].map(one => one.innerText)")
        assert isinstance(shown, list) and len(shown) == 3
        for word in ("Environment ci-main", "job-17", "ended 3 hours ago", "vol-00000, snapshot nightly", "3: ci-main-00, ci-main-01, ci-main-02"):
            assert word in shown[0]
        assert "Lease by-hand" in shown[1] and "never" in shown[1] and "it cannot be read" in shown[2]
        assert page.ask("document.getElementById('replicas').innerText") == "vol-00001, nas2:/full: 5 days behind its source"
        warnings = str(page.ask("document.getElementById('warnings').innerText"))
        assert "Lease ci-main of job-17 ended 3 hours ago, and nobody has collected it" in warnings
        assert "A lock is held by remotefs_volume on host2 since 29 days" in warnings


def test_axe_would_find_something(tmp_path: Path) -> None:
    """The test above can fail: a picture without words, and letters that are too pale."""
    browser.axe_script()
    with browser.Page(page_of(everything(), tmp_path), tmp_path / "profile") as page:
        page.ask("document.querySelector('.bar').removeAttribute('aria-label'); document.querySelector('h1').style.color = '#bbb'")
        assert {one.partition(":")[0] for one in page.violations()} >= {"role-img-alt", "color-contrast"}
