"""Signals that only this file knows, from their declaration to a release: a vector, tokens and channels beside z.

The vector says how bright the target picture is, so that a denoiser which uses it draws brighter and darker pictures.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import semantica
from semantica.conditioning.signals import Signal
from semantica.conditioning.values import Conditioning, SignalValues
from semantica.config import from_args, from_dict, to_dict
from semantica.data.dataset import StageOutput, read_manifest
from semantica.data.pictures import PictureRef
from semantica.denoiser.configs import DenoiserConfig
from semantica.denoiser.sizes import num_parameters, training_flops
from semantica.diffusion.guidance import guided
from semantica.diffusion.process import bind_with
from semantica.diffusion.settings import GuidanceConfig, SamplerConfig
from semantica.distributed.evaluate import evaluate
from semantica.distributed.runtime import Runtime
from semantica.distributed.sample import ABSENT, COLUMN, DrawShard, generate, origins
from semantica.errors import ConfigError, DataError
from semantica.evaluation.drawing import Sample, SampleShard
from semantica.evaluation.models import check_signals
from semantica.evaluation.requests import drawing_of
from semantica.evaluation.settings import EvaluationConfig
from semantica.generation.model import Model
from semantica.generation.model_card import model_card
from semantica.generation.settings import GenerateConfig
from semantica.jobs.evaluate import EvaluateJob
from semantica.jobs.flags import placed
from semantica.jobs.generate import GenerateJob
from semantica.pairs.loader import SOURCES, open_pairs
from semantica.planning.memory import example_bytes, training_memory
from semantica.planning.model import denoiser_costs
from semantica.training.checkpoint import Provenance, open_checkpoint
from semantica.training.checkpoint.save import write_checkpoint
from semantica.training.feed import training_loader
from semantica.training.loop import Hooks, fit, initial_network
from semantica.training.step import step_noise
from tests.generation.drawing import draw, pixels

BRIGHT = Signal(name="bright", enters="film", dim=2, dropout=0.2, weight=1.0)
WORDS = Signal(name="words", enters="tokens", dim=5, num=3)
COARSE = Signal(name="coarse", enters="channels", dim=3)
ALL = (BRIGHT, WORDS, COARSE)
KINDS = [(BRIGHT,), (WORDS,), (COARSE,), ALL]


@SOURCES.register("bright")
def brightness(signal, pairs, x):
    """The mean of the target picture, and its negative."""
    mean = x.mean((1, 2, 3))
    return SignalValues.of(signal, torch.stack([mean, -mean], 1))


@SOURCES.register("words")
def words(signal, pairs, x):
    """Three tokens that name the target's place on its page; a page's first picture has no words."""
    place = torch.tensor([pair.target for pair in pairs])
    tokens = torch.nn.functional.one_hot(place.clamp(max=4), 5).float()[:, None] * torch.tensor([1.0, 2.0, 3.0])[:, None]
    return replace(SignalValues.of(signal, tokens), present=place > 0)


@SOURCES.register("coarse")
def coarse(signal, pairs, x):
    """The target picture at a quarter of its resolution."""
    small = torch.nn.functional.avg_pool2d(x, 4)
    return SignalValues.of(signal, torch.nn.functional.interpolate(small, scale_factor=4.0))


@pytest.fixture(scope="module")
def run(runs, make, tmp_path_factory):
    """A run whose denoiser is told all three."""
    return runs.train(make, tmp_path_factory.mktemp("told") / "run", runs.plain.encoder, signals=ALL)


@pytest.fixture(scope="module")
def told(run):
    return semantica.load(run.checkpoint, "cpu", run.encoder)


def told_of(run, signals, **changes):
    return replace(run.config, denoiser=replace(run.config.denoiser, signals=signals), **changes)


def loader_of(run, config):
    return training_loader(config, open_pairs(run.folder / "encodings", run.folder / "selection"))


def trained(run, config, folder, start=None):
    """The raw weights, and every checkpoint in folder/STEP."""
    hooks = Hooks(lambda report: None, lambda state: write_checkpoint(folder / str(state.step), state.snapshot()))
    network = fit(config, loader_of(run, config), Provenance({}, "e", "s"), hooks, start=start)
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def test_a_batch_holds_every_declared_signal_and_the_same_pairs_as_without_them(run):
    batch, plain = (loader_of(run, told_of(run, signals)).batch(3) for signals in (ALL, ()))
    assert torch.equal(batch.x, plain.x)
    assert torch.equal(batch.cond.tokens, plain.cond.tokens)
    assert batch.cond.signals.keys() - plain.cond.signals.keys() == {"bright", "words", "coarse"}
    assert torch.equal(batch.cond.signals["bright"].tensors["bright"][:, 0], batch.x.mean((1, 2, 3)))
    present = torch.cat([loader_of(run, told_of(run, ALL)).batch(step).cond.has("words") for step in range(6)])
    assert 0 < present.sum() < len(present)


def test_a_signal_without_a_source_is_refused_by_its_name(run):
    config = told_of(run, (Signal(name="birght", enters="film", dim=2),))
    with pytest.raises(ConfigError, match="source of the signal 'birght' is unknown; did you mean 'bright'"):
        loader_of(run, config)


@pytest.mark.parametrize("signals", KINDS)
def test_every_signal_is_trained_on_and_leaves_the_first_weights_of_the_rest(run, tmp_path, signals):
    config = told_of(run, signals, num_steps=3)
    first, plain = initial_network(config), dict(initial_network(told_of(run, ())).named_parameters())
    after = trained(run, config, tmp_path)
    before = dict(first.named_parameters())
    assert all(torch.equal(before[name], value) for name, value in plain.items())
    own = [name for name in after if name.startswith("signal_")]
    assert {name.split(".")[0] for name in own} == {f"signal_{signal.name}" for signal in signals}
    assert all(not torch.equal(after[name], before[name]) for name in own if not name.endswith("null.vectors"))


def test_a_signal_changes_no_draw_of_chance_of_the_others_and_has_a_dropout_of_its_own(run):
    noise, plain = (
        step_noise(0, 5, range(4000), (3, 2, 2), told_of(run, signals, conditioning_dropout=0.1).dropout) for signals in (ALL, ())
    )
    assert torch.equal(noise.t, plain.t)
    assert torch.equal(noise.eps, plain.eps)
    assert all(torch.equal(noise.dropped[name], mask) for name, mask in plain.dropped.items())
    share = {name: float(mask.float().mean()) for name, mask in noise.dropped.items()}
    assert share["bright"] == pytest.approx(1 - 0.9 * 0.8, abs=0.03)  # four standard errors
    assert share["words"] == share["images"] == pytest.approx(0.1, abs=0.02)
    assert share["coarse"] == 0


def test_a_training_that_is_interrupted_goes_on_bit_for_bit(run, tmp_path):
    config = told_of(run, ALL, num_steps=6, checkpoint_every=3)
    whole = trained(run, config, tmp_path / "whole")
    again = trained(run, config, tmp_path / "again", start=open_checkpoint(tmp_path / "whole" / "3"))
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    assert open_checkpoint(tmp_path / "whole" / "3").config == config


def test_a_declaration_is_plain_data_and_back():
    shape = {"resolution_px": 8, "patch_px": 1, "stages": [{"channels": 32, "num_blocks": 1, "kind": "transformer"}]}
    rest = {"conditioning": "both", "token_dim": 8, "num_tokens": 3, "pooled_dim": 8, "head_dim": 8}
    config = from_dict(DenoiserConfig, shape | rest | {"signals": [to_dict(signal) for signal in ALL]})
    assert config.signals == ALL
    assert from_dict(DenoiserConfig, to_dict(config)) == config
    with pytest.raises(ConfigError, match="signals"):
        replace(config, signals=(BRIGHT, BRIGHT))
    with pytest.raises(ConfigError, match="cross_attention or both for a signal that enters as tokens"):
        replace(config, conditioning="film")
    with pytest.raises(ConfigError, match="neither images nor similarity"):
        Signal(name="images", enters="film", dim=2)


@pytest.mark.parametrize("signals", KINDS)
def test_a_plan_counts_what_the_signals_cost(run, signals):
    config, plain = told_of(run, signals), told_of(run, ())
    numbers = sum(int(np.prod(signal.shape(16))) for signal in signals)
    assert example_bytes(config.denoiser) - example_bytes(plain.denoiser) == 4 * numbers
    assert num_parameters(config.denoiser) > num_parameters(plain.denoiser)
    assert training_flops(config.denoiser) > training_flops(plain.denoiser)
    assert training_memory(config, 1).total > training_memory(plain, 1).total
    own, rest = (denoiser_costs(c.denoiser, c.compute) for c in (config, plain))
    assert own.conditioning_flops > rest.conditioning_flops
    if WORDS not in signals:  # more context costs at every step
        assert own.forward_flops == rest.forward_flops


# Drawing


@pytest.fixture(scope="module")
def settled(run):
    """A network of the run in which no weight is zero, z, levels, and a batch's conditioning."""
    network, generator = initial_network(told_of(run, ALL)).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    cond = loader_of(run, told_of(run, ALL)).batch(0).cond
    z, levels = torch.randn(len(cond), 3, 16, 16, generator=generator), torch.zeros(len(cond))
    return network, z, levels, cond


