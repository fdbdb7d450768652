"""Ports of Ray and MLflow: whether each is free, and which process holds it."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psutil

from semantica.doctor.finding import Finding, fail, ok, warn


@dataclass(frozen=True)
class Port:
    """owner: a pattern of the command lines that the port is meant for. flag: the option that chooses another port."""

    number: int
    owner: str
    flag: str


_RAY = r"\bray\b|\bgcs_server\b|\braylet\b"
PORTS: Mapping[str, Port] = {
    "gcs": Port(6379, _RAY, "ray start --port"),
    "dashboard": Port(8265, _RAY, "ray start --dashboard-port"),
    "client": Port(10001, _RAY, "ray start --ray-client-server-port"),
    "mlflow": Port(5000, r"\bmlflow\b", "mlflow server --port"),
}


def check_ports(ports: Mapping[str, Port] = PORTS) -> Iterator[Finding]:
    """One finding per port of this machine."""
    for name, port in ports.items():
        yield port_free(f"ports.{name}", port)


def port_free(name: str, port: Port) -> Finding:
    """Whether the port is free, or held by a program that it is meant for."""
    number = port.number
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", number))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            return fail(name, f"{number}: {error.strerror}", f"take another one with {port.flag}")
    else:
        return ok(name, f"{number} is free")
    command, addresses = holder(number)
    if command is None:
        return warn(name, f"{number} is held by a process that is not yours", f"take another one with {port.flag}")
    if not re.search(port.owner, command):
        return warn(name, f"{number} is held by {command}", f"end it, or take another one with {port.flag}")
    if addresses & {"0.0.0.0", "::"} and name.endswith(("dashboard", "mlflow")):
        remedy = "everybody who reaches it may use it: listen on 127.0.0.1, and for Ray set RAY_AUTH_MODE=token"
        return warn(name, f"{number} is held by {command}, on every network", remedy)
    return ok(name, f"{number} is held by {command}")


def holder(port: int) -> tuple[str | None, set[str]]:
    """(command and pid of the process that listens on the port, None without the right to see it; the addresses it listens on)."""
    command, addresses = None, set()
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return None, set()
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or connection.laddr.port != port:
            continue
        addresses.add(connection.laddr.ip)
        if connection.pid is None:
            continue
        try:
            words = psutil.Process(connection.pid).cmdline()
        except psutil.Error:
            continue
        command = f"{' '.join(words)[:160]} (pid {connection.pid})"
    return command, addresses
