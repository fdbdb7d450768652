"""What several test files of this folder share. Its modules are imported late: the shape checker's hook comes first."""

import pytest


@pytest.fixture
def server():
    """The server of tests/episodes/fetch_server.py, in threads of its own."""
    from tests.episodes.fetch_server import serving

    with serving() as running:
        yield running