def differs(a, b):
    return ((a - b).abs().amax((1, 2, 3)) > 1e-4).tolist()


@pytest.mark.parametrize("name", ["bright", "words", "coarse"])
def test_a_signal_counts_where_it_is_present_and_not_where_it_is_dropped(settled, name):
    network, z, levels, cond = settled
    values = cond.signals[name]
    other = cond.told(name, replace(values, tensors={name: values.tensors[name].flip(0) + 1}))
    mask = torch.arange(len(cond)) % 2 == 0
    out, lacking = network(z, levels, cond), network(z, levels, cond.dropped({name: mask}))
    assert differs(network(z, levels, other), out) == values.present.tolist()
    assert differs(lacking, out) == (values.present & mask).tolist()
    assert torch.equal(network(z, levels, other.dropped({name: mask}))[mask], lacking[mask])


def test_a_signal_that_is_not_passed_is_an_absent_one(settled):
    network, z, levels, cond = settled
    images = Conditioning({"images": cond.signals["images"]})
    everywhere = torch.ones(len(cond), dtype=torch.bool)
    nothing = cond.dropped(dict.fromkeys(("bright", "words", "coarse"), everywhere))
    assert torch.equal(network(z, levels, images), network(z, levels, nothing))


def test_prepared_signals_give_the_same_output_bit_for_bit(settled):
    network, z, levels, cond = settled
    with torch.no_grad():
        prepared = network.prepare(cond)
        assert torch.equal(network(z, levels, prepared), network(z, levels, cond))


