"""Laws of cron expressions: their times, their errors, and changes of the clocks (C31)."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import hypothesis
import pytest
from croniter import croniter
from cronsim import CronSim
from hypothesis import strategies as st

from svcrun._schedule.cron_expression import CronSpec
from tests.support import examples

BERLIN = "Europe/Berlin"

# Changes of the clocks differ in size (half an hour, two hours), in direction (Dublin sets its
# clocks back for the winter exception), in date (Ramadan), in time of day (midnight) and in
# hemisphere.
ZONES = (
    *("Europe/Berlin", "Europe/Dublin", "America/New_York", "America/Havana", "America/Santiago"),
    *("Australia/Lord_Howe", "Antarctica/Troll", "Africa/Casablanca", "Asia/Beirut", "Asia/Gaza"),
)


def times(spec: str, zone: str, after: str, n: int) -> list[str]:
    found = CronSpec(spec, zone).upcoming(n, datetime.fromisoformat(after))
    return [when.isoformat(" ", "minutes") for when in found]


# The rule of changing clocks.


def test_a_time_in_a_gap_is_called_once_right_after_the_gap() -> None:
    assert times("30 2 * * *", BERLIN, "2026-03-28T12:00+01:00", 2) == [
        "2026-03-29 03:00+02:00",
        "2026-03-30 02:30+02:00",
    ]


def test_all_times_in_one_gap_are_one_call() -> None:
    assert times("*/10 2,3 * * *", BERLIN, "2026-03-28T12:00+01:00", 3) == [
        "2026-03-29 03:00+02:00",
        "2026-03-29 03:10+02:00",
        "2026-03-29 03:20+02:00",
    ]


def test_a_time_in_a_fold_is_called_the_first_time() -> None:
    assert times("30 2 * * *", BERLIN, "2026-10-24T12:00+02:00", 2) == [
        "2026-10-25 02:30+02:00",
        "2026-10-26 02:30+01:00",
    ]


@pytest.mark.parametrize("after", ["02:29+01:00", "02:30+01:00", "02:59+01:00"])
def test_a_time_in_a_fold_is_not_called_the_second_time(after: str) -> None:
    assert times("30 2 * * *", BERLIN, f"2026-10-25T{after}", 1) == ["2026-10-26 02:30+01:00"]


def test_an_expression_of_every_hour_follows_elapsed_time_in_a_fold() -> None:
    assert times("30 * * * *", BERLIN, "2026-10-25T01:00+02:00", 4) == [
        "2026-10-25 01:30+02:00",
        "2026-10-25 02:30+02:00",
        "2026-10-25 02:30+01:00",
        "2026-10-25 03:30+01:00",
    ]


def test_an_expression_of_every_hour_follows_elapsed_time_in_a_gap() -> None:
    assert times("30 * * * *", BERLIN, "2026-03-29T01:00+01:00", 3) == [
        "2026-03-29 01:30+01:00",
        "2026-03-29 03:30+02:00",
        "2026-03-29 04:30+02:00",
    ]


def test_an_expression_of_every_hour_skips_a_time_in_a_gap_of_half_an_hour() -> None:
    lord_howe = "Australia/Lord_Howe"
    assert times("15 * * * *", lord_howe, "2026-10-04T01:00+10:30", 2) == [
        "2026-10-04 01:15+10:30",
        "2026-10-04 03:15+11:00",  # they go from 02:00 to 02:30
    ]
    assert times("45 * * * *", lord_howe, "2026-04-05T01:00+11:00", 3) == [
        "2026-04-05 01:45+11:00",
        "2026-04-05 01:45+10:30",  # they go from 02:00 back to 01:30
        "2026-04-05 02:45+10:30",
    ]


@pytest.mark.parametrize("hours", ["*", "*/1", "0-23", "0-11,12-23"])
def test_every_hour_can_be_written_in_several_ways(hours: str) -> None:
    assert len(set(times(f"0 {hours} * * *", BERLIN, "2026-10-25T00:00+02:00", 24))) == 24
    assert CronSpec(f"0 {hours} * * *", BERLIN).next(
        datetime(2026, 10, 25, 0, tzinfo=UTC).timestamp()
    ) == int(datetime(2026, 10, 25, 1, tzinfo=UTC).timestamp())


def test_every_other_hour_is_not_every_hour() -> None:
    assert times("0 */2 * * *", BERLIN, "2026-10-25T00:00+02:00", 2) == [
        "2026-10-25 02:00+02:00",
        "2026-10-25 04:00+01:00",
    ]


@dataclass(frozen=True)
class Line:
    """A cron expression as sets, whose times are known without a parser."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...] | None

    def __str__(self) -> str:
        hours = "*" if self.hours is None else ",".join(map(str, self.hours))
        return f"{','.join(map(str, self.minutes))} {hours} * * *"

    def names(self, shown: datetime) -> bool:
        return shown.minute in self.minutes and (self.hours is None or shown.hour in self.hours)


