"""Memory of batches: used again when nobody holds it, never while anybody does."""

import pytest
import torch

from semantica.pairs.batch_memory import BatchMemory


def test_memory_is_used_again_when_the_tensor_is_gone():
    memory = BatchMemory()
    place = memory.new(2, 3).data_ptr()
    assert memory.new(3, 2).data_ptr() == place
    assert memory.new(6).data_ptr() == place


@pytest.mark.parametrize(
    "part",
    [
        lambda tensor: tensor,
        lambda tensor: tensor[1],
        lambda tensor: tensor.view(16)[3:5],
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor[1:].numpy()[0],
        lambda tensor: tensor.detach().untyped_storage(),
        lambda tensor: (tensor * torch.ones(4, 4, requires_grad=True)).sum(),  # saved for the backward pass
    ],
)
def test_memory_of_which_any_part_is_held_is_not_given_again(part):
    memory = BatchMemory()
    tensor = memory.new(4, 4)
    place, held = tensor.data_ptr(), part(tensor)
    del tensor
    assert all(memory.new(4, 4).data_ptr() != place for _ in range(10))
    del held
    assert memory.new(4, 4).data_ptr() == place


def test_tensors_that_are_all_held_are_all_different_and_do_not_stay_for_ever():
    memory = BatchMemory()
    held = [memory.new(5).fill_(number) for number in range(50)]
    assert [tensor[0].item() for tensor in held] == list(range(50))
    assert len(memory._arrays) == 16


def test_a_gradient_is_that_of_the_values_at_the_time():
    memory, weight = BatchMemory(), torch.ones(3, requires_grad=True)
    loss = (memory.new(3).fill_(2) * weight).sum()
    memory.new(3).fill_(7)
    loss.backward()
    assert weight.grad.tolist() == [2, 2, 2]
