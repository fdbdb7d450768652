"""One thread: the tensors here are so small that threads only wait for each other, for minutes when the cores are shared."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