def by_the_rule(line: Line, zone: tzinfo, begin: datetime, end: datetime) -> list[datetime]:
    """Return the times of `line` from `begin` until before `end`, minute by minute, in UTC."""
    minute = timedelta(minutes=1)
    instants = [begin + n * minute for n in range(int((end - begin) / minute))]
    if line.hours is None:
        return [it for it in instants if line.names(it.astimezone(zone).replace(tzinfo=None))]

    # Each time that clocks show, in the order of its first occurrence; a time in a gap comes after.
    found = []
    latest = instants[0].astimezone(zone).replace(tzinfo=None) - minute
    for instant in instants:
        shown = instant.astimezone(zone).replace(tzinfo=None)
        is_named = False
        while latest < shown:
            latest += minute
            is_named |= line.names(latest)
        if is_named:
            found.append(instant)
    return found


def changes(zone: tzinfo, years: Sequence[int]) -> Iterator[datetime]:
    """Yield the days, in UTC, on which clocks are set."""
    day = datetime(years[0], 1, 1, tzinfo=UTC)
    end = datetime(years[-1] + 1, 1, 1, tzinfo=UTC)
    while day < end:
        following = day + timedelta(days=1)
        if day.astimezone(zone).utcoffset() != following.astimezone(zone).utcoffset():
            yield day
        day = following


def random_line(source: random.Random) -> Line:
    minutes = tuple(sorted(source.sample(range(60), source.choice([1, 2, 6, 60]))))
    hours = tuple(sorted(source.sample(range(24), source.choice([1, 2, 5, 20]))))
    return Line(minutes, source.choice([None, hours]))


@pytest.mark.parametrize("name", ZONES)
def test_around_every_change_of_clocks_no_time_is_repeated_or_lost(name: str) -> None:
    zone = ZoneInfo(name)
    source = random.Random(name)
    days = list(changes(zone, range(2020, 2036)))
    assert len(days) > 5
    for day in source.choices(days, k=examples(10)):
        line = random_line(source)
        # by_the_rule() looks at instants, so it has to begin before any gap.
        begin, end = day - timedelta(hours=30), day + timedelta(hours=54)
        expected = [it for it in by_the_rule(line, zone, begin, end) if it > day]
        found = list(between(CronSpec(str(line), name), day, end))
        assert found == expected, (name, str(line), day)


def between(spec: CronSpec, begin: datetime, end: datetime) -> Iterator[datetime]:
    """Yield the times of `spec` after `begin` and before `end`, in UTC."""
    instant = int(begin.timestamp())
    while (instant := spec.next(instant)) < end.timestamp():
        yield datetime.fromtimestamp(instant, UTC)


# A second opinion, from another library.


FIELDS = ((0, 59), (0, 23), (1, 28), (1, 12), (0, 6))


@st.composite
def fields(draw: st.DrawFn) -> str:
    """Draw a cron expression that all libraries read in the same way.

    One of the days is open. With both given, some take a star with a step for an open one, and
    some do not.
    """
    line = [draw(field(low, high)) for low, high in FIELDS]
    line[draw(st.sampled_from([2, 4]))] = "*"
    return " ".join(line)


def field(low: int, high: int) -> st.SearchStrategy[str]:
    numbers = st.integers(low, high)
    pairs = st.lists(numbers, min_size=2, max_size=2, unique=True)
    ranges = pairs.map(lambda ends: "{}-{}".format(*sorted(ends)))
    steps = st.integers(1, high - low)
    parts = numbers.map(str) | ranges | st.builds("{}/{}".format, ranges | st.just("*"), steps)
    return st.just("*") | st.lists(parts, min_size=1, max_size=3).map(",".join)


@hypothesis.settings(max_examples=examples(40))
@hypothesis.given(
    fields(),
    st.sampled_from(["UTC", "Asia/Kolkata", "Asia/Tokyo", "America/Bogota"]),
    st.integers(
        int(datetime(2020, 1, 1, tzinfo=UTC).timestamp()),
        int(datetime(2035, 12, 31, tzinfo=UTC).timestamp()),
    ),
)
def test_in_zones_without_changes_cronsim_finds_the_same_times(
    line: str, zone: str, begin: int
) -> None:
    aware = datetime.fromtimestamp(begin, ZoneInfo(zone))
    expected = list(itertools.islice(CronSim(line, aware), 20))
    assert CronSpec(line, zone).upcoming(20, aware) == expected