def test_both_branches_of_guidance_get_the_channels_and_only_the_conditional_one_the_rest(settled):
    _, _, _, cond = settled
    null = cond.null()
    assert not null.has("bright").any()
    assert not null.has("words").any()
    assert not null.has("images").any()
    assert null.has("coarse").all()
    assert cond.and_null().has("coarse").all()


@pytest.mark.parametrize("w", [0.0, 0.7])
def test_a_signal_has_a_guidance_weight_of_its_own_which_a_draw_may_change(settled, w):
    network, z, levels, cond = settled
    bind = bind_with(network)

    def x_hat(conditioning):
        return bind(conditioning)(z, levels)

    with torch.no_grad():
        everywhere = torch.ones(len(cond), dtype=torch.bool)
        whole, without, nothing = (x_hat(c) for c in (cond, cond.dropped({"bright": everywhere}), cond.null()))
        plain = GuidanceConfig(request=0.0)
        for beyond, weight in ((plain, 1.0), (replace(plain, weights=(("bright", 3.0),)), 3.0)):
            expected = whole + weight * (whole - without)
            expected = (1 + w) * expected - w * nothing
            drawn = guided(bind, cond, w, beyond, ALL)(z, levels)
            torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)
        with pytest.raises(ConfigError, match="weights must name similarity or bright or words or coarse, got colour"):
            guided(bind, cond, w, GuidanceConfig(weights=(("colour", 1.0),)), ALL)


def test_new_channels_change_nothing_before_they_are_trained_on(run, tmp_path):
    """The weights of a denoiser without the signal, loaded into one with it."""
    plain = told_of(run, (BRIGHT, WORDS))
    weights = trained(run, told_of(run, (BRIGHT, WORDS), num_steps=3), tmp_path)
    old, new = initial_network(plain).eval(), initial_network(told_of(run, ALL)).eval()
    old.load_state_dict(weights)
    assert new.load_state_dict(weights, strict=False).missing_keys == ["signal_coarse.conv.weight"]
    cond = loader_of(run, told_of(run, ALL)).batch(0).cond
    z, levels = torch.randn(len(cond), 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.zeros(len(cond))
    assert torch.equal(new(z, levels, cond), old(z, levels, cond))


def test_a_signal_of_another_shape_is_refused(settled):
    network, z, levels, cond = settled
    wrong = cond.told("bright", SignalValues.of(BRIGHT, torch.zeros(len(cond), 3)))
    with pytest.raises(DataError, match=r"bright must have shape \(8, 2\), got \(8, 3\)"):
        network(z, levels, wrong)


# Release


def test_a_release_is_told_the_same_signals_and_draws_the_same_pictures(run, told, pictures, tmp_path):
    bright = torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
    first = draw(told, pictures[:2], signals={"bright": bright})
    released = semantica.load(told.save_pretrained(tmp_path / "release"), "cpu", run.encoder)
    assert released.release.denoiser.signals == ALL
    again = draw(released, pictures[:2], signals={"bright": bright})
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(first, again, strict=True))
    other = draw(told, pictures[:2], signals={"bright": -bright})
    assert not np.array_equal(pixels(first[0]), pixels(other[0]))
    assert not np.array_equal(pixels(draw(told, pictures[0])), pixels(first[0]))
    assert "`bright` (2,), `words` (3, 5), `coarse` (3, 16, 16)" in model_card(told.release)


