"""Features of the denoiser: taps change nothing, and features depend on the picture alone."""

import pytest
import torch

from semantica.errors import ConfigError, DataError


def test_taps_leave_the_output_as_it_is_and_hold_every_block_on_the_way_up(model, x):
    network = model.model.network
    cond, logsnr, taps = model.conditioning.null(2), torch.tensor([0.5, -1.0]), []
    with torch.no_grad():
        assert torch.equal(network(x, logsnr, cond), network(x, logsnr, cond, taps))
    stages = [network.lowest, *network.up]
    assert [tap.shape[2] for tap in taps] == [stage.side for stage in stages for _ in stage.blocks]


def test_features_do_not_depend_on_the_other_pictures(model, x):
    together = model.features(list(x), levels=[0.1, 0.4])
    alone = torch.cat([model.features(row, levels=[0.1, 0.4]) for row in x])
    assert together.shape[2:] == x.shape[2:]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_features_of_some_pixels_and_blocks_are_those_of_the_whole(model, x):
    whole = model.features(list(x), levels=[0.25])
    places = torch.tensor([[0, 17, 255], [3, 3, 100]])
    some = model.features(list(x), levels=[0.25], at=places)
    for row in range(2):
        torch.testing.assert_close(some[row], whole[row].flatten(1)[:, places[row]])
    parts = [model.features(list(x), levels=[0.25], blocks=[0]), model.features(list(x), levels=[0.25], blocks=[1])]
    both = model.features(list(x), levels=[0.25], blocks=[0, 1])
    torch.testing.assert_close(both, torch.cat(parts, 1))
    torch.testing.assert_close(whole[:, : both.shape[1]], both)


def test_features_depend_on_level_conditioning_and_seed(model, x, pictures):
    plain = model.features(x[0], levels=[0.5])
    assert not torch.equal(plain, model.features(x[0], levels=[0.3]))
    assert not torch.equal(plain, model.features(x[0], levels=[0.5], seed=1))
    assert not torch.equal(plain, model.features(x[0], pictures[0], levels=[0.5]))
    assert torch.equal(plain, model.features(x[0], levels=[0.5]))


def test_levels_blocks_and_pixels_that_do_not_exist_are_refused(model, x):
    with pytest.raises(ConfigError, match="levels"):
        model.features(x[0], levels=[1.2])
    with pytest.raises(ConfigError, match="blocks must be numbers from 0 to"):
        model.features(x[0], blocks=[99])
    with pytest.raises(DataError, match="at: expected pixels 0 to 255"):
        model.features(x[0], at=torch.tensor([[256]]))
