"""How the arithmetic is done changes rounding, not what is trained: precision, layout, compilation, activation checkpointing."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from semantica.config import from_dict
from semantica.errors import ConfigError
from semantica.training.compute import autocast, prepare, shard_units
from semantica.training.loop import Hooks, fit, initial_network
from semantica.training.recipe import ComputeConfig
from semantica.training.step import add_gradients, step_noise
from tests.signals import dropping


def trained(tiny, compute):
    """(reports, network) of a few steps."""
    config = tiny.config(compute=compute, log_every=1)
    reports = []
    hooks = Hooks(reports.append, lambda state: None)
    return reports, fit(config, tiny.loader(config), tiny.provenance, hooks)


@pytest.mark.parametrize("recompute", ["transformer", "all"])
def test_activation_checkpointing_trains_the_same_network_bit_for_bit(tiny, recompute):
    expected, network = trained(tiny, ComputeConfig())
    reports, other = trained(tiny, ComputeConfig(recompute=recompute))
    assert [r.loss for r in reports] == [r.loss for r in expected]
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_channels_last_trains_alike_up_to_rounding(tiny):
    expected, _ = trained(tiny, ComputeConfig(channels_last=False))
    reports, network = trained(tiny, ComputeConfig())
    assert network.head_out.weight.is_contiguous(memory_format=torch.channels_last)
    assert [r.loss for r in reports] == pytest.approx([r.loss for r in expected], rel=1e-4)


def test_bfloat16_keeps_weights_and_gradients_in_float32_and_the_loss_near(tiny):
    expected, _ = trained(tiny, ComputeConfig())
    reports, network = trained(tiny, ComputeConfig(precision="bfloat16"))
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    losses, near = [r.loss for r in reports], [r.loss for r in expected]
    assert losses != near
    assert losses == pytest.approx(near, rel=0.02)


def test_autocast_makes_products_coarse_and_leaves_the_loss_fine():
    with autocast(ComputeConfig(precision="bfloat16"), "cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == torch.bfloat16
    with autocast(ComputeConfig(), "cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize("size", [1, 2])
def test_maps_between_sharded_weights_are_channels_last_in_the_first_pass_and_the_second(tiny, tmp_path, size):
    config = tiny.config(compute=ComputeConfig(parallel="fsdp", recompute="all"), micro_batch_size=size)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        network = prepare(initial_network(config).train(), config.compute)
        mesh, laid_out = init_device_mesh("cpu", (1,)), []
        for block in shard_units(network):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.GroupNorm):
                module.register_forward_hook(lambda module, args, out: laid_out.append(out.stride()))
        batch = tiny.loader(config).batch(0)
        add_gradients(network, batch, step_noise(0, 0, batch.slots, (3, 16, 16), dropping(0.0)), 0, config)
    finally:
        torch.distributed.destroy_process_group()
    assert len(laid_out) > 20 * 8 // size
    # Not is_contiguous, which does not look at the stride of a batch of one; what chooses a layout does.
    assert all(stride[1] == 1 and stride[0] % stride[2] == 0 and stride[0] > stride[2] for stride in laid_out)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"parallel": "hsdp"}, "shard_workers must be 2 or more with parallel hsdp, got None"),
        ({"parallel": "hsdp", "shard_workers": 1}, "shard_workers must be 2 or more with parallel hsdp, got 1"),
        ({"parallel": "fsdp", "shard_workers": 2}, "shard_workers must be None with parallel fsdp, got 2"),
        ({"shard_workers": 2}, "shard_workers must be None with parallel ddp, got 2"),
        ({"parallel": "zero"}, "parallel: Input should be 'ddp', 'fsdp' or 'hsdp'"),
    ],
)
def test_kinds_that_make_no_sense_are_refused(values, expected):
    with pytest.raises(ConfigError, match=expected):
        from_dict(ComputeConfig, values)


def test_the_step_is_one_graph_and_is_compiled_once():
    """In a process of its own, without the checks of types that the tests put around every function."""
    code = """
        import torch
        from semantica.conditioning.values import Conditioning
        from semantica.conditioning.signals import IMAGES, SIMILARITY
        from semantica.denoiser import configs
        from semantica.denoiser.uvit import UViT
        from semantica.diffusion.settings import ScheduleConfig
        from semantica.training.step import StepNoise, step_loss
        from dataclasses import replace
        config = replace(configs.tiny(), max_images=2, similarity=True)
        network = UViT(config).train()
        graphs = []
        def backend(graph, inputs):
            graphs.append(graph)
            return graph
        step = torch.compile(step_loss, backend=backend, fullgraph=True, dynamic=False)
        schedule = ScheduleConfig(resolution_px=32)
        for seed in range(3):
            torch.manual_seed(seed)
            cond = Conditioning.of(torch.randn(2, 2, 65, 384), torch.randn(2, 2, 384), torch.rand(2))
            masks = {name: torch.rand(2) < 0.5 for name in ("images", "similarity")}
            noise = StepNoise(torch.rand(2), torch.randn(2, 3, 32, 32), masks)
            x = torch.randn(2, 3, 32, 32)
            torch.testing.assert_close(step(network, x, cond, noise, schedule), step_loss(network, x, cond, noise, schedule))
        print(len(graphs))
    """
    found = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.strip() == "1"