@hypothesis.settings(max_examples=examples(40))
@hypothesis.given(
    fields(),
    st.sampled_from([zone for zone in ZONES if zone != "Australia/Lord_Howe"]),
    st.integers(2020, 2035),
    st.randoms(),
)
def test_in_zones_with_changes_cronsim_differs_as_listed(
    line: str, name: str, year: int, source: random.Random
) -> None:
    """cronsim follows Debian's cron, which differs from the rule in three ways.

    * A star in the minute field is enough for time to elapse as it does. For svcrun, only a full
      hour field is.
    * A star with a step in the hour field counts as every hour.
    * Times in a gap come one by one, as many minutes after its end as they were after its
      beginning, or not at all. For svcrun they come together, right after it.

    After Lord Howe's change by half an hour, cronsim loses the first half of the next day's first
    hour, so that zone is left out.
    """
    zone = ZoneInfo(name)
    days = list(changes(zone, [year]))
    hypothesis.assume(days)
    day = source.choice(days)
    end = day + timedelta(days=2)
    found = set(itertools.islice(between(CronSpec(line, name), day, end), 3000))
    expected = {
        it.astimezone(UTC)
        for it in itertools.takewhile(lambda it: it < end, CronSim(line, day.astimezone(zone)))
    }
    differing = found ^ expected
    if differing:
        hour = line.split()[1]
        assert hour != "*"  # where time elapses for both
    for instant in differing:
        around = (instant + timedelta(minutes=n) for n in range(-180, 181, 30))
        assert len({it.astimezone(zone).utcoffset() for it in around}) > 1  # near the change


# Behaviour of croniter that users would notice.


def croniter_finds(spec: str, after: datetime, n: int) -> list[str]:
    found = croniter(spec, after)
    return [found.get_next(datetime).isoformat(" ", "minutes") for _ in range(n)]


def test_unlike_croniter_a_time_in_a_fold_is_found_once() -> None:
    after = datetime(2026, 10, 31, 12, tzinfo=ZoneInfo("America/New_York"))
    assert croniter_finds("30 1 * * *", after, 2) == [
        "2026-11-01 01:30-04:00",
        "2026-11-01 01:30-05:00",
    ]
    assert times("30 1 * * *", "America/New_York", after.isoformat(), 2) == [
        "2026-11-01 01:30-04:00",
        "2026-11-02 01:30-05:00",
    ]


@pytest.mark.parametrize("spec", ["0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6,9,11 *"])
def test_unlike_croniter_an_expression_that_never_matches_is_refused(spec: str) -> None:
    assert croniter.is_valid(spec)
    with pytest.raises(ValueError, match="never matches"):
        CronSpec(spec)


def test_unlike_croniter_a_range_of_one_value_is_that_value() -> None:
    after = datetime(2026, 1, 1, tzinfo=UTC)
    assert croniter_finds("0 0 1 4-4 *", after, 1) == ["2026-02-01 00:00+00:00"]
    assert times("0 0 1 4-4 *", "UTC", after.isoformat(), 1) == ["2026-04-01 00:00+00:00"]
    assert times("0 0 * * sun-sun", "UTC", after.isoformat(), 2) == [
        "2026-01-04 00:00+00:00",
        "2026-01-11 00:00+00:00",
    ]


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("5-1 * * * *", "5-59,0-1"),
        ("0 22-2 * * *", "22-23,0-2"),
        ("0 0 20-10 * *", "20-31,1-10"),
        ("0 0 1 nov-feb *", "nov-12,1-feb"),
        ("0 0 * * fri-mon", "fri-6,0-mon"),
        ("* * * * * 50-10/5", "50-59,0-10"),
    ],
)
def test_unlike_croniter_a_backward_range_is_refused(spec: str, remedy: str) -> None:
    assert croniter.is_valid(spec)
    with pytest.raises(ValueError, match="backward range") as raised:
        CronSpec(spec)
    assert remedy in str(raised.value)


def test_unlike_croniter_a_day_of_month_beside_an_nth_weekday_is_refused() -> None:
    after = datetime(2026, 1, 1, tzinfo=UTC)
    assert croniter_finds("0 0 7 * mon#1", after, 2) == [
        "2026-01-05 00:00+00:00",  # a Monday, but not the 7th
        "2026-02-02 00:00+00:00",
    ]
    for spec in "0 0 7 * mon#1", "0 0 7 * L5":
        with pytest.raises(
            ValueError, match=r"day of month must be '\*' beside an nth day of week"
        ):
            CronSpec(spec)


# Forms of expressions.


