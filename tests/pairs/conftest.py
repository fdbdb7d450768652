"""Small runs that several test files of the loader share."""

import pytest


@pytest.fixture(scope="module")
def run(tmp_path_factory, make):
    """A folder with encodings (22 and 18 pictures), their scores and the selection of the band 0.1 to 0.9."""
    folder = tmp_path_factory.mktemp("run")
    make.encodings(folder / "encodings")
    make.scores(folder / "scores", folder / "encodings")
    make.selection(folder / "selection", folder / "scores", low=0.1, high=0.9)
    return folder


@pytest.fixture(scope="module")
def lean(tmp_path_factory, make):
    """The pictures of `run`, without stored tokens."""
    folder = tmp_path_factory.mktemp("lean")
    make.encodings(folder / "encodings", tokens=False)
    make.scores(folder / "scores", folder / "encodings")
    make.selection(folder / "selection", folder / "scores", low=0.1, high=0.9)
    return folder
