from dataclasses import replace
from types import SimpleNamespace

import pytest
from safetensors.torch import save_file

from semantica.config import from_args, from_dict, to_dict
from semantica.data.dataset import read_manifest
from semantica.denoiser.configs import shapes
from semantica.denoiser.uvit import UViT
from semantica.distributed.runtime import ClusterConfig
from semantica.distributed.sweep import check, concurrency, scheduler
from semantica.distributed.trial import AGAIN
from semantica.errors import ConfigError, DataError, FieldError
from semantica.jobs.sweep import SweepJob, fig2, main, places, sections
from semantica.presets import preset
from semantica.sweeps.halving import milestones
from semantica.sweeps.plan import SweepPlan, read_plan, write_plan
from semantica.sweeps.points import FRECHET
from semantica.sweeps.settings import SweepConfig
from semantica.sweeps.space import SpaceConfig, Swept, grid
from semantica.training.start import InitialWeights


def parsed(*words):
    return from_args(SweepJob, ["--out", "o", *words], prog="", description="", defaults=sections(preset("tiny")))


def test_the_default_space_is_fig_2_around_the_preset():
    for name in ("tiny", "base"):
        space = fig2(preset(name))
        assert len(grid(space, ["one"])) == 16
        assert preset(name).train.optimizer.learning_rate in space.learning_rate
        assert (preset(name).band.low, preset(name).band.high) in space.band
    assert len(grid(fig2(preset("base-unfiltered")), ["one"])) == 8  # all pairs are its own band


def test_flags_of_the_space_are_read_negative_bands_too():
    job = parsed(
        "--space.band", "0.3", "0.9", "-1", "1", "--space.learning-rate", "1e-3", "--search", "optuna", "--train.num-steps", "7"
    )
    assert job.sweep.space.band == ((0.3, 0.9), (-1.0, 1.0))
    assert job.sweep.space.learning_rate == (1e-3,)
    assert (job.sweep.search, job.train.num_steps) == ("optuna", 7)


