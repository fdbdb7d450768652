"""What the tests of diffusion share. Its modules are imported late: the shape checker's hook comes first."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """One thread: the tensors here are so small that threads only wait for each other, for minutes when the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def z():
    from tests.diffusion.oracles import normal

    return normal((3, 3, 4, 4), 8)


@pytest.fixture
def cond():
    from tests.diffusion.oracles import conditioning

    return conditioning(3)


@pytest.fixture
def branches(z, cond):
    """(conditional, unconditional)."""
    from tests.diffusion.oracles import x_hat_of

    return x_hat_of(z, cond), x_hat_of(z, cond.null())
