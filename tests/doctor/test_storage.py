"""Storage: on a disk, where nothing can be written, on an S3 server, and in memory. Nothing is left behind."""

import os
import time
import uuid

import pytest

from semantica.data.location import location
from semantica.doctor.storage import _seen_while_replaced, check_shared, check_storage, file_system, space

GOOD = ["storage.place", "storage.rename", "storage.create"]


def by_name(found):
    return {finding.name: finding for finding in found}


def test_a_folder_on_a_disk_keeps_what_stages_rest_on_and_nothing_is_left(tmp_path):
    found = by_name(check_storage(str(tmp_path / "runs" / "out")))
    assert list(found) == [*GOOD, "storage.fsync", "storage.space", "storage.shared"]
    assert all(found[name].status == "OK" for name in GOOD)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_fails(tmp_path):
    (tmp_path / "file").write_text("")
    for where in (tmp_path / "file", tmp_path / "file" / "out"):
        (finding,) = check_storage(str(where))
        assert finding.status == "FAIL"
        assert f"{tmp_path / 'file'} is a file" in finding.found


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc, which nobody can write to")
def test_a_folder_that_cannot_be_written_fails():
    (finding,) = check_storage("/proc/runs")
    assert (finding.name, finding.status) == ("storage.place", "FAIL")
    assert "/proc cannot be written" in finding.found


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_fails(tmp_path):
    tmp_path.chmod(0o555)
    (finding,) = check_storage(str(tmp_path / "out"))
    assert "Permission denied" in finding.found


def test_an_object_store_is_tried_and_left_as_it_was(s3):
    where = f"{s3}/doctor-{uuid.uuid4().hex}"
    found = by_name(check_storage(where))
    assert list(found) == GOOD
    assert all(finding.status == "OK" for finding in found.values()), found
    assert not location(where).exists()


def test_a_bucket_that_is_not_there_fails_with_what_to_look_at(s3):
    (finding,) = check_storage("s3://no-such-bucket-of-ours/out")
    assert finding.status == "FAIL"
    assert "AWS_PROFILE" in finding.remedy


def test_memory_is_a_store_too():
    assert [finding.status for finding in check_storage(f"memory://{uuid.uuid4().hex}/out")] == ["OK", "OK", "OK"]


def test_an_unknown_scheme_fails():
    (finding,) = check_storage("ftp://host/out")
    assert finding.status == "FAIL"
    assert "ftp://" in finding.found


def test_a_file_that_is_written_in_place_is_seen_in_parts(tmp_path, monkeypatch):
    """The watcher's own test: a "replace" as a mounted bucket does it, the old file away first and the new one copied."""

    def copy(self, target):
        target.unlink()
        time.sleep(0.01)
        target.write_bytes(self.read_bytes())

    assert _seen_while_replaced(tmp_path / "whole") == ""
    monkeypatch.setattr(type(tmp_path), "replace", copy)
    assert _seen_while_replaced(tmp_path / "parts") in ("No such file or directory", "parts of both")


@pytest.mark.parametrize(("free", "status"), [(1e9, "FAIL"), (5e9, "WARN"), (5e10, "OK")])
def test_room_is_asked_for(tmp_path, free, status):
    assert space(tmp_path, free).status == status


def test_a_disk_of_one_machine_is_a_warning_where_there_are_others(tmp_path):
    assert check_shared(tmp_path, "ext4", None).status == "OK"
    assert (
        check_shared(tmp_path, "ext4", "127.0.0.1:6379").status == "WARN"
    )  # a head may have nodes elsewhere, or be behind a tunnel
    assert check_shared(tmp_path, "ext4", "10.0.0.7:6379").status == "WARN"
    assert check_shared(tmp_path, "nfs4", "10.0.0.7:6379").status == "OK"
    assert check_shared(tmp_path, "fuse.gcsfuse", None).status == "FAIL"


def test_the_kind_of_a_file_system_is_that_of_the_nearest_mount():
    assert file_system(location("/proc/self")) in ("proc", "")
