"""What the torch-xla backend tells TPU hosts and asks of them; no TPU and no torch-xla is needed here."""

import pytest

from semantica.distributed.runtime import ClusterConfig
from semantica.distributed.xla import Host, XlaBackend, XlaConfig, XlaProcess, check_processes, slice_environments, tpu_scaling
from semantica.errors import ConfigError


def test_the_backend_is_never_the_one_that_ray_chooses_for_tpus():
    config = XlaConfig()
    assert config.backend == "gloo"
    assert config.backend_cls is XlaBackend


@pytest.mark.parametrize(
    ("accelerator", "topology", "workers", "chips"),
    [("TPU-V6E", "4x4", 4, 4), ("TPU-V6E", "4x4", 8, 4), ("TPU-V6E", "2x4", 1, 8), ("TPU-V4", "2x2x2", 2, 4)],
)
def test_scaling_is_a_worker_a_host_with_all_its_chips(accelerator, topology, workers, chips):
    scaling = tpu_scaling(workers, accelerator, topology, 8.0)
    assert scaling.use_tpu
    assert (scaling.num_workers, scaling.topology, scaling.accelerator_type) == (workers, topology, accelerator)
    assert scaling.resources_per_worker == {"CPU": 8.0, "TPU": chips}


def test_workers_that_fill_no_whole_slices_are_refused():
    with pytest.raises(ConfigError, match="num_workers must be a multiple of 4, the hosts of a 4x4 slice of TPU-V6E, got 6"):
        tpu_scaling(6, "TPU-V6E", "4x4", 1.0)


@pytest.mark.parametrize("topology", ["4by4", "4x4x", ""])
def test_a_topology_that_is_none_is_refused(topology):
    with pytest.raises(ConfigError, match=r"cluster.tpu_topology: .* is no slice"):
        tpu_scaling(4, "TPU-V6E", topology, 1.0)


def test_hosts_of_one_slice_need_no_more_than_they_know():
    assert slice_environments([Host("a", 1, "10.0.0.1"), Host("a", 0, "10.0.0.2")]) == [{}, {}]


def test_hosts_of_several_slices_are_told_their_slice_and_one_coordinator_whatever_their_ranks():
    hosts = [Host("b", 1, "10.0.0.4"), Host("a", 1, "10.0.0.2"), Host("b", 0, "10.0.0.3"), Host("a", 0, "10.0.0.1")]
    told = slice_environments(hosts)
    assert [t["MEGASCALE_SLICE_ID"] for t in told] == ["1", "0", "1", "0"]
    assert {t["MEGASCALE_NUM_SLICES"] for t in told} == {"2"}
    assert {t["MEGASCALE_COORDINATOR_ADDRESS"] for t in told} == {"10.0.0.1:8081"}


def test_two_workers_on_one_host_are_refused():
    with pytest.raises(ConfigError, match="one worker per TPU host is expected, got two on host 1 of slice 'a'"):
        slice_environments([Host("a", 0, "x"), Host("a", 1, "y"), Host("a", 1, "y")])


def test_workers_are_one_runtime_when_every_process_is_there_once_in_any_order():
    check_processes([XlaProcess(1, 2, 8), XlaProcess(0, 2, 8)])


@pytest.mark.parametrize(
    "seen",
    [
        [XlaProcess(0, 1, 4), XlaProcess(0, 1, 4)],
        [XlaProcess(0, 4, 16), XlaProcess(1, 4, 16)],
        [XlaProcess(0, 2, 8), XlaProcess(0, 2, 8)],
    ],
)
def test_workers_that_are_several_runtimes_or_part_of_one_are_refused(seen):
    with pytest.raises(ConfigError, match="XLA must see 2 processes, one per TPU host"):
        check_processes(seen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tpu_type": "TPU-V6E"}, "tpu_topology must be set with tpu_type"),
        ({"tpu_topology": "4x4"}, "tpu_topology must be set with tpu_type"),
        ({"tpu_type": "TPU-V6E", "tpu_topology": "4x4", "use_gpu": True}, "one of use_gpu, tpu_type and xla_cpu_devices"),
        ({"xla_cpu_devices": 2}, "with num_workers = 1"),
        ({"xla_cpu_devices": 0, "num_workers": 1}, "1 or more"),
    ],
)
def test_settings_that_name_no_one_kind_of_device_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        ClusterConfig(**settings)


def test_xla_is_used_on_tpus_and_when_its_cpu_client_is_asked_for():
    assert not ClusterConfig().use_xla
    assert ClusterConfig(tpu_type="TPU-V6E", tpu_topology="4x4", num_workers=4).use_xla
    assert ClusterConfig(xla_cpu_devices=2, num_workers=1).use_xla
