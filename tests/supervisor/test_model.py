"""Random lives of random services, each step checked against the laws in `tests.supervisor.stage`."""

import itertools
import os
from collections.abc import Sequence
from typing import Literal, TypeVar

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from svcrun.restart import Restart
from tests.supervisor.actors import (
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
from tests.supervisor.stage import Stage

T = TypeVar("T")

THOROUGH = os.environ.get("SVCRUN_TEST_PROFILE") == "thorough"

# One draw for each part of a script, out of all that there can be: drawing is what takes the time.
# The simple ones come first, which is where examples shrink to.
DELAYS = (AT_ONCE, 0.0, 0.5, 1.0, 3.0, None)
ENDS = (*[End.RETURN] * 3, *[End.FAIL] * 2, End.CANCELLED, End.DOOM)
REACTIONS = (*[OnCancel.END] * 4, *list(OnCancel)[1:])
WHOM = ((0,), (1,), (-1,), (1, 2), (0, -1))
ASKS = (
    *[None] * 3 * 2 * len(WHOM),
    *(Ask(kind, whom) for kind in ("start", "stop") for whom in WHOM),
)
PARTS = tuple(
    Part(delay, end, on_cancel, ask)
    for ask, on_cancel, end, delay in itertools.product(ASKS, REACTIONS, ENDS, DELAYS)
)
LIVES = (*[None] * len(PARTS), *PARTS)


def one_of(choices: Sequence[T]) -> st.SearchStrategy[T]:
    # Not sampled_from(): it shows all of its elements when an example is shown.
    return st.integers(0, len(choices) - 1).map(choices.__getitem__)


scripts = st.builds(Script, prepare=one_of(PARTS), live=one_of(LIVES), stop=one_of(PARTS))

POLICIES = (
    "shutdown",
    "ignore",
    Restart(limit=3, window=10, delay=1.0, jitter=0.5),
    Restart(limit=1, window=100, delay=0.0),
)
# start_timeout, stop_timeout and on_crash
OPTIONS = tuple(itertools.product((None, None, 0.7), (None, None, 0.7), POLICIES))


class SupervisorLives(RuleBasedStateMachine):
    actors = Bundle("actors")
    some_actors = st.lists(actors, min_size=1, max_size=4)

    stage: Stage

    @initialize(
        start_timeout=st.sampled_from([None, 4.0]),
        stop_timeout=st.sampled_from([10.0, None]),
        closes_when_fatal=st.booleans(),
    )
    def begin(
        self, *, start_timeout: float | None, stop_timeout: float | None, closes_when_fatal: bool
    ) -> None:
        self.stage = Stage(
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
            closes_when_fatal=closes_when_fatal,
        )

    @rule(
        target=actors,
        kind=st.sampled_from(ACTORS),
        scripts=st.lists(scripts, min_size=1, max_size=3).map(tuple),
        depends_on=st.lists(actors, max_size=2),
        classes=st.sampled_from([(), (), (), (), (Alpha,), (Beta,)]),
        options=one_of(OPTIONS),
    )
    def make(
        self,
        kind: type[Actor],
        scripts: tuple[Script, ...],
        depends_on: list[Actor],
        classes: tuple[type[Actor], ...],
        options: tuple[float | None, float | None, Literal["shutdown", "ignore"] | Restart],
    ) -> Actor:
        start_timeout, stop_timeout, on_crash = options
        actor = kind(
            number=len(self.stage.actors),
            stage=self.stage,
            scripts=scripts,
            depends_on=(*depends_on, *classes),
            start_timeout=start_timeout,
            stop_timeout=stop_timeout,
            on_crash=on_crash,
        )
        self.stage.add(actor)
        return actor

    @rule(actors=some_actors)
    def start(self, actors: list[Actor]) -> None:
        self.stage.spawn("start", actors)

    @rule(actors=some_actors)
    def stop(self, actors: list[Actor]) -> None:
        self.stage.spawn("stop", actors)

    @rule(count=st.integers(1, 4))
    def turn(self, count: int) -> None:
        self.stage.loop.turn(count)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1.0, 2.0, 5.0, 30.0]))
    def advance(self, seconds: float) -> None:
        self.stage.loop.advance(seconds)

    @precondition(lambda self: any(not task.done() for task in self.stage.callers))
    @rule(number=st.integers(0, 7))
    def cancel_a_caller(self, number: int) -> None:
        callers = [task for task in self.stage.callers if not task.done()]
        callers[number % len(callers)].cancel()

    @precondition(lambda self: any(actor.starting for actor in self.stage.actors))
    @rule(number=st.integers(0, 7))
    def cancel_a_start_from_outside(self, number: int) -> None:
        actors = [actor for actor in self.stage.actors if actor.starting is not None]
        actor = actors[number % len(actors)]
        assert actor.starting is not None
        actor.cancelled_from_outside = True
        actor.starting.cancel()

    @precondition(lambda self: self.stage.closing is None and len(self.stage.callers) > 1)
    @rule(limit=st.sampled_from([20.0, 2.0, 0.0]))
    def close(self, limit: float) -> None:
        self.stage.close(limit)

    @precondition(lambda self: self.stage.closing is not None and not self.stage.hurried)
    @rule()
    def hurry(self) -> None:
        self.stage.hurry()

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
    max_examples=20_000 if THOROUGH else 300,
    stateful_step_count=50,
    suppress_health_check=list(HealthCheck),
)
TestSupervisorLives = SupervisorLives.TestCase
