"""What several test files of this folder share. Its modules are imported late: the shape checker's hook comes first."""

import pytest


@pytest.fixture
def server():
    """The server of tests/episodes/fetch_server.py, in threads of its own."""
    from tests.episodes.fetch_server import serving

    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """References to good files (some alike, some the same), to bad ones and to none."""
    from semantica.episodes.pages import ImageRef
    from semantica.episodes.quarantine import Reason
    from tests.episodes.ingesting import noise

    root = tmp_path_factory.mktemp("pool")
    files = {f"good{i}": noise(i) for i in range(6)}
    files |= {
        "copy0": noise(0),
        "near1": noise(1, side=48),
        "small": noise(7, side=4),
        "empty": b"",
        "html": b"<html>",
        "cut": noise(8)[:-40],
    }
    for name, data in files.items():
        (root / name).write_bytes(data)
    refs = {name: ImageRef(name, str(root / name)) for name in files}
    refs["gone"] = ImageRef("gone", str(root / "gone"))
    refs["remote"] = ImageRef("https://host/a.png", "", Reason.REMOTE_URL, "not fetched")
    return refs
