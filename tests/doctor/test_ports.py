"""Ports, really held by a socket of this process, or free."""

import os
import re
import socket

import pytest

from semantica.doctor.ports import PORTS, Port, check_ports, holder, port_free


def test_a_free_port_is_said_to_be_free(free_port):
    finding = port_free("ports.dashboard", Port(free_port, r"\bray\b", "--dashboard-port"))
    assert (finding.status, finding.found, finding.remedy) == ("OK", f"{free_port} is free", "")


def test_a_held_port_names_who_holds_it_and_how_to_take_another(listener):
    number = listener.getsockname()[1]
    finding = port_free("ports.dashboard", Port(number, r"\bno such owner\b", "ray start --dashboard-port"))
    assert finding.status == "WARN"
    assert f"(pid {os.getpid()})" in finding.found
    assert "ray start --dashboard-port" in finding.remedy


def test_a_port_that_is_held_by_whom_it_is_for_is_well(listener):
    finding = port_free("ports.dashboard", Port(listener.getsockname()[1], r"python|pytest", "--dashboard-port"))
    assert finding.status == "OK"


def test_a_dashboard_on_every_network_is_a_warning():
    with socket.socket() as held:
        held.bind(("0.0.0.0", 0))
        held.listen()
        number = held.getsockname()[1]
        open_to_all = port_free("ports.dashboard", Port(number, r"python|pytest", "--dashboard-port"))
        not_a_dashboard = port_free("ports.gcs", Port(number, r"python|pytest", "--port"))
    assert open_to_all.status == "WARN"
    assert "127.0.0.1" in open_to_all.remedy
    assert not_a_dashboard.status == "OK"


def test_the_holder_of_a_free_port_is_nobody(free_port):
    assert holder(free_port) == (None, set())


def test_every_port_of_ray_and_mlflow_has_a_finding(free_port):
    assert {name: port.number for name, port in PORTS.items()} == {"gcs": 6379, "dashboard": 8265, "client": 10001, "mlflow": 5000}
    assert [finding.name for finding in check_ports({"a": Port(free_port, "", "")})] == ["ports.a"]


@pytest.mark.parametrize(
    ("name", "command", "owns"),
    [
        ("gcs", "/v/lib/python3.11/site-packages/ray/core/src/ray/gcs/gcs_server --log_dir=logs", True),
        ("dashboard", "/v/bin/python /v/lib/python3.11/site-packages/ray/dashboard/dashboard.py --host=127.0.0.1", True),
        ("dashboard", "ray-dashboard-NodeHead-0 --host", True),
        ("client", "/v/bin/python -m ray.util.client.server --address=10.0.0.7:6379", True),
        ("mlflow", "/v/bin/python -m uvicorn --host 127.0.0.1 mlflow.server.fastapi_app:app", True),
        ("dashboard", "/v/bin/python -m http.server --directory /srv/array 8265", False),
        ("gcs", "redis-server 127.0.0.1:6379", False),
        ("mlflow", "/usr/sbin/registry serve", False),
    ],
)
def test_owners_are_known_by_their_commands(name, command, owns):
    assert bool(re.search(PORTS[name].owner, command)) is owns


def test_a_port_that_may_not_be_bound_fails():
    finding = port_free("ports.gcs", Port(1, "", "--port"))
    assert finding.status == ("OK" if os.geteuid() == 0 else "FAIL")
