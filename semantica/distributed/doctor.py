"""The part of semantica doctor that knows Ray: whether a cluster answers, accepts our token, and runs the same Ray.

Every wait has a limit.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray

from semantica.data.location import location
from semantica.doctor.authentication import check_authentication, find_token, host_of
from semantica.doctor.devices import check_devices
from semantica.doctor.finding import Finding, fail, ok, run_check, sentence, warn
from semantica.doctor.ports import check_ports
from semantica.doctor.storage import check_storage
from semantica.doctor.tracking import check_tracking
from semantica.doctor.versions import check_versions
from semantica.doctor.weights import check_weights
from semantica.encoders.settings import EncoderConfig
from semantica.tracking import TrackingConfig

_TRIED_S = 150.0  # for the check of the devices: a TPU is slow to start
NAME = "cluster.reachable"
_TUNNEL = "ray dashboard cluster.yaml or kubectl port-forward brings it to http://127.0.0.1:8265"


def examine(out: str, address: str | None, encoder: EncoderConfig, tracking: TrackingConfig) -> list[Finding]:
    """All findings, in the order of the checks. No check raises, and each has a time limit.

    out: where a stage would write. address: of the cluster; None for a local Ray.
    """
    findings = run_check("versions", check_versions)
    findings += run_check("devices", check_devices, seconds=_TRIED_S)
    findings += run_check("ports", check_ports)
    findings += run_check("authentication", lambda: check_authentication(address))
    findings += run_check("storage", lambda: check_storage(out, address=address), seconds=60.0)
    findings += run_check("weights", lambda: check_weights(encoder))
    findings += run_check("mlflow", lambda: check_tracking(tracking, _beside(out)))
    if address is not None:
        findings += run_check("cluster", lambda: check_cluster(address, os.environ), seconds=60.0)
    return findings


def _beside(out: str) -> Path:
    """Where a stage puts mlflow.db when no server is given."""
    place = location(out)
    return place.parent if isinstance(place, Path) else Path.cwd()


def check_cluster(address: str, environment: Mapping[str, str], *, seconds: float = 10.0) -> Iterator[Finding]:
    """One finding about the cluster at HOST:PORT (of ray start), "auto", or http://HOST:PORT (of the dashboard, for submitting)."""
    scheme = urlsplit(address).scheme if "://" in address else ""
    if scheme == "ray":
        yield fail(NAME, f"{address}: Ray Client", "a driver ends with its connection: submit the job to http://HOST:8265 instead")
    elif scheme in ("http", "https"):
        yield dashboard(address.rstrip("/"), environment, seconds)
    elif scheme:
        yield fail(NAME, f"{address}: unknown scheme", "http://HOST:8265 to submit, HOST:6379 or auto on a node of the cluster")
    else:
        yield gcs(address, seconds)


def dashboard(address: str, environment: Mapping[str, str], seconds: float) -> Finding:
    """Whether the dashboard accepts our token and runs our version of Ray."""
    token, source = find_token(environment)
    sent = token is not None and environment.get("RAY_AUTH_MODE", "").lower() == "token"  # as Ray's own client does
    request = urllib.request.Request(f"{address}/api/version")
    if sent:
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # the token goes to the named address alone
    try:
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            body: Any = json.loads(answer.read(100_000))
            version = str(body["ray_version"])
    except urllib.error.HTTPError as error:
        if error.code == 401:
            return fail(NAME, f"{address} wants a token, none was sent", "export RAY_AUTH_MODE=token, and have the cluster's token")
        if error.code == 403:
            return fail(NAME, f"{address} refuses the token of {source}", "copy ~/.ray/auth_token from the head of the cluster")
        return fail(NAME, f"{address} answers {error.code}", f"is this Ray's dashboard? {_TUNNEL}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "reason", None) or sentence(error)
        return fail(NAME, f"{address} does not answer as a dashboard of Ray ({reason})", _TUNNEL)
    if version != ray.__version__:
        return warn(NAME, f"{address} runs Ray {version}, this is {ray.__version__}", f"pip install 'ray[default]=={version}'")
    return ok(NAME, f"{address} runs Ray {version}")


def gcs(address: str, seconds: float) -> Finding:
    """Whether the head (its GCS) answers. Ray's own command asks, in a process that can be ended."""
    if address != "auto":
        try:
            host, port = host_of(address), urlsplit(f"//{address}").port
        except ValueError:
            host, port = "", None
        if not host or port is None:
            return fail(NAME, f"{address} is no HOST:PORT", "HOST:6379, as ray start printed it")
        try:
            socket.create_connection((host, port), timeout=seconds).close()
        except OSError as error:
            remedy = "check that the head is up and the port is open to this machine; from outside use a tunnel to port 8265"
            return fail(NAME, f"nobody at {address} ({error.strerror or error})", remedy)
    words = [sys.executable, "-m", "ray.scripts.scripts", "health-check", *(["--address", address] if address != "auto" else [])]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=3 * seconds, check=False)
    except subprocess.TimeoutExpired:
        return fail(NAME, f"{address} accepts connections and does not answer", "is it this version of Ray, with the same token?")
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()][-1:] or [f"exit code {done.returncode}"]
        return fail(NAME, f"{address} is not healthy ({said[0][:200]})", "check that both sides have the same Ray and token")
    return ok(NAME, f"{address} is healthy")