def test_encodings_and_scores_go_together(tmp_path):
    a, b = tmp_path / "a" / "encodings", tmp_path / "b" / "encodings"
    assert places([str(a)], []) == ({"a": str(a)}, {"a": str(tmp_path / "a" / "scores")})
    assert places([str(a)], ["elsewhere/s"])[1]["a"].endswith("elsewhere/s")
    found = places([f"x={a}", f"y={b}"], ["y=/sy", "x=/sx"])
    assert found == ({"x": str(a), "y": str(b)}, {"x": "/sx", "y": "/sy"})
    with pytest.raises(ConfigError, match=r"--scores: expected 2, one for each of --encodings, got 1"):
        places([f"x={a}", f"y={b}"], ["x=/sx"])
    with pytest.raises(ConfigError, match=r"--scores: expected the names x, y of --encodings, got x, z"):
        places([f"x={a}", f"y={b}"], ["x=/sx", "z=/sz"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--space.patching", "2x2", "--encodings", "no/such"], "error: encodings: no folder"),
        ([], "error: --encodings: expected one or several paths, got none"),
        (["--resume"], "error: --resume: no sweep was begun in"),
    ],
)
def test_what_is_wrong_is_one_line_and_code_2(words, message, tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_wrong_value_ends_with_code_2(capsys):
    assert main(["--out", "o", "--space.band", "0.9", "0.3"]) == 2
    expected = "error: --space.band (sweep.space.band in YAML) must be -1 <= low < high <= 1, got (0.9, 0.3)\n"
    assert capsys.readouterr().err == expected


def test_a_plan_comes_back_from_its_folder(tmp_path):
    tiny = preset("tiny")
    plan = SweepPlan(
        encodings={"a": "/e"}, scores={"a": "/s"}, sweep=SweepConfig(space=fig2(tiny)), band=tiny.band, train=tiny.train
    )
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan
    (tmp_path / "asked.json").write_text("{")
    with pytest.raises(DataError, match=r"^--resume: .*asked.json is damaged"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    ("cluster", "resources", "expected"),
    [
        ({"num_workers": 1}, {"CPU": 2.0}, 2),
        ({"num_workers": 2}, {"CPU": 2.0}, 1),  # the drivers hold none of them
        ({"num_workers": 2}, {"CPU": 1.0}, 1),  # more may come
        ({"num_workers": 2, "cpus_per_worker": 0.5}, {"CPU": 7.5}, 7),
        ({"num_workers": 2, "use_gpu": True}, {"CPU": 64.0, "GPU": 8.0}, 4),
    ],
)
def test_as_many_trials_run_as_have_room_for_all_their_workers(cluster, resources, expected):
    assert concurrency(ClusterConfig(**cluster), resources) == expected


@pytest.mark.parametrize(("num_points", "factor"), [(4, 1.5), (6, 1.5), (7, 2.5), (9, 3.0), (9, 2.0)])
def test_no_rung_of_asha_is_looked_at_at_the_last_point(num_points, factor):
    config = from_dict(SweepConfig, {"measure": {"num_points": num_points}, "reduction_factor": factor})
    rungs = sorted(scheduler(config).asha.rungs)
    assert all(rung <= num_points - 1 for rung in rungs)
    assert rungs == pytest.approx(milestones(num_points, 1, factor))


def test_what_a_trial_tells_again_is_compared_with_and_does_not_stop_it():
    asha = scheduler(from_dict(SweepConfig, {"measure": {"num_points": 9}}))
    trials = [SimpleNamespace(config={"trial": name}) for name in "abcd"]
    heard = [(1.0, {}), (9.0, {AGAIN: True}), (8.0, {}), (0.5, {})]
    decisions = []
    for trial, (value, more) in zip(trials, heard, strict=True):
        decisions.append(asha.on_trial_result(None, trial, {FRECHET: value, "point": 1} | more))
    assert decisions == ["CONTINUE", "CONTINUE", "STOP", "CONTINUE"]


def test_asha_decides_at_no_last_point():
    config = from_dict(SweepConfig, {"measure": {"num_points": 9}, "grace_points": 1, "reduction_factor": 3.0})
    assert list(scheduler(config).asha.rungs) == [3.0, 1.0]  # not 9
    assert type(scheduler(from_dict(SweepConfig, {"stopping": "none"}))).__name__ == "FIFOScheduler"
    only = from_dict(SweepConfig, {"measure": {"num_points": 1}})
    assert type(scheduler(only)).__name__ == "FIFOScheduler"


@pytest.fixture
def data(make, tmp_path):
    encodings = make.encodings(tmp_path / "encodings")
    return encodings, make.scores(tmp_path / "scores", encodings)


def swept_on(encodings):
    tiny = preset("tiny")
    return Swept(train=tiny.train, band=tiny.band)


def test_the_inputs_are_checked_before_anything_starts(data, make, tmp_path):
    encodings, scores = data
    config = SweepConfig(space=SpaceConfig(learning_rate=(1e-3, 2e-3)))
    source = read_manifest(encodings, "encodings")
    hashes = check(config, swept_on(encodings), {"a": source}, {"a": scores}, ClusterConfig())
    assert hashes == {"encodings.a": source.hash, "scores.a": read_manifest(scores, "scores").hash}
    with pytest.raises(ConfigError, match=r"cluster.num_workers must divide train.num_lanes = 4, got 3"):
        check(config, swept_on(encodings), {"a": source}, {"a": scores}, ClusterConfig(num_workers=3))
    other = read_manifest(make.encodings(tmp_path / "other", salt=1), "encodings")
    with pytest.raises(DataError, match=r"scores holds the scores of other encodings than those of 'a'; run"):
        check(config, swept_on(encodings), {"a": other}, {"a": scores}, ClusterConfig())


def test_initial_weights_that_do_not_fit_a_patching_of_the_sweep_are_refused_before_anything_starts(data, tmp_path):
    encodings, scores = data
    source, config = read_manifest(encodings, "encodings"), SweepConfig(space=SpaceConfig(patching=("2x2", "none")))
    swept = swept_on(encodings)
    for patching, shape in zip(("2x2", "none"), shapes(swept.train.denoiser), strict=True):
        denoiser, path = fitting(shape, source), tmp_path / "model.safetensors"
        save_file({name: p.detach().clone() for name, p in UViT(denoiser).named_parameters()}, path)
        initial = InitialWeights(tmp_path, (path,), "", {"denoiser": to_dict(denoiser)})
        with pytest.raises(FieldError, match="init_from must hold the weights of this denoiser"):
            check(config, swept, {"a": source}, {"a": scores}, ClusterConfig(), initial)
        alone = replace(config, space=SpaceConfig(patching=(patching,)))
        assert check(alone, swept, {"a": source}, {"a": scores}, ClusterConfig(), initial)


def fitting(denoiser, source):
    """The denoiser for these encodings."""
    identity = source.facts["encoder"]
    return replace(denoiser, **{name: identity[name] for name in ("token_dim", "num_tokens", "pooled_dim")})
