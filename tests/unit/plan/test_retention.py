# Copyright (c) contributors to the remotefs.storage collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention against a slow model that is written another way, and the edges of the calendar."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.remotefs.storage.plugins.module_utils.errors import InvalidParameter
from ansible_collections.remotefs.storage.plugins.module_utils.model import Image, Snapshot, Volume
from ansible_collections.remotefs.storage.plugins.module_utils.plan import retention

RULES = ("last", "hourly", "daily", "weekly", "monthly", "yearly")


def volume(*snapshots: Snapshot, dependents: tuple = ()) -> Volume:
    """A volume with these snapshots, oldest first."""
    chain = [Image("vol", "raw", 1 << 20)]
    for snapshot in snapshots:
        chain.insert(0, Image(snapshot.file, "qcow2", 1 << 20, backing_file=chain[0].file, backing_format=chain[0].format))
    return Volume("vol", tuple(chain), tuple(snapshots), info=True, adopted=True, dependents=dependents)


def snap(name: str, created: str | None, **more: object) -> Snapshot:
    return Snapshot(name, f"vol.{name}", created, **more)


def at(*times: str | None) -> Volume:
    """Snapshots s1, s2, … taken at these times, in that order."""
    return volume(*(snap(f"s{number}", time) for number, time in enumerate(times, 1)))


def kept(found: Volume, match: object = "*", named: str | None = None, **rules: int) -> dict[str, tuple]:
    """Names that stay, with their reasons."""
    verdicts = retention.judge(found, retention.parse({"match": match, **rules}), named)
    return {verdict.snapshot.name: verdict.reasons for verdict in verdicts if verdict.reasons}


# -- a model ---------------------------------------------------------------------------------------------------------


def week_of(day: date) -> tuple[int, int]:
    """The ISO week by its definition: that of its Thursday, counted from the one that holds January 4."""
    thursday = day + timedelta(days=3 - day.weekday())
    first = date(thursday.year, 1, 4)
    return thursday.year, (thursday - (first - timedelta(days=first.weekday()))).days // 7 + 1


def same_period(rule: str, one: datetime, other: datetime) -> bool:
    if rule == "weekly":
        return week_of(one.date()) == week_of(other.date())
    length = {"hourly": 4, "daily": 3, "monthly": 2, "yearly": 1}[rule]
    return one.timetuple()[:length] == other.timetuple()[:length]


def model(snapshots: list[Snapshot], times: dict[str, datetime | None], matching: set, rules: dict[str, int]) -> set[str]:
    """Names that stay, found by asking of each snapshot and rule how many newer ones stand in front of it."""
    considered = [snapshot.name for snapshot in snapshots if snapshot.name in matching]
    staying = {
        snapshot.name for snapshot in snapshots if snapshot.name in matching and (snapshot.protected or times[snapshot.name] is None)
    }
    for index, name in enumerate(considered):
        newer = considered[index + 1 :]
        if len(newer) < rules["last"]:
            staying.add(name)
        time = times[name]
        if time is None:
            continue
        for rule in RULES[1:]:
            before = [times[other] for other in newer if times[other] is not None]
            first_of_its_period = not any(same_period(rule, time, other) for other in before)
            periods = []
            for other in before:
                if not any(same_period(rule, other, seen) for seen in periods):
                    periods.append(other)
            if first_of_its_period and len(periods) < rules[rule]:
                staying.add(name)
    return staying


CLUSTERED = st.integers(0, 60 * 24 * 800).map(lambda minutes: datetime(2019, 11, 20) + timedelta(minutes=minutes))
NEAR = st.integers(-200, 200).map(lambda hours: datetime(2027, 1, 1) + timedelta(hours=hours))
TIMES = st.one_of(CLUSTERED, NEAR, NEAR)


@st.composite
def chains(draw) -> tuple[list[Snapshot], dict, set]:
    times = draw(st.lists(st.one_of(TIMES, TIMES, TIMES, st.none()), max_size=25))
    if draw(st.booleans()):
        times = sorted((time for time in times if time), key=lambda time: time)
    snapshots, by_name, matching = [], {}, set()
    for number, time in enumerate(times):
        wanted = draw(st.sampled_from([True, True, True, False]))
        name = f"{'daily' if wanted else 'other'}-{number}"
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ") if time else draw(st.sampled_from([None, "", "yesterday", "2026-02-30T00:00:00Z"]))
        snapshots.append(snap(name, created, protected=draw(st.integers(0, 5)) == 0, labels={"made-by": "nightly" if wanted else "hand"}))
        by_name[name] = time
        matching |= {name} if wanted else set()
    return snapshots, by_name, matching


