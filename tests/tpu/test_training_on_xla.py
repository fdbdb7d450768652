"""The loop on XLA's devices against the eager one: the same numbers up to rounding, one graph, the same checkpoints.

Measured over 12 steps (float32, 2 and 4 devices): losses differ by 2e-7 of themselves, a tensor of weights by 1e-5 of its norm.
That is the rounding of sums in another order, seen through Adam; the tolerances are a few times as much. Bits are compared where
nothing is computed anew.
"""

import pytest
import torch

from semantica.conditioning.values import Conditioning
from semantica.errors import ConfigError
from semantica.training.checkpoint import open_checkpoint
from semantica.training.recipe import ComputeConfig
from semantica.training.step import step_noise
from semantica.training.xla import compile_stats
from tests.signals import dropping

pytestmark = pytest.mark.tpu
KINDS = ("model", "ema", "optimizer")
SKIPPED = (3, 6)


@pytest.fixture(scope="module")
def eager(trained, recipe, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("eager"), recipe(), skipped=SKIPPED)


@pytest.fixture(scope="module")
def on_xla(trained, recipe, tmp_path_factory, mesh, eager):
    return trained(tmp_path_factory.mktemp("xla"), recipe(), mesh, skipped=SKIPPED)


@pytest.fixture(scope="module")
def dropped(trained, recipe, tmp_path_factory, mesh):
    """A run with dropout inside the network."""
    return trained(tmp_path_factory.mktemp("dropped"), recipe(dropout=0.3), mesh)


def distance(a, b):
    """The largest ‖a - b‖ / ‖a‖ of any tensor."""
    assert a.keys() == b.keys()
    return max(float((value - b[name]).norm() / value.norm().clamp_min(1e-30)) for name, value in a.items())


def assert_alike(ours, theirs, tolerance=5e-5):
    assert [p.name for p in sorted(ours.folder.iterdir())] == [p.name for p in sorted(theirs.folder.iterdir())]
    for folder in theirs.folder.iterdir():
        expected, got = open_checkpoint(folder), open_checkpoint(ours.folder / folder.name)
        for kind in KINDS:
            assert distance(expected.tensors(kind), got.tensors(kind)) < tolerance, (folder.name, kind)
    for expected, got in zip(theirs.reports, ours.reports, strict=True):
        assert got.loss == pytest.approx(expected.loss, rel=1e-6)
        assert got.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
        assert [level.num for level in got.levels] == [level.num for level in expected.levels]
        assert (got.step, got.num_skipped, got.learning_rate) == (expected.step, expected.num_skipped, expected.learning_rate)


def test_loss_weights_average_and_moments_of_every_checkpoint_are_those_of_the_eager_path(on_xla, eager):
    assert [r.num_skipped for r in eager.reports] == [1, 1, 0]
    assert_alike(on_xla, eager)


def test_training_moved_the_weights_by_far_more_than_the_tolerance(eager):
    first, last = (open_checkpoint(eager.folder / step).tensors("model") for step in ("5", "12"))
    assert distance(first, last) > 1e-2


def test_no_step_after_the_first_compiles_anything(on_xla):
    """Skipped ones, other learning rates and decays, the steps after reports and checkpoints."""
    before, after_first, *later = on_xla.graphs
    assert after_first - before >= 1
    # Where a report was made: the sums that it reads, and the zeros that the next interval begins with.
    assert later[-1] - after_first <= 2
    assert len(set(later[4:])) == 1


def test_a_second_run_compiles_nothing(trained, recipe, tmp_path, mesh, on_xla):
    before = compile_stats().num_graphs
    again = trained(tmp_path, recipe(), mesh, skipped=SKIPPED)
    assert compile_stats().num_graphs == before
    for kind in KINDS:
        assert same_bytes(again.folder / "12", on_xla.folder / "12", kind)


def same_bytes(a, b, kind):
    return (a / f"{kind}.safetensors").read_bytes() == (b / f"{kind}.safetensors").read_bytes()


@pytest.mark.parametrize("source", ["eager", "xla"])
def test_a_checkpoint_goes_through_the_other_path_bit_for_bit(request, trained, recipe, tmp_path, mesh, source):
    """Opened where it was not written, at its last step, and saved again."""
    run = request.getfixturevalue("eager" if source == "eager" else "on_xla")
    start = open_checkpoint(run.folder / "5")
    # No step is left to make: what is restored is what is saved.
    network, state = restored(start, mesh if source == "eager" else None)
    pieces = state.snapshot().pieces
    for kind in KINDS:
        expected = start.tensors(kind)
        assert pieces[kind].keys() == expected.keys()
        assert all(torch.equal(piece.tensor, expected[name]) for name, piece in pieces[kind].items())
    assert state.snapshot().described["num_optimizer_updates"] == 5
    assert next(network.parameters()).device.type == ("xla" if source == "eager" else "cpu")


def restored(start, xla):
    """(network, state) of a training that goes on from a checkpoint, as `fit` makes it."""
    from semantica.training.backend import TorchBackend
    from semantica.training.checkpoint import TrainState
    from semantica.training.loop import initial_network

    config = start.config
    network = initial_network(config).to(xla.device if xla else "cpu").train()
    backend = xla or TorchBackend()
    ema, optimizer = backend.average(network, config.ema), backend.optimizer(network, config.optimizer)
    start.restore(network, ema, optimizer)
    backend.lay_out(network, ema, optimizer)
    return network, TrainState(network, ema, optimizer, config, start.step, start.provenance)


