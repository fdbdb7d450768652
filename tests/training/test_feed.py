"""Batches made ahead: in order, no more than allowed, and what goes wrong is raised where its step is asked for."""

import threading
import time
from contextlib import suppress

import pytest
import torch

from semantica.errors import DataError
from semantica.training.feed import feed, made_ahead
from semantica.training.step import step_noise


@pytest.mark.parametrize("ahead", [0, 1, 2, 50])
def test_every_step_is_made_once_and_comes_in_order(ahead):
    made = []
    with made_ahead(lambda step: made.append(step) or step, range(3, 20), ahead) as results:
        assert list(results) == list(range(3, 20))
    assert made == list(range(3, 20))


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_no_more_than_the_allowed_number_is_made_ahead(ahead):
    started = []
    with made_ahead(started.append, range(10), ahead) as results:
        for step in range(5):
            next(results)
            deadline = time.monotonic() + 5
            while len(started) < step + 1 + ahead and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)  # for one too many
            assert len(started) == step + 1 + ahead


def test_a_step_is_made_while_the_one_before_is_used():
    used, made = threading.Event(), []

    def make(step):
        if step == 1:
            assert used.wait(5)  # would be set never, if step 1 were made when it is asked for
        made.append(threading.get_ident())
        return step

    with made_ahead(make, range(2), 1) as results:
        assert next(results) == 0
        used.set()
        assert next(results) == 1
    assert set(made) != {threading.get_ident()}


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_is_raised_at_its_own_step_with_its_own_message_and_nothing_is_left_running(ahead):
    before = threading.active_count()

    def make(step):
        if step == 3:
            raise DataError("train: shard 7 is damaged; run semantica encode again")
        return step

    with made_ahead(make, range(9), ahead) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(DataError, match=r"^train: shard 7 is damaged; run semantica encode again$"):
            next(results)
    assert threading.active_count() == before


def test_a_loop_that_fails_does_not_wait_for_what_it_did_not_ask_for():
    made = []

    def make(step):
        made.append(step)
        time.sleep(0.05)
        return step

    with suppress(ZeroDivisionError), made_ahead(make, range(100), 50) as results:
        next(results)
        raise ZeroDivisionError
    assert 1 <= len(made) < 5


def test_the_feed_is_the_loaders_batch_with_the_noise_of_its_slots(tiny):
    config, loader = tiny.config(), tiny.loader(tiny.config(), rank=1, world=2)
    with feed(tiny.loader(config, rank=1, world=2), config, range(2, 5), "cpu") as made:
        for step, (batch, noise) in zip(range(2, 5), made, strict=True):
            expected = loader.batch(step)
            drawn = step_noise(config.seed, step, expected.slots, (3, 16, 16), config.dropout)
            assert batch.slots == expected.slots == range(1, 8, 2)
            assert torch.equal(batch.x, expected.x)
            assert torch.equal(batch.cond.tokens, expected.cond.tokens)
            assert torch.equal(batch.cond.present, expected.cond.present)
            assert torch.equal(noise.t, drawn.t)
            assert torch.equal(noise.eps, drawn.eps)
            assert {name: mask.tolist() for name, mask in noise.dropped.items()} == {
                name: mask.tolist() for name, mask in drawn.dropped.items()
            }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_feed_hands_over_the_same_values(tiny):
    config, loader = tiny.config(), tiny.loader(tiny.config())
    with feed(tiny.loader(config), config, range(20), "cuda") as made:
        for step, (batch, noise) in zip(range(20), made, strict=True):
            expected = loader.batch(step)
            assert batch.x.is_cuda
            assert torch.equal(batch.x.cpu(), expected.x)
            assert torch.equal(batch.cond.tokens.cpu(), expected.cond.tokens)
            assert torch.equal(noise.eps.cpu(), step_noise(config.seed, step, expected.slots, (3, 16, 16), config.dropout).eps)
