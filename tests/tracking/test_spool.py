"""The spool: what was recorded is there, in order, whatever ends the process in the middle of a record, or fills the disk."""

import json
import multiprocessing
import resource
from contextlib import contextmanager

import pytest

from semantica.tracking.spool import (
    FILES,
    JOURNAL,
    Sent,
    Spec,
    Writer,
    artifact_bytes,
    last_status,
    num_waiting,
    records,
    try_lock,
)


def losses(folder):
    return [record["values"]["loss"] for record, _ in records(folder) if record]


def record_losses(folder, values):
    writer = Writer(folder)
    for value in values:
        writer.append("metrics", {"values": {"loss": value}, "step": int(value)})


def test_records_are_there_in_order_each_with_its_own_millisecond(tmp_path):
    record_losses(tmp_path, [float(n) for n in range(500)])
    assert losses(tmp_path) == list(range(500))
    times = [record["ms"] for record, _ in records(tmp_path) if record]
    assert len(set(times)) == 500
    assert times == sorted(times)


def test_reading_goes_on_from_every_offset_that_it_gave(tmp_path):
    record_losses(tmp_path, [0.0, 1.0, 2.0])
    whole = list(records(tmp_path))
    for index, (_, offset) in enumerate(whole):
        assert list(records(tmp_path, offset)) == whole[index + 1 :]


def test_a_record_cut_off_at_any_byte_costs_no_other(tmp_path):
    record_losses(tmp_path, [0.0, 1.0, 2.0])
    journal = (tmp_path / JOURNAL).read_bytes()
    ends = [offset for record, offset in records(tmp_path) if record]
    for cut in range(len(journal) + 1):
        (tmp_path / JOURNAL).write_bytes(journal[:cut])
        record_losses(tmp_path, [9.0])
        # A record without its line break is whole all the same.
        assert losses(tmp_path) == [float(n) for n in range(3) if cut >= ends[n] - 1] + [9.0], cut


def _many(folder, first):
    record_losses(folder, [float(first + n) for n in range(300)])


def test_processes_that_record_at_once_do_not_mix_their_lines(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_many, args=(tmp_path, 1000 * n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = losses(tmp_path)
    for n in range(3):
        assert [value for value in found if value // 1000 == n] == [1000 * n + i for i in range(300)]
    assert len(found) == 900


@contextmanager
def full_disk(limit):
    """Files of this process end at so many bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_once_and_costs_nothing_when_there_is_room_again(tmp_path, caplog):
    writer = Writer(tmp_path)
    for step in range(3):
        writer.append("metrics", {"values": {"loss": float(step)}, "step": step})
    with full_disk((tmp_path / JOURNAL).stat().st_size + 20):  # in the middle of the next record
        for step in range(3, 50):
            writer.append("metrics", {"values": {"loss": float(step)}, "step": step})
        writer.append("artifact", {"name": "grid.png", "folder": None}, b"x" * 10_000)
        assert losses(tmp_path) == [0, 1, 2]
        assert writer.retry() == 48
    writer.append("metrics", {"values": {"loss": 50.0}, "step": 50})
    found = [record for record, _ in records(tmp_path) if record]
    assert [r["values"]["loss"] for r in found if r["kind"] == "metrics"] == list(range(51))
    (artifact,) = [r for r in found if r["kind"] == "artifact"]
    assert (tmp_path / FILES / artifact["id"] / "grid.png").read_bytes() == b"x" * 10_000
    assert caplog.text.count("cannot write to") == 1
    assert "0 records are lost" in caplog.text


def test_a_disk_that_stays_full_does_not_fill_the_memory_too(tmp_path, monkeypatch):
    monkeypatch.setattr("semantica.tracking.spool._HELD_BYTES", 100 * 1024)
    writer = Writer(tmp_path)
    with full_disk(0):
        for step in range(500):
            writer.append("metrics", {"values": {"loss": float(step)}, "step": step})
    writer.retry()
    assert losses(tmp_path) == list(range(400, 500))
    assert writer.num_lost == 400


def test_what_waits_is_counted_by_lane(tmp_path):
    writer = Writer(tmp_path)
    writer.append("metrics", {"values": {"loss": 1.0}, "step": 0})
    writer.append("artifact", {"name": "a", "folder": None}, b"1")
    writer.append("status", {"status": "RUNNING"})
    ends = [end for record, end in records(tmp_path) if record]
    assert num_waiting(tmp_path, Sent()) == 3
    assert num_waiting(tmp_path, Sent(figures=ends[2])) == 1
    assert num_waiting(tmp_path, Sent(figures=ends[0], files=ends[2])) == 1
    assert last_status(tmp_path) == "RUNNING"


def test_how_far_the_sender_got_and_the_spec_come_back_as_they_were(tmp_path):
    spec = Spec("t", "http://127.0.0.1:1", "e", "n", {"a": "b"}, 5, parent=Spec("p", "u", "e", "m", {}, 4))
    spec.keep(tmp_path)
    assert Spec.of(tmp_path) == spec
    sent = Sent(figures=10, files=20, run_id="r", experiment_id="e")
    sent.keep(tmp_path)
    assert Sent.of(tmp_path) == sent
    (tmp_path / "sent.json").write_text(json.dumps({"figures": 1})[:-3])
    assert Sent.of(tmp_path) == Sent()


def test_a_spool_has_one_sender(tmp_path):
    lock = try_lock(tmp_path)
    assert lock is not None
    assert try_lock(tmp_path) is None


@pytest.mark.parametrize("size", [10, 9 * 2**20])
def test_a_large_file_is_linked_and_a_small_one_copied(tmp_path, size):
    source = tmp_path / "weights"
    source.write_bytes(b"1" * size)
    spool = tmp_path / "spool"
    spool.mkdir()
    Writer(spool).append("artifact", {"name": "weights", "folder": None}, source)
    (kept,) = spool.glob(f"{FILES}/*/weights")
    assert kept.read_bytes() == source.read_bytes()
    assert kept.samefile(source) == (size > 8 * 2**20)


def test_artifacts_that_the_sender_deletes_meanwhile_are_counted_no_more(tmp_path):
    assert artifact_bytes(tmp_path) == 0
    writer = Writer(tmp_path)
    for index in range(3):
        writer.append("artifact", {"name": f"{index}.png"}, b"x" * 100)
    assert artifact_bytes(tmp_path) == 300
    first, second, _ = sorted((tmp_path / FILES).glob("*/*"))
    first.unlink()
    second.unlink()
    second.symlink_to(tmp_path / "gone")  # listed, and gone when it is looked at
    assert artifact_bytes(tmp_path) == 100
