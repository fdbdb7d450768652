"""MLflow tracking that no stage waits for: figures go to a spool on the local disk, and a thread sends them on to MLflow."""

from semantica.tracking.run import Place, Run, TrackingConfig, git_commit, resolve_uri, send_what_is_left, start_run

__all__ = ["Place", "Run", "TrackingConfig", "git_commit", "resolve_uri", "send_what_is_left", "start_run"]
