"""Random runs of random services, each step checked against the laws in `tests.lifecycle.stage`.

``SVCRUN_TEST_PROFILE=thorough`` lives fifty times as many.
"""

# mypy: disable-error-code="operator, attr-defined, no-any-return"

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from svcrun.restart import Restart
from tests.lifecycle.actors import (
    ACTORS,
    AT_ONCE,
    Actor,
    Alpha,
    Ask,
    Beta,
    End,
    OnCancel,
    Part,
    Script,
)
from tests.lifecycle.stage import Stage
from tests.support import examples

T = TypeVar("T")
Policy = Literal["shutdown", "ignore"] | Restart
Dependency = int | type[Actor]  # a distance back in the list of actors, or a class
Options = tuple[
    float | None, float | None, Policy, tuple[Dependency, ...], type[Actor], Restart | None
]


def one_of(choices: Sequence[T]) -> st.SearchStrategy[T]:
    # Not sampled_from(): it shows all of its elements when an example is shown.
    return st.integers(0, len(choices) - 1).map(choices.__getitem__)


# One draw for each part of a script, out of all that there can be: drawing is what takes the time.
# The simple ones come first, which is where examples shrink to.
DELAYS = (AT_ONCE, 0.0, 0.5, 1.0, 3.0, None)
ENDS = (*[End.RETURN] * 6, *[End.FAIL] * 2, End.CANCELLED, End.DOOM)
REACTIONS = (*[OnCancel.END] * 4, *list(OnCancel)[1:])
WHOM = ((0,), (1,), (-1,), (1, 2), (0, -1))
ASKS = (
    *[None] * 6 * 2 * len(WHOM),
    *(Ask(kind, whom) for kind in ("start", "stop") for whom in WHOM),
)
PARTS = tuple(
    Part(delay, end, on_cancel, ask)
    for ask, on_cancel, end, delay in itertools.product(ASKS, REACTIONS, ENDS, DELAYS)
)
LIVES = (*[None] * len(PARTS), *PARTS)

DEPENDENCIES = ((), (), (), (-1,), (-2,), (-1, -2), (-3,), (Alpha,), (Beta,))
TIMEOUTS = (None, None, 0.7)
POLICIES: tuple[Policy, ...] = (
    "shutdown",
    "ignore",
    Restart(limit=3, window=10, delay=1.0, jitter=0.5),
    Restart(limit=1, window=100, delay=0.0),
)
RETRIES = (None, None, None, Restart(limit=2, window=1e6, delay=1.0, jitter=0.5))
OPTIONS: tuple[Options, ...] = tuple(
    itertools.product(TIMEOUTS, TIMEOUTS, POLICIES, DEPENDENCIES, ACTORS, RETRIES)
)

PASSING = (
    *(("turn", count) for count in (1, 2, 3)),
    *(("advance", seconds) for seconds in (0.25, 0.5, 1.0, 2.0, 5.0, 30.0)),
)

scripts = st.builds(Script, prepare=one_of(PARTS), live=one_of(LIVES), stop=one_of(PARTS))
lives = st.tuples(one_of(OPTIONS), st.lists(scripts, min_size=1, max_size=3))
numbers = st.lists(st.integers(0, 5), min_size=1, max_size=3)


