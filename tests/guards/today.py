"""The calls that the guards need, with the code of this tree: edit them when the API changes, never what they ask for.

`then` has the same functions with the code of commit f049af4. At the end: the differences from then that are meant, each listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from guard_cases import (
    EVALUATION,
    LOADS,
    NUM_ROWS,
    PICTURES,
    PIPELINE,
    REFINEMENTS,
    SIDE_PX,
    Load,
    Sample,
    Trained,
    Training,
    figures_of,
    figures_of_pictures,
    history_of,
    noise_at,
    pictures_to_invert,
    told,
    weights_of,
)

from semantica.conditioning.values import Conditioning
from semantica.config import override
from semantica.data.dataset import read_manifest
from semantica.diffusion.samplers import Step, ddim_invert, levels_of
from semantica.diffusion.samplers import sample as sample_by
from semantica.diffusion.settings import GuidanceConfig, SamplerConfig
from semantica.distributed.encode import encode
from semantica.distributed.evaluate import evaluate
from semantica.distributed.ingest import ingest
from semantica.distributed.pairs import pairs
from semantica.distributed.pipeline import pipeline
from semantica.distributed.runtime import ClusterConfig, Runtime
from semantica.distributed.train import train
from semantica.evaluation.outcome import Sources
from semantica.evaluation.settings import EvaluationConfig
from semantica.generation.generate import sample_pictures
from semantica.generation.model import Model
from semantica.generation.model_card import model_card
from semantica.generation.pipeline import load
from semantica.generation.release import release_of, write_release
from semantica.generation.settings import GenerateConfig
from semantica.pairs.loader import open_pairs
from semantica.presets import PipelineConfig, tiny, tiny_html
from semantica.tracking import TrackingConfig
from semantica.training.checkpoint import Provenance, TrainState, open_checkpoint
from semantica.training.checkpoint.save import write_checkpoint
from semantica.training.feed import training_loader
from semantica.training.loop import Hooks, fit
from semantica.training.recipe import TrainConfig
from semantica.training.start import open_inputs
from semantica.training.watch import StepReport

_RUNTIME = Runtime(
    cluster=ClusterConfig(num_cpus=2, object_store_mb=128, num_actors=1, num_workers=2, cpus_per_worker=0.5, cpus_per_actor=0.5),
    tracking=TrackingConfig(uri="off"),
)


def pipeline_config(guards: Path) -> PipelineConfig:
    """The settings of every stage, with the encoder of the folder of guards."""
    return override(tiny(), {**PIPELINE, "encode.encoder.weights": str(guards / "encoder")})


def run_pipeline(guards: Path, out: Path) -> None:
    """Every stage by Ray into `out`, training by two workers; what is done is skipped."""
    root = guards / "crawl" / "folder"
    pipeline(pipeline_config(guards), root=root, out=out, runtime=_RUNTIME, pictures=PICTURES, command="guards")


def run_data(guards: Path, out: Path) -> None:
    """Ingest, encode and pairs by Ray, each by its own function, into out/episodes, encodings, scores and selection."""
    config = pipeline_config(guards)
    ingest(config.ingest, root=guards / "crawl" / "folder", out=out / "episodes", runtime=_RUNTIME, pictures=PICTURES)
    encode(config.encode, episodes=out / "episodes", out=out / "encodings", runtime=_RUNTIME)
    pairs(config.band, encodings=out / "encodings", out=out / "selection", scores=out / "scores", runtime=_RUNTIME)


def ingest_html(guards: Path, out: Path) -> None:
    """The HTML pages of the crawl by Ray, whole pages held out."""
    config = override(tiny_html(), {name: value for name, value in PIPELINE.items() if name.startswith("ingest.")})
    ingest(config.ingest, root=guards / "crawl" / "html", out=out, runtime=_RUNTIME, pictures=PICTURES)


def train_by_one_worker(guards: Path, out: Path) -> Trained:
    """The pipeline's training by one worker of Ray Train, on the recorded encodings and selection."""
    runtime = replace(_RUNTIME, cluster=replace(_RUNTIME.cluster, num_workers=1))
    run = guards / "run"
    config = pipeline_config(guards).train
    train(config, open_inputs(config, run / "encodings", run / "selection"), out=out, runtime=runtime)
    return Trained(*history_of(out), weights_of(out / "model"))


def evaluate_protocols(guards: Path, out: Path) -> None:
    """The evaluation of semantica evaluate, on checkpoints of the recorded training."""
    steps = guards / "run" / "checkpoint" / "checkpoints"
    evaluate(
        override(EvaluationConfig(), EVALUATION),
        checkpoints={"model": str(steps)},
        data={"shapes": str(guards / "run" / "encodings")},
        out=out,
        runtime=_RUNTIME,
        sources=Sources(train=guards / "run" / "encodings", command="guards"),
    )