def test_what_a_model_was_not_trained_to_be_told_is_refused_in_a_sentence(told, model, pictures):
    with pytest.raises(ConfigError, match="not trained to be told 'colour'; it is told bright, words, coarse"):
        draw(told, pictures[0], signals={"colour": torch.zeros(1, 2)})
    with pytest.raises(ConfigError, match="it is told images only"):
        draw(model, pictures[0], signals={"bright": torch.zeros(1, 2)})
    with pytest.raises(ConfigError, match=r"one value per wanted picture, shape \(1, 2\)"):
        draw(told, pictures[0], signals={"bright": torch.zeros(2, 2)})


def test_the_model_of_a_checkpoint_is_told_them_too(run):
    model = Model.of(open_checkpoint(run.checkpoint / "model"))
    batch = loader_of(run, run.config).batch(0)
    z, levels = torch.zeros_like(batch.x), torch.zeros(len(batch.x))
    with torch.no_grad():
        told, untold = (
            model.bind(cond, 0.5)(z, levels) for cond in (batch.cond, Conditioning({"images": batch.cond.signals["images"]}))
        )
    assert not torch.equal(told, untold)


# Jobs


def drawn_by_the_job(run, settings, folder, columns=(), *, is_filled=False):
    """The PNG of each of four samples, as an actor of generate draws them without Ray."""
    out = StageOutput(folder, "samples", settings, {})
    assert out.open() is None
    places = [PictureRef(image_id, episode_id, 0, 0) for image_id, episode_id in PLACES]
    samples = tuple(Sample(place.image_id, place, 0) for place in places)
    actor = DrawShard(settings, run.checkpoint / "model", run.folder / "held-out", out, columns=columns)
    assert actor(SampleShard("part", 0.5, 0, samples, is_filled=is_filled)) == len(samples)
    return pq.read_table(folder / "part.parquet")["bytes"].to_pylist()


@pytest.fixture(scope="module")
def held_out(run):
    """Encodings whose first page is held out, with a column of the signal `bright`."""
    source = read_manifest(run.folder / "encodings", "encodings")
    table = pq.read_table(run.folder / "encodings" / source.shards()[0].path)
    PLACES[:] = [(image["image_id"], table["episode_id"][0].as_py()) for image in table["images"][0].as_py()]
    column = [[[0.5, -0.5]] * len(page) for page in table["images"].to_pylist()]
    out = StageOutput(run.folder / "held-out", "encodings", dict(source.config), {})
    assert out.open() is None
    out.write_shard("part", {"held_out": table.append_column("bright", pa.array(column))}, {})
    out.finish(source.counts, source.facts)
    return out


PLACES = []
QUICK, PLAIN = SamplerConfig(num_steps=3), GuidanceConfig()


def test_a_job_draws_with_the_values_that_it_is_given_and_with_those_of_a_column(run, held_out, tmp_path):
    def drawn(name, *signals, columns=(), **settings):
        config = GenerateConfig(sampler=QUICK, batch_size=4, signals=signals, **settings)
        return drawn_by_the_job(run, config, tmp_path / name, columns)

    plain, given, column = drawn("plain"), drawn("given", "bright=0.5,-0.5"), drawn("column", columns=("bright",))
    assert given == column
    assert given != plain
    assert drawn("null", "bright=none", columns=("bright",)) == plain
    assert drawn("one", "bright=0.5") == drawn("two", "bright=0.5,0.5") != given
    assert drawn("words", "words=1") != plain
    assert drawn("coarse", "coarse=-0.5") != plain
    heavier = drawn("heavier", "bright=0.5,-0.5", beyond=GuidanceConfig(weights=(("bright", 5.0),)))
    assert heavier != given


def test_an_evaluation_draws_its_filled_batches_with_the_values_too(run, held_out, tmp_path):
    plain, told = (
        drawn_by_the_job(
            run, EvaluationConfig(sampler=QUICK, batch_size=6, signals=signals).draws(), tmp_path / name, is_filled=True
        )
        for name, signals in (("plain", ()), ("told", ("bright=0.5,-0.5",)))
    )
    assert all(a != b for a, b in zip(plain, told, strict=True))