COUNTS = st.fixed_dictionaries({rule: st.sampled_from([0, 0, 1, 2, 3, 7]) for rule in RULES}).filter(lambda rules: any(rules.values()))


@given(chains(), COUNTS, st.booleans())
def test_the_same_as_the_model(chain: tuple, rules: dict, by_label: bool) -> None:
    snapshots, times, matching = chain
    match = {"made-by": "nightly"} if by_label else "daily-*"
    assert set(kept(volume(*snapshots), match, **rules)) == model(snapshots, times, matching, rules)


@given(chains(), COUNTS)
def test_what_stays_would_stay_again(chain: tuple, rules: dict) -> None:
    """A second run finds nothing to remove, whatever clocks said."""
    snapshots, _times, matching = chain
    first = kept(volume(*snapshots), "daily-*", **rules)
    left = [snapshot for snapshot in snapshots if snapshot.name in first or snapshot.name not in matching]
    assert kept(volume(*left), "daily-*", **rules).keys() == first.keys()


@given(chains(), COUNTS)
def test_verdicts_are_of_all_that_match_oldest_first(chain: tuple, rules: dict) -> None:
    snapshots, _times, matching = chain
    verdicts = [verdict.describe() for verdict in retention.judge(volume(*snapshots), retention.parse({"match": "daily-*", **rules}))]
    assert [one["name"] for one in verdicts] == [snapshot.name for snapshot in snapshots if snapshot.name in matching]
    assert all(one["keep"] == bool(one["reasons"]) for one in verdicts)


# -- the calendar ----------------------------------------------------------------------------------------------------


def test_weeks_at_the_turn_of_the_year() -> None:
    """2020 had 53 weeks: the first three days of 2021 belong to the last of them. The last days of 2024 belong to 2025."""
    found = at("2020-12-27T23:59:59Z", "2020-12-28T00:00:00Z", "2021-01-03T23:59:59Z", "2021-01-04T00:00:00Z")
    assert kept(found, weekly=9) == {"s1": ("weekly 2020-W52",), "s3": ("weekly 2020-W53",), "s4": ("weekly 2021-W01",)}
    found = at("2024-12-29T12:00:00Z", "2024-12-30T12:00:00Z", "2025-01-01T12:00:00Z")
    assert kept(found, weekly=9) == {"s1": ("weekly 2024-W52",), "s3": ("weekly 2025-W01",)}


def test_the_same_week_number_of_other_years_is_another_week() -> None:
    assert set(kept(at("2024-06-12T00:00:00Z", "2025-06-11T00:00:00Z"), weekly=2)) == {"s1", "s2"}
    assert set(kept(at("2024-06-12T00:00:00Z", "2025-06-12T00:00:00Z"), monthly=2)) == {"s1", "s2"}


@pytest.mark.parametrize(
    "last_day, next_day",
    [("2026-02-28", "2026-03-01"), ("2028-02-29", "2028-03-01"), ("2026-04-30", "2026-05-01"), ("2026-12-31", "2027-01-01")],
)
def test_lengths_of_months(last_day: str, next_day: str) -> None:
    found = at(f"{last_day}T00:00:00Z", f"{last_day}T23:59:59Z", f"{next_day}T00:00:00Z")
    months = {"s2": (f"monthly {last_day[:7]}",), "s3": (f"monthly {next_day[:7]}",)}
    assert kept(found, monthly=5) == months
    assert kept(found, daily=5) == {"s2": (f"daily {last_day}",), "s3": (f"daily {next_day}",)}


def test_hours_are_of_their_day_and_of_utc() -> None:
    """No hour comes twice or never, because no clock is put back: a day of summer time's end has 24 of them."""
    hours = [f"2026-10-25T{hour:02}:30:00Z" for hour in range(24)]
    assert len(kept(at(*hours), hourly=24)) == 24
    found = at("2026-10-25T01:00:00Z", "2026-10-25T01:59:59Z", "2026-10-25T02:00:00Z", "2026-10-26T02:00:00Z")
    assert kept(found, hourly=3) == {"s2": ("hourly 2026-10-25T01",), "s3": ("hourly 2026-10-25T02",), "s4": ("hourly 2026-10-26T02",)}


