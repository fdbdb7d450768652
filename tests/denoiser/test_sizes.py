"""The named sizes are those of the paper, as far as method.md section 3 works them out."""

import pytest

from semantica.config import from_dict, to_dict
from semantica.denoiser.configs import DenoiserConfig, base, base_no_patch, final, small, tiny
from semantica.denoiser.sizes import num_parameters, training_flops


@pytest.mark.parametrize(
    ("make", "millions", "gflop"), [(base, 463, 955), (base_no_patch, 465, 1422), (final, 1481, 4098), (small, 84, 135)]
)
def test_size_is_within_two_percent_of_the_expected(make, millions, gflop):
    assert num_parameters(make()) / 1e6 == pytest.approx(millions, rel=0.02)
    assert training_flops(make()) / 1e9 == pytest.approx(gflop, rel=0.02)


def test_tiny_fits_a_demo_on_two_cpu_cores():
    assert 2e6 < num_parameters(tiny()) < 4e6
    assert training_flops(tiny()) < 1e9  # at some 60 GFLOP/s a thread


@pytest.mark.parametrize("make", [base, base_no_patch, final, small, tiny])
def test_a_size_survives_the_configuration_door(make):
    assert from_dict(DenoiserConfig, to_dict(make())) == make()