def test_jobs_refuse_a_signal_that_is_not_declared_before_anything_starts(run, held_out, tmp_path):
    encodings, signals, undeclared = run.folder / "held-out", ("colour=1",), "this denoiser is told .*, got 'colour'"
    with pytest.raises(ConfigError, match=undeclared):
        generate(
            GenerateConfig(signals=signals),
            checkpoint=run.checkpoint / "model",
            encodings=encodings,
            out=tmp_path / "out",
            runtime=Runtime(),
        )
    checkpoints, data = {"m": str(run.checkpoint)}, {"set": str(encodings)}
    with pytest.raises(ConfigError, match=undeclared):
        evaluate(EvaluationConfig(signals=signals), checkpoints=checkpoints, data=data, out=tmp_path / "out", runtime=Runtime())
    assert not (tmp_path / "out").exists()


def test_the_values_that_are_given_go_before_a_column_and_what_is_neither_is_null():
    config = GenerateConfig(signals=("bright=1,2",))
    told = origins(config, ALL, columns=("bright", "words"))
    assert told == {"bright": "as given (bright=1,2)", "words": COLUMN, "coarse": ABSENT}


@pytest.mark.parametrize("text", ["bright", "bright=", "=1", "bright=1,,2", "bright=nan", "a b=1"])
def test_a_value_in_another_form_is_refused(text):
    for settings in (GenerateConfig, EvaluationConfig):
        with pytest.raises(ConfigError, match=r"^signals must be NAME=NUMBER, NAME=NUMBER,NUMBER,\.\.\. or NAME=none, got"):
            settings(signals=(text,))
    with pytest.raises(ConfigError, match=r"^signals must be one value per signal"):
        GenerateConfig(signals=("bright=1", "bright=2"))


def test_values_and_weights_of_signals_that_are_not_declared_name_flag_and_yaml_path(run):
    denoiser = told_of(run, ALL).denoiser

    def message(job, owner, signals=(), beyond=PLAIN):
        with pytest.raises(ConfigError) as caught:
            check_signals(denoiser, signals, beyond, owner)
        return placed(caught.value, job)

    told = message(GenerateJob, GenerateConfig, ("colour=1",))
    assert told.startswith("--signals (generate.signals in YAML) must be of the signals that this denoiser is told")
    assert "(bright, words, coarse), got 'colour'" in told
    told = message(EvaluateJob, EvaluationConfig, ("words=1,2",))
    assert told.startswith("--signals (evaluation.signals in YAML) must be one number or 15 for words, whose shape is (3, 5)")
    told = message(GenerateJob, GenerateConfig, beyond=GuidanceConfig(weights=(("colour", 1.0),)))
    assert "--beyond.weights" in told
    assert "similarity or bright or words or coarse, got colour" in told
    check_signals(denoiser, ("bright=1,2", "words=none", "coarse=0"), GuidanceConfig(weights=(("words", 1.0),)), GenerateConfig)
    with pytest.raises(ConfigError, match="none but images and similarity"):
        check_signals(told_of(run, ()).denoiser, ("bright=1",), GuidanceConfig(), GenerateConfig)


def test_an_output_is_gone_on_with_by_the_same_values_only_and_an_older_one_without_any(tmp_path):
    plain, told = GenerateConfig(), GenerateConfig(signals=("bright=1",))
    StageOutput(tmp_path / "told", "samples", told, {}).open()
    assert StageOutput(tmp_path / "told", "samples", told, {}).is_begun()
    with pytest.raises(DataError, match=r"signals.*bright=1"):
        StageOutput(tmp_path / "told", "samples", plain, {}).check()
    older = StageOutput(tmp_path / "older", "samples", {n: v for n, v in to_dict(plain).items() if n != "signals"}, {})
    older.open()
    assert StageOutput(tmp_path / "older", "samples", plain, {}).is_begun()
    assert not StageOutput(tmp_path / "older", "samples", told, {}).is_begun()


def test_samples_of_an_evaluation_keep_their_names_unless_values_are_given():
    assert "signals" not in drawing_of(EvaluationConfig().draws())
    assert drawing_of(EvaluationConfig(signals=("bright=1",)).draws())["signals"] == ["bright=1"]


def test_values_and_weights_are_given_by_flags():
    words = ["--checkpoint", "c", "--encodings", "e", "--out", "o", "--signals", "bright=0.5,-0.5", "words=none"]
    words += ["--beyond.weights", "bright", "3", "words", "1"]
    job = from_args(GenerateJob, words, prog="generate", description="", defaults={"generate": GenerateConfig()})
    assert job.generate.signals == ("bright=0.5,-0.5", "words=none")
    assert job.generate.beyond.weights == (("bright", 3.0), ("words", 1.0))
