import pytest


@pytest.fixture
def made():
    """made(index, curve, **changes): a result with this curve; a curve shorter than its four points was stopped there."""
    from semantica.sweeps.results import Figure, Result

    def make(index, curve, *, flops=1.0, num_points=4, status=None, **settings):
        own = {"encoder": "a", "conditioning": "film", "patching": "2x2", "learning_rate": 1e-3, "band_low": 0.3, "band_high": 0.9}
        steps = tuple(10 * p for p in range(1, num_points + 1))
        figures = tuple(
            Figure(point=p, step=steps[p - 1], frechet=float(value), num_samples=64, num_reference=100, extractor="encoder",
                   seconds=1.0, measuring_seconds=0.5)
            for p, value in enumerate(curve, 1)
        )  # fmt: skip
        ended = status or ("stopped" if len(curve) < num_points else None)
        is_trained, ended = not ended, None if ended == "running" else ended
        return Result(
            index=index, name=f"{index:03d}", drawn={}, settings=own | settings, steps=steps, flops=flops, figures=figures,
            ended=ended, reason="", is_trained=is_trained,
        )  # fmt: skip

    return make