@pytest.mark.parametrize(
    ("spec", "meaning"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        (" @Daily ", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("0 0 * * 7", "0 0 * * 0"),
        ("0 0 * * fri-sun", "0 0 * * 0,5,6"),
        ("0 0 * JAN,Dec Mon", "0 0 * 1,12 1"),
        (" 0\t0 * * * ", "0 0 * * *"),
        ("0 0 ? * 1", "0 0 * * 1"),
        ("0 0 1 * * 0", "0 0 1 * *"),
    ],
)
def test_these_expressions_have_the_same_times(spec: str, meaning: str) -> None:
    after = datetime(2026, 5, 17, 3, 4, 5, tzinfo=UTC)
    assert CronSpec(spec).upcoming(10, after) == CronSpec(meaning).upcoming(10, after)


def test_seconds_come_last() -> None:
    found = CronSpec("* * * * * */20").upcoming(3, datetime(2026, 1, 1, tzinfo=UTC))
    assert [when.second for when in found] == [20, 40, 0]


def test_the_last_day_of_a_month_and_the_nth_weekday() -> None:
    assert times("0 0 L * *", "UTC", "2027-12-31T12:00+00:00", 2) == [
        "2028-01-31 00:00+00:00",
        "2028-02-29 00:00+00:00",
    ]
    assert times("0 0 * * 5#3", "UTC", "2026-01-01T00:00+00:00", 1) == ["2026-01-16 00:00+00:00"]


def test_with_both_day_fields_given_either_matches() -> None:
    assert times("0 0 13 * fri", "UTC", "2026-01-08T12:00+00:00", 3) == [
        "2026-01-09 00:00+00:00",
        "2026-01-13 00:00+00:00",
        "2026-01-16 00:00+00:00",
    ]


def test_a_leap_day_is_found_across_years_without_one() -> None:
    assert times("0 0 29 2 *", "UTC", "2096-03-01T00:00+00:00", 1) == ["2104-02-29 00:00+00:00"]


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.5, 0.999])
def test_the_next_time_is_later_than_the_given_instant(fraction: float) -> None:
    noon = int(datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp())
    assert CronSpec("* * * * * *").next(noon + fraction) == noon + 1


@pytest.mark.parametrize(
    "spec",
    [
        *("", " ", "5-1", "* * * *", "* * * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *"),
        *("* * * 13 *", "* * * * 8", "a * * * *", "*/0 * * * *", "-1 * * * *", "1.5 * * * *"),
        *("@reboot", "@", "1-2-3 * * * *", "1,,2 * * * *", "* * * * * 60", "\u0663 * * * *"),
        *("H * * * *", "* * * * foo", "*" * 1000, "0 0 * * 1#6"),
    ],
)
def test_a_wrong_expression_is_refused_and_shown(spec: str) -> None:
    with pytest.raises(ValueError, match="spec=") as raised:
        CronSpec(spec)
    assert repr(spec) in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("61 * * * *", "minute must be between 0 and 59, not 61"),
        ("0,60/5 * * * *", "minute must be between 0 and 59, not 60"),
        ("* 24 * * *", "hour must be between 0 and 23, not 24"),
        ("* * 0 * *", "day of month must be between 1 and 31, not 0"),
        ("* * * 1-13 *", "month must be between 1 and 12, not 13"),
        ("* * * * 8", "day of week must be between 0 and 7, not 8"),
        ("* * * * * 60", "second must be between 0 and 59, not 60"),
        ("* * * foo *", "month must be .*, not 'foo'"),
        ("* * * * fri-fob", "day of week must be .*, not 'fri-fob'"),
        ("*/0 * * * *", "minute must be .*, not '\\*/0'"),
        ("* * * *", "5 or 6 fields .*, not 4"),
        ("@reboot", "must be @hourly"),
    ],
)
def test_the_error_of_a_wrong_expression_names_the_field(spec: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        CronSpec(spec)


@pytest.mark.parametrize("spec", [None, 5, b"* * * * *", ["*"] * 5])
def test_an_expression_that_is_not_text_is_refused(spec: object) -> None:
    with pytest.raises(TypeError, match="spec must be"):
        CronSpec(spec)  # type: ignore[arg-type]


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "Europe", "../UTC", "/etc/passwd", "a\0b"])
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match=r"timezone must be .*Europe/Berlin"):
        CronSpec("* * * * *", zone)


def test_a_time_zone_is_a_name_or_an_object() -> None:
    zone = timezone(timedelta(hours=1))
    assert CronSpec("* * * * *", zone).zone is zone
    with pytest.raises(TypeError, match="timezone must be"):
        CronSpec("* * * * *", 1)  # type: ignore[arg-type]


def test_the_default_time_zone_is_utc() -> None:
    assert CronSpec("* * * * *").upcoming(1)[0].utcoffset() == timedelta(0)


def test_upcoming_begins_now() -> None:
    before = datetime.now(UTC)
    (first,) = CronSpec("* * * * * *").upcoming(1)
    assert before < first <= datetime.now(UTC) + timedelta(seconds=1)


def test_the_representation_shows_expression_and_time_zone() -> None:
    assert repr(CronSpec("0 0 * * *", BERLIN)) == "<CronSpec '0 0 * * *' in Europe/Berlin>"
