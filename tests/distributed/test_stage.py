"""Stages as values: what travels through Ray and back, and what a stage without much to do starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pytest

from semantica.config import config, free
from semantica.data.dataset import MANIFEST, FileEntry, Manifest, StageOutput, read_manifest
from semantica.distributed.runtime import ClusterConfig, Runtime
from semantica.distributed.stage import Pass, Stage, StageSession, run_stage, through_ray
from semantica.errors import ConfigError, DataError
from semantica.pairs.scores import UnreadableShardError
from semantica.tracking import TrackingConfig

ENTRIES = [FileEntry(f"{n}.parquet", n, "0" * 64, (n, n)) for n in range(5)]


@pytest.mark.ray
@pytest.mark.parametrize("pool", [False, True])
def test_shards_and_results_travel_as_the_objects_they_are(local_ray: None, pool: bool) -> None:
    def doubled(factor: int) -> Callable[[FileEntry], tuple[FileEntry, Path]]:
        return lambda entry: (replace(entry, num_bytes=factor * entry.num_bytes), Path(entry.path))

    one = Pass(worker=doubled, arguments=(2,), shards=ENTRIES, pool=pool)
    results = sorted(through_ray(one, ClusterConfig(num_actors=1)), key=lambda result: result[0].path)
    assert results == [doubled(2)(entry) for entry in ENTRIES]
    assert all(type(entry) is FileEntry for entry, _ in results)


@pytest.mark.ray
def test_a_users_error_keeps_its_class_although_its_constructor_takes_other_arguments(local_ray: None) -> None:
    def refuse(folder: Path) -> Callable[[FileEntry], None]:
        def call(entry: FileEntry) -> None:
            raise UnreadableShardError(folder, entry.path, "missing")

        return call

    with pytest.raises(UnreadableShardError, match=r"^/data/0\.parquet: missing; make the dataset again$"):
        list(through_ray(Pass(worker=refuse, arguments=(Path("/data"),), shards=ENTRIES[:1]), ClusterConfig()))


@pytest.mark.ray
def test_what_looks_at_each_result_can_end_the_stage_which_goes_on_later(local_ray: None, tmp_path: Path) -> None:
    out = StageOutput(tmp_path / "out", "waiting", {})
    runtime, seen = Runtime(tracking=TrackingConfig(uri="off")), list[int]()

    def write(to: StageOutput) -> Callable[[int], int]:
        def call(number: int) -> int:
            to.write_shard(f"part-{number}", {"": pa.table({"number": [number]})}, {})
            return number

        return call

    def stage(most: int) -> Stage:
        def look(number: int) -> None:
            seen.append(number)
            if len(seen) == most:
                raise DataError("that is enough")

        def passes(session: StageSession) -> Iterator[Pass[int, int]]:
            todo = [number for number in range(3) if not session.out.has_shard(f"part-{number}")]
            yield Pass(worker=write, arguments=(session.out,), shards=todo, each=look)

        def finish(session: StageSession) -> Manifest:
            return session.out.finish({"num": len(session.out.shard_names())}, {})

        return Stage(name="wait", out=out, passes=passes, finish=finish)

    with pytest.raises(DataError, match="that is enough"):
        run_stage(stage(1), runtime)
    assert not (out.folder / "manifest.json").exists()
    before = out.shard_names()
    seen.clear()
    assert run_stage(stage(99), runtime).counts == {"num": 3}
    assert sorted(seen) == [n for n in range(3) if f"part-{n}" not in before]
    seen.clear()
    assert run_stage(stage(99), runtime).counts == {"num": 3}
    assert not seen


def test_a_relative_output_is_refused_since_workers_have_folders_of_their_own() -> None:
    stage = Stage(
        name="wait", out=StageOutput(Path("out"), "waiting", {}), passes=lambda _: (), finish=lambda s: s.out.finish({}, {})
    )
    with pytest.raises(ConfigError, match="out must be absolute"):
        run_stage(stage, Runtime())


CHILD = """
import json, sys
from jobs.pairs import main
code = main(sys.argv[1:])
print(json.dumps([code, "ray" in sys.modules, "torch" in sys.modules]))
"""


def test_a_few_thousand_pictures_are_scored_without_ray_or_torch_and_the_scores_are_the_same(make: Any, tmp_path: Path) -> None:
    encodings, expected = make.encodings(tmp_path / "encodings"), tmp_path / "expected"
    make.scores(expected, encodings)
    words = ["--encodings", str(encodings), "--out", str(tmp_path / "run" / "selection"), "--tracking.uri", "off", "--low", "-1"]
    done = subprocess.run([sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == [0, False, False]
    assert read_manifest(tmp_path / "run" / "scores", "scores").hash == read_manifest(expected, "scores").hash


@config
class Settings:
    side: int = 1
    threads: int = free(1)


def numbers(tmp_path: Path, settings: Settings, *, fresh: bool = False, refusal: str = "") -> Manifest:
    """A stage without Ray that writes two shards; with a refusal, its work cannot begin."""
    out = StageOutput(tmp_path / "out", "numbers", settings)

    def write(to: StageOutput) -> Callable[[str], None]:
        return lambda name: to.write_shard(name, {"": pa.table({"side": [settings.side]})}, {})

    def passes(session: StageSession) -> Iterator[Pass[str, None]]:
        todo = [name for name in ("a", "b") if not session.out.has_shard(name)]
        yield Pass(worker=write, arguments=(session.out,), shards=todo, here=True)

    def ready(session: StageSession) -> None:
        if refusal:
            raise DataError(refusal)

    stage = Stage(name="numbers", out=out, passes=passes, finish=lambda session: session.out.finish({}, {}), ready=ready)
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", system_metrics_s=0.0)
    return run_stage(stage, Runtime(fresh=fresh, tracking=tracking))


def test_an_output_is_replaced_only_when_the_new_work_is_ready_and_in_a_run_of_its_own(tmp_path: Path) -> None:
    first = numbers(tmp_path, Settings())
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(DataError, match="no weights"):
        numbers(tmp_path, Settings(side=2), fresh=True, refusal="no weights")
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
    with pytest.raises(DataError, match=r"\(side: was 1, now 2\); set the old values again"):
        numbers(tmp_path, Settings(side=2))
    assert numbers(tmp_path, Settings(threads=9), refusal="not asked when all is done") == first
    assert numbers(tmp_path, Settings(side=2), fresh=True).config == {"side": 2, "threads": 1}
    assert sorted(run.data.params["side"] for run in runs(tmp_path)) == ["1", "2"]


def test_a_stage_resumes_with_another_free_setting_in_the_same_run_which_keeps_both_values(tmp_path: Path) -> None:
    numbers(tmp_path, Settings())
    (tmp_path / "out" / MANIFEST).unlink()
    written = (tmp_path / "out" / "a.parquet").stat().st_mtime_ns
    assert numbers(tmp_path, Settings(threads=9)).config == {"side": 1, "threads": 9}
    assert (tmp_path / "out" / "a.parquet").stat().st_mtime_ns == written
    (run,) = runs(tmp_path)
    assert (run.data.params["threads"], run.data.tags["threads"]) == ("1", "9")


def runs(tmp_path: Path) -> list[mlflow.entities.Run]:
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    return list(client.search_runs([client.get_experiment_by_name("semantica").experiment_id]))