def test_periods_without_a_snapshot_do_not_count() -> None:
    found = at("2019-01-01T00:00:00Z", "2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z")
    assert set(kept(found, daily=3)) == {"s1", "s2", "s3"} and set(kept(found, monthly=2)) == {"s1", "s3"}


def test_a_year_of_nights() -> None:
    """7 days, 4 weeks and 12 months of a snapshot each night: what stays can be listed by hand."""
    first = date(2025, 11, 23)
    nights = [first + timedelta(days=number) for number in range(365)]
    found = volume(*(snap(f"daily-{night}", f"{night}T01:00:00Z") for night in nights))
    days = {f"daily-2026-11-{day}" for day in range(16, 23)}
    weeks = {"daily-2026-11-22", "daily-2026-11-15", "daily-2026-11-08", "daily-2026-11-01"}
    ends = (
        "2025-12-31 2026-01-31 2026-02-28 2026-03-31 2026-04-30 2026-05-31 2026-06-30 2026-07-31 2026-08-31 2026-09-30 2026-10-31"
    ).split()
    months = {"daily-2026-11-22"} | {f"daily-{end}" for end in ends}
    assert set(kept(found, "daily-*", daily=7, weekly=4, monthly=12)) == days | weeks | months


# -- clocks, and what stays whatever the rules say ------------------------------------------------------------------------


def test_the_chain_tells_what_is_newest_not_the_clock() -> None:
    """The clock was put back a year after s2: s3 is the newest all the same, and the day of s4 was seen with s5."""
    found = at("2027-01-01T00:00:00Z", "2027-01-02T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-02T01:00:00Z", "2027-01-02T06:00:00Z")
    assert kept(found, last=1) == {"s5": ("last 1 of 1",)}
    assert kept(found, daily=2) == {"s5": ("daily 2027-01-02",), "s4": ("daily 2026-01-02",)}


def test_a_clock_that_jumps_to_and_fro_gives_no_period_two() -> None:
    days = ["2026-05-01T00:00:00Z", "2026-05-02T00:00:00Z"] * 4
    assert kept(at(*days), daily=9) == {"s7": ("daily 2026-05-01",), "s8": ("daily 2026-05-02",)}


def test_undated_ones_stay_and_take_a_place_among_the_last_only() -> None:
    found = at("2026-05-01T00:00:00Z", None, "2026-05-02T00:00:00Z", "soon")
    unknown = "created at an unknown time"
    assert kept(found, last=2) == {"s2": (unknown,), "s3": ("last 2 of 2",), "s4": ("last 1 of 2", unknown)}
    assert kept(found, daily=1) == {"s2": (unknown,), "s3": ("daily 2026-05-02",), "s4": (unknown,)}


@pytest.mark.parametrize(
    "created",
    [
        "",
        "2026-05-01",
        "2026-05-01T00:00:00",
        "2026-05-01T00:00:00+02:00",
        "2026-05-01T24:00:00Z",
        "2026-13-01T00:00:00Z",
        "0000-01-01T00:00:00Z",
    ]
    + ["2026-05-01T00:00:00Z\n", "٢٠٢٦-05-01T00:00:00Z"],
)
def test_a_time_that_is_not_as_records_spell_it_is_unknown(created: str) -> None:
    assert kept(volume(snap("s1", created), snap("s2", "2026-05-01T00:00:00Z")), last=1).keys() == {"s1", "s2"}


def test_the_first_and_the_last_day_of_the_calendar() -> None:
    found = at("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z")
    assert kept(found, weekly=1, monthly=2) == {"s1": ("monthly 0001-01",), "s2": ("weekly 9999-W52", "monthly 9999-12")}


def test_protected_ones_stay_and_take_part_in_counting() -> None:
    days = [snap(f"s{day}", f"2026-05-0{day}T00:00:00Z", protected=day in (2, 5)) for day in range(1, 6)]
    assert kept(volume(*days), last=2) == {"s2": ("protected",), "s4": ("last 2 of 2",), "s5": ("last 1 of 2", "protected")}
    assert set(kept(volume(*days), daily=1)) == {"s2", "s5"}


def test_one_on_which_clones_rest_stays() -> None:
    days = [snap(f"s{day}", f"2026-05-0{day}T00:00:00Z") for day in range(1, 5)]
    found = volume(*days, dependents=(("c1", "vol"), ("c2", "vol.s2"), ("c0", "vol.s2"), ("c0", "vol.s2"), ("c3", "vol.s4")))
    clones = ("linked clone c0 rests on it", "linked clone c2 rests on it")
    assert kept(found, last=1) == {"s1": ("linked clone c1 rests on it",), "s3": clones, "s4": ("last 1 of 1",)}


