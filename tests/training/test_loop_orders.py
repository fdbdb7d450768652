"""What the loop does when it is asked from outside to save, or to save and end: no bit of the weights depends on it."""

import pytest
import torch

from semantica.training.checkpoint import open_checkpoint, write_checkpoint
from semantica.training.loop import Hooks, Order, fit


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def trained(tiny, config, folder, orders=(), start=None, **hooks):
    """The weights, and the steps that were saved, of a training that is given `orders` after its first steps."""
    folder.mkdir(exist_ok=True)
    asked, saved = iter(orders), []

    def on_checkpoint(state):
        saved.append(state.step)
        write_checkpoint(folder / str(state.step), state.snapshot())

    hooks = Hooks(lambda report: None, on_checkpoint, **({"order": lambda step: next(asked, Order.GO_ON)} | hooks))
    network = fit(config, tiny.loader(config), tiny.provenance, hooks, start=start)
    return dict(network.named_parameters()), saved


def test_a_training_that_is_stopped_is_saved_at_that_step_and_goes_on_to_the_same_weights(tiny, tmp_path):
    config = tiny.config(checkpoint_every=100)
    whole, _ = trained(tiny, config, tmp_path / "whole")
    _, saved = trained(tiny, config, tmp_path / "stopped", [Order.GO_ON, Order.STOP])
    assert saved == [2]
    ended, saved = trained(tiny, config, tmp_path / "again", start=open_checkpoint(tmp_path / "stopped" / "2"))
    assert saved == [config.num_steps]
    assert all(torch.equal(value, whole[name]) for name, value in ended.items())


def test_a_training_that_is_stopped_at_a_step_is_saved_there_after_what_that_step_does_beside_it(tiny, tmp_path):
    config, done = tiny.config(checkpoint_every=100), []
    whole, _ = trained(tiny, config, tmp_path / "whole")
    saved_before = []

    def on_step(step, network, ema):
        done.append(step)
        saved_before.append((tmp_path / "paused" / str(step)).exists())

    pause = {"on_step": on_step, "order": lambda step: Order.STOP if step == 2 else Order.GO_ON}
    _, saved = trained(tiny, config, tmp_path / "paused", **pause)
    assert (saved, done, saved_before) == ([2], [1, 2], [False, False])
    start = open_checkpoint(tmp_path / "paused" / "2")
    ended, saved = trained(tiny, config, tmp_path / "again", start=start, on_step=on_step)
    assert (saved, done) == ([config.num_steps], [1, 2, 3, 4, 5, 6])
    assert all(torch.equal(value, whole[name]) for name, value in ended.items())


def test_a_training_that_is_asked_to_save_saves_once_and_changes_nothing(tiny, tmp_path):
    config = tiny.config(checkpoint_every=2)
    whole, due = trained(tiny, config, tmp_path / "whole")
    ended, saved = trained(tiny, config, tmp_path / "asked", [Order.SAVE, Order.SAVE])
    assert saved == sorted({1, *due})  # step 2 is due anyway
    assert all(torch.equal(value, whole[name]) for name, value in ended.items())
