"""Lock step: runs stop at the same points, one at a time, and end together when one of them fails."""

from __future__ import annotations

import threading

import pytest

from fec_fast.recovery.lockstep import Pause, run_in_lock_step

ORDER = {"a": 0, "b": 1, "c": 2}


def test_everyone_waits_at_every_point() -> None:
    events: list[str] = []

    def run_of(name: str, points: str) -> object:
        def run(pause: Pause) -> None:
            for point in points:
                events.append(f"{name} reaches {point}")
                pause(point)
            events.append(f"{name} ends")

        return run

    run_in_lock_step([run_of("1", "abc"), run_of("2", "bc")], lambda point: events.append(f"between at {point}"), ORDER)
    assert events == [
        "1 reaches a",
        "2 reaches b",
        "between at a",
        "1 reaches b",
        "between at b",
        "1 reaches c",
        "2 reaches c",
        "between at c",
        "1 ends",
        "2 ends",
    ]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["first run", "second run", "between"])
def test_an_exception_ends_every_run(error: BaseException, place: str) -> None:
    threads = threading.active_count()
    ended: list[str] = []

    def run_of(name: str) -> object:
        def run(pause: Pause) -> None:
            try:
                pause("a")
                if name == place:
                    raise error
                pause("b")
            except Exception:  # a model's code must not catch the exception that ends the run
                if name != place:
                    pytest.fail("caught")
                raise
            finally:
                ended.append(name)

        return run

    def between(point: str) -> None:
        if place == "between" and point == "b":
            raise error

    with pytest.raises(type(error)):
        run_in_lock_step([run_of("first run"), run_of("second run")], between, ORDER)
    assert sorted(ended) == ["first run", "second run"]
    assert threading.active_count() == threads