def test_what_the_task_names_stays() -> None:
    """Otherwise a name that is taken again after newer ones would come and go with every run."""
    found = at(*(f"2026-05-0{day}T00:00:00Z" for day in range(1, 5)))
    assert kept(found, named="s2", last=1) == {"s2": ("named by this task",), "s4": ("last 1 of 1",)}
    assert kept(found, named="s4", last=1) == {"s4": ("last 1 of 1",)}
    assert kept(found, "s[34]", named="s2", last=1) == {"s4": ("last 1 of 1",)}


def test_reasons_come_together() -> None:
    found = at("2026-11-20T00:00:00Z", "2026-11-21T09:00:00Z")
    everything = ("last 1 of 3", "hourly 2026-11-21T09", "daily 2026-11-21", "weekly 2026-W47", "monthly 2026-11")
    assert kept(found, last=3, hourly=1, daily=1, weekly=4, monthly=1) == {"s1": ("last 2 of 3",), "s2": everything}


# -- what a policy may be ---------------------------------------------------------------------------------------------


def test_what_matches() -> None:
    found = volume(
        snap("daily-1", "2026-05-01T00:00:00Z", labels={"a": "1", "b": "x"}),
        snap("Daily-2", "2026-05-02T00:00:00Z", labels={"a": "1"}),
        snap("weekly-1", "2026-05-03T00:00:00Z", labels={"a": "True", "b": ""}),
    )

    def considered(match: object) -> list[str]:
        return [verdict.snapshot.name for verdict in retention.judge(found, retention.parse({"match": match, "last": 1}))]

    assert (
        considered("daily-*") == ["daily-1"]
        and considered("*-1") == ["daily-1", "weekly-1"]
        and considered("[dD]*") == ["daily-1", "Daily-2"]
    )
    assert considered({"a": 1}) == ["daily-1", "Daily-2"] and considered({"a": "1", "b": "x"}) == ["daily-1"]
    assert considered({"a": True}) == considered({"b": None}) == ["weekly-1"] and considered({"c": ""}) == []


