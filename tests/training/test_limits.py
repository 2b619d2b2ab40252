"""When something is due beside the steps, and when a training ends."""

import pytest

from ldm.training.limits import TimeLimit, due, saves, too_late


def test_what_is_done_every_so_many_steps_is_done_at_the_start_and_at_the_end_too() -> None:
    assert [step for step in range(10) if due(step, 4)] == [0, 4, 8]
    assert due(7, 4, ends=True) and not due(7, 0, ends=True)


def test_nothing_is_saved_before_the_first_step() -> None:
    assert [step for step in range(10) if saves(step, 4)] == [4, 8]
    assert saves(7, 4, ends=True) and saves(0, 4, ends=True)


def test_a_training_ends_when_its_time_is_used_up() -> None:
    assert not too_late(59.9, 1.0) and too_late(60.0, 1.0) and not too_late(1e9, None)


def test_the_time_of_a_run_that_is_resumed_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strategy:
        def broadcast(self, value: bool) -> bool:
            return value

    class Trainer:
        strategy, should_stop = Strategy(), False

    now = [100.0]
    monkeypatch.setattr("ldm.training.limits.time.monotonic", lambda: now[0])
    first, second, trainer = TimeLimit(1.0), TimeLimit(1.0), Trainer()
    first.on_train_start(trainer, None)
    now[0] += 45
    first.on_train_batch_end(trainer)
    assert not trainer.should_stop and first.state_dict() == {"seconds": 45.0}
    second.load_state_dict(first.state_dict())
    now[0] += 1000  # between the two
    second.on_train_start(trainer, None)
    now[0] += 10
    second.on_train_batch_end(trainer)
    assert not trainer.should_stop
    now[0] += 5
    second.on_train_batch_end(trainer)
    assert trainer.should_stop and second.seconds == 60.0
