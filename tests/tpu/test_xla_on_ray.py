"""The torch-xla backend on a real Ray: the stage `train` end to end, and a slice of two hosts that Ray takes for TPUs."""

import os

import pytest
import torch

pytestmark = [pytest.mark.tpu, pytest.mark.ray]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(encodings, selection, config, runtime) of drawn pictures, made by the stages before train, on a Ray of two CPUs."""
    from small import draw_pages, random_encoder, small_config

    from semantica.distributed.encode import encode
    from semantica.distributed.ingest import ingest
    from semantica.distributed.pairs import pairs
    from semantica.distributed.runtime import ClusterConfig, Runtime
    from semantica.distributed.session import ray_session
    from semantica.tracking import TrackingConfig

    base = tmp_path_factory.mktemp("small")
    config = small_config(random_encoder(base / "encoder"))
    cluster = ClusterConfig(num_actors=1, num_workers=1, xla_cpu_devices=2, max_failures=1, object_store_mb=128, num_cpus=2)
    runtime = Runtime(cluster=cluster, tracking=TrackingConfig(uri=f"sqlite:///{base}/mlflow.db"))
    with ray_session(cluster):
        root = draw_pages(base / "pictures")
        ingest(
            config.ingest, root=root, out=base / "episodes", runtime=runtime, pictures=[("drawn pictures", "these tests", "CC0")]
        )
        encode(config.encode, episodes=base / "episodes", out=base / "encodings", runtime=runtime)
        pairs(config.band, encodings=base / "encodings", out=base / "selection", scores=None, runtime=runtime)
        yield base / "encodings", base / "selection", config, runtime


def test_the_stage_trains_on_xla_what_the_loop_trains_eagerly(small, tmp_path):
    from semantica.config import override
    from semantica.distributed.train import MODEL, train
    from semantica.pairs.loader import open_pairs
    from semantica.training.checkpoint import Provenance, open_checkpoint
    from semantica.training.feed import training_loader
    from semantica.training.loop import Hooks, fit
    from semantica.training.start import open_inputs

    encodings, selection, config, runtime = small
    # Samples are drawn on the way: on the host, from weights that are on the devices.
    recipe = override(config.train, {"sample_every": 4, "num_samples": 2, "peak_tflops": 0.01})
    manifest = train(recipe, open_inputs(recipe, encodings, selection), out=tmp_path / "checkpoint", runtime=runtime)
    assert manifest.counts == {"num_steps": 6}
    loader = training_loader(recipe, open_pairs(encodings, selection))
    reports = []
    eager = fit(recipe, loader, Provenance({}, "", ""), Hooks(reports.append, lambda state: None))
    assert manifest.facts["loss"] == pytest.approx(reports[-1].loss, rel=1e-5)
    trained = dict(open_checkpoint(tmp_path / "checkpoint" / MODEL).network(ema=False).named_parameters())
    # It was XLA: sums in another order are other bits.
    assert any(not torch.equal(trained[name], value) for name, value in eager.named_parameters())
    for name, value in eager.named_parameters():
        torch.testing.assert_close(trained[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_two_hosts_of_a_slice_come_up_as_workers_that_know_their_places(tmp_path):
    """Without a TPU: Ray is told of one, XLA runs on its CPU client, whose processes do not see each other."""
    import ray
    import ray.train
    from ray.cluster_utils import Cluster
    from ray.train import FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer

    from semantica.distributed.xla import XlaConfig, tpu_scaling

    def work():
        import torch.distributed as dist

        from semantica.training.xla import XlaMesh

        mesh = XlaMesh()
        step = float((torch.arange(4.0).to(mesh.device) * 2).sum())
        gathered = [None, None]
        labels = ray.get_runtime_context().get_node_labels()
        mine = (
            dist.get_rank(),
            labels["ray.io/tpu-worker-id"],
            mesh.num_chips,
            step,
            os.environ["PJRT_DEVICE"],
            dist.get_backend(),
        )
        dist.all_gather_object(gathered, mine)
        return gathered

    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    )
    try:
        for number in range(2):
            labels = {"slice-name": "slice-0", "worker-id": str(number), "topology": "2x2x2", "pod-type": "v4-16"}
            head = {"TPU-v4-16-head": 1} if number == 0 else {}
            cluster.add_node(
                num_cpus=1,
                object_store_memory=80 * 2**20,
                resources={"TPU": 4, "slice-0": 1, "accelerator_type:TPU-V4": 1, **head},
                labels={f"ray.io/tpu-{name}": value for name, value in labels.items()} | {"ray.io/accelerator-type": "TPU-V4"},
                env_vars={"TPU_NAME": "slice-0", "TPU_WORKER_ID": str(number)},
            )
        cluster.wait_for_nodes()
        ray.init(address=cluster.address)
        result = TorchTrainer(
            work,
            torch_config=XlaConfig(platform="CPU", num_cpu_devices=2),
            scaling_config=tpu_scaling(2, "TPU-V4", "2x2x2", 1.0),
            run_config=RunConfig(
                name="slice", storage_path=str(tmp_path), failure_config=FailureConfig(max_failures=0, controller_failure_limit=0)
            ),
        ).fit()
        gathered = result.return_value
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert [rank for rank, *_ in gathered] == [0, 1]
    assert sorted(number for _, number, *_ in gathered) == ["0", "1"]
    assert [rest for _, _, *rest in gathered] == [[2, 12.0, "CPU", "gloo"]] * 2