class SupervisorLives(RuleBasedStateMachine):
    stage: Stage

    @initialize(
        start_timeout=st.sampled_from([None, 4.0]),
        stop_timeout=st.sampled_from([10.0, None]),
        closes_when_fatal=st.booleans(),
        new=st.lists(lives, min_size=1, max_size=3),
    )
    def begin(
        self,
        *,
        start_timeout: float | None,
        stop_timeout: float | None,
        closes_when_fatal: bool,
        new: list[tuple[Options, list[Script]]],
    ) -> None:
        self.stage = Stage(
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
            closes_when_fatal=closes_when_fatal,
        )
        self.stage.spawn("start", [self._make(*life) for life in new])

    def _make(self, options: Options, scripts: list[Script]) -> Actor:
        start_timeout, stop_timeout, on_crash, depends_on, kind, start_retry = options
        actors = self.stage.actors
        actor = kind(
            number=len(actors),
            stage=self.stage,
            scripts=tuple(scripts),
            depends_on=[
                actors[other] if isinstance(other, int) else other
                for other in depends_on
                if not isinstance(other, int) or len(actors) >= -other
            ],
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
            on_crash=on_crash,
            start_retry=start_retry,
        )
        actors.append(actor)
        return actor

    def _actors(self, numbers: list[int]) -> list[Actor]:
        return [self.stage.actors[number % len(self.stage.actors)] for number in numbers]

    @rule(new=st.lists(lives, min_size=1, max_size=2))
    def start_new_ones(self, new: list[tuple[Options, list[Script]]]) -> None:
        self.stage.spawn("start", [self._make(*life) for life in new])

    @rule(kind=st.sampled_from(["start", "stop"]), numbers=numbers)
    def call(self, kind: str, numbers: list[int]) -> None:
        self.stage.spawn(kind, self._actors(numbers))

    @rule(how=one_of(PASSING))
    def pass_time(self, how: tuple[str, float]) -> None:
        what, amount = how
        if what == "turn":
            self.stage.loop.turn(int(amount))
        else:
            self.stage.loop.advance(amount)

    def a_caller_waits(self) -> bool:
        return any(not task.done() for task in self.stage.callers)

    @precondition(a_caller_waits)
    @rule(number=st.integers(0, 3))
    def cancel_a_caller(self, number: int) -> None:
        callers = [task for task in self.stage.callers if not task.done()]
        callers[number % len(callers)].cancel()

    def a_start_runs(self) -> bool:
        return any(actor.starting is not None for actor in self.stage.actors)

    @precondition(a_start_runs)
    @rule(number=st.integers(0, 3))
    def cancel_a_start_from_outside(self, number: int) -> None:
        actors = [actor for actor in self.stage.actors if actor.starting is not None]
        actor = actors[number % len(actors)]
        assert actor.starting is not None
        actor.cancelled_from_outside = True
        actor.starting.cancel()

    @precondition(lambda self: not self.stage.hurried)
    @rule(limit=st.sampled_from([20.0, 2.0, 0.0]))
    def close_or_hurry(self, limit: float) -> None:
        if self.stage.closing is None:
            self.stage.close(limit)
        else:
            self.stage.force()

    @invariant()
    def laws_hold(self) -> None:
        self.stage.check()

    def teardown(self) -> None:
        if not hasattr(self, "stage"):
            return
        try:
            if not self.stage.broken:
                self.stage.check_patience()
                self.stage.end()
        finally:
            self.stage.dispose()


SupervisorLives.TestCase.settings = settings(
    deadline=None,
    max_examples=examples(300),
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
)
TestSupervisorLives = SupervisorLives.TestCase


def _random_life(chance: random.Random) -> tuple[Options, list[Script]]:
    return chance.choice(OPTIONS), [
        Script(chance.choice(PARTS), chance.choice(LIVES), chance.choice(PARTS))
        for _ in range(chance.randint(1, 3))
    ]


def _random_step(machine: SupervisorLives, chance: random.Random) -> Callable[[], None]:
    numbers = [chance.randrange(8) for _ in range(chance.randint(1, 3))]
    steps: list[tuple[int, Callable[[], None]]] = [
        (6, lambda: machine.start_new_ones([_random_life(chance) for _ in numbers])),
        (3, lambda: machine.call("start", numbers)),
        (3, lambda: machine.call("stop", numbers)),
        (10, lambda: machine.pass_time(chance.choice(PASSING))),
    ]
    if machine.a_caller_waits():
        steps.append((1, lambda: machine.cancel_a_caller(numbers[0])))
    if machine.a_start_runs():
        steps.append((1, lambda: machine.cancel_a_start_from_outside(numbers[0])))
    if not machine.stage.hurried:
        steps.append((1, lambda: machine.close_or_hurry(chance.choice((20.0, 2.0, 0.0)))))
    _, step = chance.choices(steps, [weight for weight, _ in steps])[0]
    return step


@pytest.mark.parametrize("_part", range(4))  # each has a time limit of its own
@settings(deadline=None, max_examples=examples(500))
@given(seed=st.integers(0, 2**64))
def test_random_services_keep_the_laws(_part: int, seed: int) -> None:
    # The same, with nothing that shrinks, but many times as fast.
    chance = random.Random(seed)
    machine = SupervisorLives()
    try:
        machine.begin(
            start_timeout=chance.choice((None, 4.0)),
            stop_timeout=chance.choice((None, 10.0, 10.0)),
            closes_when_fatal=chance.random() < 0.3,
            new=[_random_life(chance) for _ in range(chance.randint(1, 3))],
        )
        for _ in range(chance.randint(1, 25)):
            _random_step(machine, chance)()
            machine.laws_hold()
    finally:
        machine.teardown()