def train_losses(guards: Path, training: Training, out: Path, *, start: Path | None = None) -> Trained:
    """A training in this process on the recorded encodings; its checkpoints go to out/STEP. start: the checkpoint to go on from."""
    config: TrainConfig = override(pipeline_config(guards).train, training.settings)
    encodings, selection = guards / "run" / "encodings", guards / "run" / "selection"
    source = read_manifest(encodings, "encodings")
    provenance = Provenance(
        encoder={"identity": source.facts["encoder"], "config": source.config["encoder"]},
        encodings=source.hash,
        selection=read_manifest(selection, "selection").hash,
        corpus_mean=tuple(source.facts["corpus_mean"]),
    )
    reports: list[StepReport] = []

    def save(state: TrainState) -> None:
        write_checkpoint(out / str(state.step), state.snapshot())

    opened = None if start is None else open_checkpoint(start)
    fit(config, training_loader(config, open_pairs(encodings, selection)), provenance, Hooks(reports.append, save), start=opened)
    losses, norms = [float(r.loss).hex() for r in reports], [float(r.grad_norm).hex() for r in reports]
    return Trained(losses, norms, weights_of(out / str(config.num_steps)))


def draw_sample(guards: Path, sample: Sample) -> dict[str, Any]:
    """Figures of the pictures, in float32, of one sampler."""
    steps = guards / "trainings" / sample.training
    newest = max(steps.iterdir(), key=lambda folder: int(folder.name))
    model = Model.of(open_checkpoint(newest), ema=False)
    given = told(sample.num_images, sample.similarity)
    cond = Conditioning.of(given.tokens, given.pooled, given.similarity, given.present)
    denoise = model.bind(cond, sample.guidance, beyond(sample.refinement))
    name = "ddim" if sample.sampler == "ddim_invert" else sample.sampler
    config = override(SamplerConfig(), {"name": name, "num_steps": 6, **sample.sampler_settings})
    if sample.sampler == "ddim_invert":
        levels = levels_of(config, model.schedule)
        return figures_of(ddim_invert(denoise, pictures_to_invert(), levels, clip=config.clip, num_iterations=3))

    def edit(step: Step) -> torch.Tensor:
        return step.z + 0.05

    callback = edit if sample.edits else None
    return figures_of(sample_by(denoise, noise_at(-1), model.schedule, noise_at, config, callback))


def beyond(refinement: str) -> GuidanceConfig:
    """A refinement of guidance by its name."""
    return override(GuidanceConfig(), REFINEMENTS[refinement])


def draw_chunks(guards: Path, max_rows: int) -> dict[str, Any]:
    """Figures of uint8 pictures whose noise is keyed by name, at most max_rows through the network at once."""
    model = Model.of(open_checkpoint(guards / "trainings" / "signals" / "50"))
    given = told(2, True)
    cond = Conditioning.of(given.tokens, given.pooled, given.similarity, given.present)
    names = [f"guard/{index}" for index in range(NUM_ROWS)]
    config = GenerateConfig(sampler=SamplerConfig(num_steps=6), beyond=beyond("rescale"), seed=5)
    pictures = sample_pictures(model, cond, names, 0.5, config, max_rows)
    assert pictures.shape[-1] == SIDE_PX
    return figures_of(pictures)


def release_model(guards: Path, out: Path) -> None:
    """The training `signals`, released into `out` as semantica release does."""
    checkpoint = open_checkpoint(guards / "trainings" / "signals" / "50")
    run = guards / "run"
    known = release_of(checkpoint, preset="guards", encodings=run / "encodings", selection=run / "selection")
    write_release(out, checkpoint.network(), known, model_card(known))


def draw_loaded(guards: Path, name: str) -> Any:
    """Digests of the pictures that a loaded model draws of pictures of the crawl."""
    case: Load = LOADS[name]
    model = load(guards / case.what, device="cpu", encoder=guards / "encoder")
    rows = [[guards / "crawl" / "folder" / one for one in row] for row in case.images]
    return figures_of_pictures(model(rows, beyond=beyond(case.beyond), **case.arguments))


# --- Differences from f049af4 that are meant. Each entry says why; whoever adds one writes a line into the changelog. ---


def expected_config(stage: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that the manifest of a stage has today, from that of f049af4: fields that were renamed or added."""
    expected: dict[str, Any] = _with_new_fields(dict(config))
    if stage == "checkpoint":  # `init_from` came; how workers share the state is recorded like all that is free to change
        expected |= {"init_from": "", "init_weights": "ema"}
        expected["compute"] = {**expected["compute"], "parallel": "ddp", "shard_workers": None}
    return expected


def _with_new_fields(values: Any) -> Any:
    """With the channels of z and the declared signals of a denoiser, and the guidance weights of signals."""
    if isinstance(values, list):
        return [_with_new_fields(value) for value in values]
    if not isinstance(values, dict):
        return values
    grown = {name: _with_new_fields(value) for name, value in values.items()}
    if "token_dim" in values and "stages" in values:
        grown |= {"channels": 3, "signals": []}
    if "request" in values and "momentum" in values:
        grown |= {"weights": []}
    return grown


def expected_report(name: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """The report.json ("run" or "protocols") of today, from that of f049af4: keys that were renamed or added."""
    return dict(report)


CHANGED_HASHES = frozenset({"checkpoint", "samples", "evaluation"})
"""The stages whose manifests or inputs have other hashes than at f049af4, since `expected_config` changes something in them or in
what they are made of. There, files and counts must do."""

CHANGED_FILES = frozenset({"evaluation"})
"""The stages whose files have other names and content: the demo's features lie by network and name, as in every evaluation; the
figures made of them are compared in report.json.
"""