@pytest.mark.parametrize(
    "content, told",
    [
        ("daily-*", "no dictionary"),
        ([("match", "*")], "no dictionary"),
        ({"last": 1}, "match is missing or empty"),
        ({"match": "", "last": 1}, "match is missing or empty"),
        ({"match": "  ", "last": 1}, "match is"),
        ({"match": {}, "last": 1}, "match is missing or empty"),
        ({"match": None, "last": 1}, "match is missing or empty"),
        ({"match": ["daily-*"], "last": 1}, "neither a glob nor labels"),
        ({"match": 7, "last": 1}, "neither a glob nor labels"),
        ({"match": "*"}, "no rule is above 0"),
        ({"match": "*", "last": 0, "daily": None, "weekly": "0"}, "no rule is above 0"),
        ({"match": "*", "last": 1, "daily": -1}, "daily is negative: -1"),
        ({"match": "*", "last": "-2"}, "last is negative: -2"),
        ({"match": "*", "last": True}, "last is no whole number: True"),
        ({"match": "*", "last": 1.0}, "last is no whole number: 1.0"),
        ({"match": "*", "last": "many"}, "last is no whole number: 'many'"),
        ({"match": "*", "last": [1]}, "last is no whole number"),
        ({"match": "*", "last": 1, "quarterly": 3, "Daily": 2}, "it has no Daily, quarterly"),
        ({"match": "*", "yearly": -1}, "yearly is negative: -1"),
        ({"match": "*", "within": "0"}, "no rule is above 0"),
        ({"match": "*", "within": None}, "no rule is above 0"),
        ({"match": "*", "within": ""}, "no rule is above 0"),
        ({"match": "", "within": "1d"}, "match is missing or empty"),
    ],
)
def test_no_policy(content: object, told: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        retention.parse(content)
    assert told in caught.value.problem and str(caught.value).startswith("option keep: ")


def test_counts_from_templates() -> None:
    assert retention.parse({"match": "*", "last": "3", "daily": " 7 "}).counts == {
        "last": 3,
        "hourly": 0,
        "daily": 7,
        "weekly": 0,
        "monthly": 0,
        "yearly": 0,
    }


# -- years, spans, expiry --------------------------------------------------------------------------------------------

NOW = "2026-11-25T12:00:00Z"


def judged(found: Volume, named: str | None = None, **rules: object) -> dict[str, tuple]:
    policy = retention.parse({"match": "*", **rules}) if rules else None
    return {one.snapshot.name: one.reasons for one in retention.judge(found, policy, named, NOW)}


def test_years() -> None:
    """As restic's forget: the newest of each year, by the calendar and not by 365 days."""
    found = at("2022-12-31T23:59:59Z", "2023-01-01T00:00:00Z", "2023-12-31T23:59:59Z", "2024-02-29T00:00:00Z", "2026-01-01T00:00:00Z")
    assert kept(found, yearly=2) == {"s4": ("yearly 2024",), "s5": ("yearly 2026",)}
    assert set(kept(found, yearly=9)) == {"s1", "s3", "s4", "s5"}
    assert set(kept(found, yearly=1, last=2)) == {"s4", "s5"}


@pytest.mark.parametrize(
    "within, stays",
    [
        ("1s", {"s6"}),
        ("24h", {"s6"}),  # what is exactly so much older is not within, as for restic
        ("86401s", {"s5", "s6"}),
        ("2d", {"s5", "s6"}),
        ("1w", {"s4", "s5", "s6"}),
        ("30d", {"s3", "s4", "s5", "s6"}),
        ("10000m", {"s4", "s5", "s6"}),
        (" 52w ", {"s2", "s3", "s4", "s5", "s6"}),
    ],
)
def test_within_counts_from_the_newest_snapshot(within: str, stays: set) -> None:
    """restic's rule: not from the time of the task, so that a volume whose snapshots stopped keeps its last ones."""
    times = ("2015-01-01T00:00:00Z", "2015-12-19T12:00:00Z", "2016-01-05T00:00:00Z", "2016-01-13T00:00:00Z", "2016-01-17T12:00:00Z")
    found = at(*times, "2016-01-18T12:00:00Z")
    assert set(kept(found, within=within)) == stays
    assert kept(found, within=within)["s6"] == (f"within {within.strip()}",)


def test_a_clock_that_was_wrong_makes_nothing_old() -> None:
    """The newest snapshot claims a time that has not come: what is really new stays. Where the newest claims an early time, all do."""
    assert set(judged(at("2026-10-01T00:00:00Z", "2026-11-24T00:00:00Z", "2099-01-01T00:00:00Z"), within="7d")) == {"s1", "s2", "s3"}
    future = judged(at("2026-10-01T00:00:00Z", "2026-11-24T00:00:00Z", "2099-01-01T00:00:00Z"), within="7d")
    assert [name for name, reasons in future.items() if reasons] == ["s2", "s3"]
    backwards = judged(at("2026-11-20T00:00:00Z", "1970-01-01T00:00:00Z"), within="7d")
    assert all(backwards.values())
    assert all(judged(at("2098-11-20T00:00:00Z", "2099-01-01T00:00:00Z"), within="1d").values())


@given(chains(), st.integers(1, 400), COUNTS)
def test_within_keeps_on_a_second_run_what_it_kept(chain: tuple, days: int, rules: dict) -> None:
    snapshots, times, matching = chain
    first = kept(volume(*snapshots), "daily-*", within=f"{days}d", **rules)
    without = kept(volume(*snapshots), "daily-*", **rules)
    newest = next((times[one.name] for one in reversed(snapshots) if one.name in matching and times[one.name]), None)
    near = {name for name in matching if times[name] and newest and times[name] > newest - timedelta(days=days)}
    assert set(first) == set(without) | near
    left = [snapshot for snapshot in snapshots if snapshot.name in first or snapshot.name not in matching]
    assert kept(volume(*left), "daily-*", within=f"{days}d", **rules).keys() == first.keys()


@pytest.mark.parametrize("within", ["30", "d", "-1d", "1.5d", "1y", "1d2h", "0d", [1], 30, "9999999999w"])
def test_no_span(within: object) -> None:
    with pytest.raises(InvalidParameter) as caught:
        retention.parse({"match": "*", "within": within})
    assert str(caught.value).startswith("option keep.within: ")


def test_what_has_expired_goes_and_takes_no_place() -> None:
    """Whether it matches or not, unless something keeps it whatever the rules say."""
    old, later = "2026-11-25T12:00:00Z", "2026-11-25T12:00:01Z"
    found = volume(
        snap("by-hand", "2026-11-01T00:00:00Z", expires=old),
        snap("daily-1", "2026-11-02T00:00:00Z"),
        snap("daily-2", "2026-11-03T00:00:00Z", expires=later),
        snap("daily-3", "2026-11-04T00:00:00Z", expires=old),
        snap("daily-4", "2026-11-05T00:00:00Z", expires=old, protected=True),
        snap("daily-5", None, expires=old),
        snap("daily-6", "2026-11-07T00:00:00Z", expires="next week"),
    )
    verdicts = {one.snapshot.name: one.reasons for one in retention.judge(found, None, None, NOW)}
    assert {name for name, reasons in verdicts.items() if not reasons} == {"by-hand", "daily-3"}
    assert set(verdicts) == {"by-hand", "daily-3", "daily-4", "daily-5"}
    policy = retention.parse({"match": "daily-*", "last": 4})
    verdicts = {one.snapshot.name: one.reasons for one in retention.judge(found, policy, None, NOW)}
    assert {name for name, reasons in verdicts.items() if not reasons} == {"by-hand", "daily-1", "daily-3"}
    assert verdicts["daily-2"] == ("last 4 of 4",)
    named = {one.snapshot.name: one.reasons for one in retention.judge(found, None, "daily-3", NOW)}
    assert named["daily-3"] == ("named by this task",)


def test_a_clone_keeps_what_has_expired() -> None:
    found = volume(snap("s1", "2026-11-01T00:00:00Z", expires="2026-11-02T00:00:00Z"), dependents=(("c", "vol"),))
    assert judged(found) == {"s1": ("linked clone c rests on it",)}


@pytest.mark.parametrize(
    "given, time, relative",
    [
        ("never", None, False),
        ("7d", "2026-12-02T12:00:00Z", True),
        ("90 m", "2026-11-25T13:30:00Z", True),
        ("2027-01-31T18:00:00Z", "2027-01-31T18:00:00Z", False),
        ("2027-01-31 18:00:00+00:00", "2027-01-31T18:00:00Z", False),
        ("2027-01-31T18:00:00.250+02:00", "2027-01-31T16:00:00Z", False),
        ("2027-01-31T18:00-0130", "2027-01-31T19:30:00Z", False),
        ("2027-01-31", "2027-01-31T00:00:00Z", False),
        ("2020-02-29T00:00:00Z", "2020-02-29T00:00:00Z", False),
    ],
)
def test_expiry(given: str, time: str | None, relative: bool) -> None:
    assert retention.parse_expiry(given, NOW) == (time, relative)


@pytest.mark.parametrize("given", ["", "soon", "7", "0d", "-1d", "2027-02-30", "2027-01-31T25:00:00Z", "9999999999w", "9999-12-31T23:59:59-10:00", "1y"])
def test_no_expiry(given: str) -> None:
    with pytest.raises(InvalidParameter):
        retention.parse_expiry(given, NOW)


@pytest.mark.parametrize("text, seconds", [("1s", 1), ("7 s", 7), ("1m", 60), ("1h", 3600), ("1d", 86400), ("1w", 7 * 86400), ("100w", 700 * 86400)])
def test_units(text: str, seconds: int) -> None:
    assert retention.parse_duration(text, "option") == seconds


def test_a_hundred_years_are_the_longest_span() -> None:
    """Of 366 days, so that no span of a hundred years is refused. It is so for leases and opened points, too: their records have no longer one."""
    longest = timedelta(days=36600)
    assert retention.parse({"match": "*", "within": "36600d"}).within == longest.total_seconds()
    assert retention.parse_expiry("36600d", NOW).time == (datetime(2026, 11, 25, 12) + longest).strftime("%Y-%m-%dT%H:%M:%SZ")
    for beyond in ("36601d", f"{36600 * 86400 + 1}s"):
        with pytest.raises(InvalidParameter):
            retention.parse({"match": "*", "within": beyond})
        with pytest.raises(InvalidParameter):
            retention.parse_expiry(beyond, NOW)
        with pytest.raises(InvalidParameter, match="option ttl: it is more than a hundred years"):
            retention.parse_duration(beyond, "option ttl")


def test_one_that_was_taken_this_very_second_is_the_newest() -> None:
    verdicts = retention.judge(at("2026-10-01T00:00:00Z", NOW), retention.parse({"match": "*", "within": "7d"}), None, NOW)
    assert [verdict.snapshot.name for verdict in verdicts if verdict.reasons] == ["s2"]
