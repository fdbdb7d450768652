"""MLflow: whether the tracking URI of a stage can be reached, and whether its version is recent enough."""

from __future__ import annotations

import json
import socket
import sqlite3
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from packaging.version import InvalidVersion, Version

from semantica.data.location import explained
from semantica.doctor.finding import Finding, fail, ok, warn
from semantica.doctor.storage import nearest_existing
from semantica.errors import ConfigError
from semantica.tracking import TrackingConfig, resolve_uri
from semantica.tracking.server import redact

_LEAST = Version("3.17.2")
_START = "mlflow server --host 127.0.0.1 --port 5000 --backend-store-uri sqlite:////ABSOLUTE/mlflow.db"
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def check_tracking(tracking: TrackingConfig, folder: Path, *, seconds: float = 5.0) -> Iterator[Finding]:
    """One finding about the URI. folder: where a stage puts mlflow.db when the URI is empty."""
    name = "mlflow.reachable"
    try:
        uri = resolve_uri(tracking, folder)
    except ConfigError as error:
        yield fail(name, str(error), "file stores are no longer written by MLflow: mlflow migrate-filestore")
        return
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if uri == "off":
        yield ok(name, "off: nothing is recorded")
    elif scheme == "sqlite":
        yield database(Path(uri.removeprefix("sqlite:///").partition("?")[0]))
    elif scheme in ("http", "https"):
        yield server(uri, seconds)
    elif scheme in _PORTS:
        yield port_answers(uri, urlsplit(uri).hostname or "", urlsplit(uri).port or _PORTS[scheme], seconds)
    else:
        yield ok(name, f"{redact(uri)}: not checked; MLflow's client checks it when a stage starts")


def database(path: Path) -> Finding:
    """Whether the SQLite file is a database of MLflow, or can be created."""
    name = "mlflow.reachable"
    if not path.exists():
        above = nearest_existing(path.parent)
        try:
            tempfile.TemporaryFile(dir=above).close()
        except OSError as error:
            remedy = "name another file with --tracking.uri sqlite:////ABSOLUTE/mlflow.db"
            return fail(name, f"{path} cannot be created in {above}: {explained(error)}", remedy)
        return ok(name, f"{path} will be created")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            runs = connection.execute("select count(*) from runs").fetchone()[0]
            schema = connection.execute("select version_num from alembic_version").fetchone()[0]
    except sqlite3.Error as error:
        return fail(name, f"{path} is no database of MLflow ({error})", "name another file, or move this one away")
    try:
        path.open("r+b").close()
    except OSError as error:
        return fail(name, f"{path} cannot be written: {explained(error)}", f"chmod u+w {path}, or name another file")
    return ok(name, f"{path} with {runs} runs (schema {schema})")


def server(uri: str, seconds: float) -> Finding:
    """Whether a server answers, and its version."""
    name, where = "mlflow.reachable", redact(uri)
    try:
        version = _ask(f"{uri.rstrip('/')}/version", seconds)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            remedy = (
                "MLFLOW_TRACKING_USERNAME and _PASSWORD or _TOKEN; for a name that is not localhost, mlflow server --allowed-hosts"
            )
            return fail(name, f"{where} refuses ({error.code})", remedy)
        return fail(name, f"{where} answers {error.code}", f"is this MLflow? {_START}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return fail(
            name, f"{where} does not answer ({reason})", f"start it ({_START}), or give --tracking.uri ''; stages run without it"
        )
    try:
        have = Version(version.strip().strip('"'))
    except InvalidVersion:
        return fail(name, f"{where} says {version[:40]!r}, which is no version", f"is this MLflow? {_START}")
    if have < _LEAST:
        return warn(name, f"{where}, MLflow {have}", f"{_LEAST} is the oldest tested version: pip install 'mlflow>={_LEAST}' there")
    return ok(name, f"{where}, MLflow {have}")


def _ask(url: str, seconds: float) -> str:
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"expected http(s), got {url}")
    with urllib.request.urlopen(url, timeout=seconds) as answer:
        text: str = answer.read(10_000).decode(errors="replace")
    return json.loads(text) if text.startswith('"') else text


def port_answers(uri: str, host: str, port: int, seconds: float) -> Finding:
    """Whether a server listens on the port. User name, password and tables are not checked."""
    name = "mlflow.reachable"
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except OSError as error:
        return fail(
            name, f"{redact(uri)}: nobody at {host}:{port} ({error.strerror or error})", "start the database, or open the port"
        )
    return ok(name, f"{redact(uri)}: {host}:{port} answers; name and password were not tried")