def test_each_path_goes_on_from_the_others_checkpoint_to_the_same_end(trained, recipe, tmp_path, mesh, eager, on_xla):
    over = trained(tmp_path / "over", recipe(), mesh, open_checkpoint(eager.folder / "5"), SKIPPED)
    back = trained(tmp_path / "back", recipe(), None, open_checkpoint(on_xla.folder / "5"), SKIPPED)
    for run in (over, back):
        for kind in KINDS:
            tensors = open_checkpoint(run.folder / "12").tensors(kind)
            assert distance(open_checkpoint(eager.folder / "12").tensors(kind), tensors) < 5e-5


def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit_with_dropout(trained, recipe, tmp_path, mesh, dropped):
    before = compile_stats().num_graphs
    resumed = trained(tmp_path, recipe(dropout=0.3), mesh, open_checkpoint(dropped.folder / "5"))
    assert compile_stats().num_graphs - before <= 1
    for kind in KINDS:
        assert same_bytes(resumed.folder / "12", dropped.folder / "12", kind)


def test_dropout_is_drawn_from_the_seed_of_the_step(mesh):
    from semantica.training.xla import Seeded

    class Masked(torch.nn.Module):
        def forward(self, z, logsnr, cond):
            return torch.nn.functional.dropout(z, 0.3)

    ones = torch.ones(100, 100).to(mesh.device)
    masks = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        masks.append(Seeded(Masked())(ones, ones, Conditioning.of(torch.ones(1, 1, 1), torch.ones(1, 1))).cpu())
    assert torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[1])
    assert float((masks[0] == 0).float().mean()) == pytest.approx(0.3, abs=4 * (0.21 / 10_000) ** 0.5)


def test_split_weights_train_the_same_and_stay_split(trained, recipe, tmp_path, meshes, eager):
    import torch_xla

    run = trained(tmp_path, recipe(), meshes[1], skipped=SKIPPED)
    assert_alike(run, eager)
    split = [p for p in run.network.parameters() if meshes[1]._is_split(p)]
    assert len(split) >= 10
    for p in split:
        shards = torch_xla._XLAC._get_local_shards([p])[0]
        assert [len(shard[0]) for shard in shards] == [len(p) // meshes[1].num_chips] * meshes[1].num_chips
    assert len(set(run.graphs[6:])) == 1


def test_micro_batches_train_alike(trained, recipe, tmp_path, mesh, eager):
    run = trained(tmp_path, recipe(micro_batch_size=4), mesh, skipped=SKIPPED)
    assert_alike(run, eager)
    assert len(set(run.graphs[5:])) == 1


def test_bfloat16_trains_close_to_the_eager_bfloat16(trained, recipe, tmp_path, mesh):
    config = recipe(compute=ComputeConfig(precision="bfloat16"))
    ours, theirs = trained(tmp_path / "a", config, mesh), trained(tmp_path / "b", config)
    assert [r.loss for r in ours.reports] == pytest.approx([r.loss for r in theirs.reports], rel=1e-4)
    assert len(set(ours.graphs[5:])) == 1


def test_a_batch_is_split_by_slots_over_the_devices(tiny, recipe, mesh):
    import torch_xla

    config = recipe()
    batch = tiny.loader(config).batch(0)
    noise = step_noise(config.seed, 0, batch.slots, (3, 16, 16), dropping(0.5))
    placed, placed_noise = mesh.place(batch, noise)
    assert torch.equal(placed.x.cpu(), batch.x)
    assert torch.equal(placed.cond.present.cpu(), batch.cond.present)
    assert torch.equal(placed_noise.eps.cpu(), noise.eps)
    for tensor in (placed.x, placed.cond.tokens, placed_noise.t):
        shards = torch_xla._XLAC._get_local_shards([tensor])[0]
        assert [len(shard[0]) for shard in shards] == [len(batch.x) // mesh.num_chips] * mesh.num_chips


def test_a_step_in_which_the_host_would_wait_is_refused(mesh):
    number = torch.ones(3).to(mesh.device)
    with pytest.raises(RuntimeError, match="Unexpected execution"), mesh.step():
        float((number * 7).sum())


def test_the_figures_of_all_chips_are_reported_as_if_each_were_a_worker(mesh):
    by_level, steps = [5.0, 6.0, 7.0], [3.0, 1.0, 0.5]
    clock = [1.0, 64.0, 2.0, 0.25]  # workers, images, seconds, waited
    n = mesh.num_chips
    total = mesh.total(torch.tensor([*by_level, *steps, *clock], dtype=torch.float64)).tolist()
    assert total == [*by_level, 3.0 * n, 1.0 * n, 0.5 * n, 1.0 * n, 64.0, 2.0 * n, 0.25 * n]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12, "micro_batch_size": 6}, "train.batch_size must be a multiple of 8"),
        ({"compute": ComputeConfig(compile=True)}, "train.compute.compile must be false on XLA"),
        ({"compute": ComputeConfig(recompute="all")}, "train.compute.recompute must be none on XLA"),
    ],
)
def test_recipes_that_xla_does_not_run_are_refused(recipe, mesh, changes, message):
    with pytest.raises(ConfigError, match=message):
        mesh.prepare(recipe(**changes))
