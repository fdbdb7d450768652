"""A real run in miniature, through the project's own code: pictures, encodings, scores, selection, and a checkpoint of a few steps.

Modules are imported late: the shape checker's hook comes first.
"""

import io
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def runs(make, tmp_path_factory):
    """runs.plain, and runs.rich with several conditioning images and similarity: what `train` returns, which is runs.train."""
    base = tmp_path_factory.mktemp("runs")
    weights = random_encoder(base / "my-encoder")
    plain = train(make, base / "plain", weights)
    return SimpleNamespace(plain=plain, rich=train(make, base / "rich", weights, max_images=3, similarity=True), train=train)


@pytest.fixture(scope="module")
def model(runs):
    import semantica

    return semantica.load(runs.plain.checkpoint, "cpu", runs.plain.encoder)


@pytest.fixture(scope="module")
def pictures(runs):
    """Stored pictures of the run, as PIL pictures."""
    from PIL import Image

    return [Image.open(io.BytesIO(data)) for data in runs.plain.pictures[:4]]


def random_encoder(folder):
    """A small DINOv2 with random weights, as transformers saves it."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "mlp_ratio": 2,
    }
    model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    size, crop = {"shortest_edge": 64}, {"height": 56, "width": 56}
    transformers.BitImageProcessor(size=size, crop_size=crop).save_pretrained(folder)
    return folder


def train(make, folder, weights, image_px=56, **denoiser):
    """The folders of a run on 20 noise pictures of 40 px, with the encoder at `weights`; the checkpoint is of 12 steps."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as `one_thread`, which comes after the fixtures of a session
    try:
        return _train(make, folder, weights, image_px, **denoiser)
    finally:
        torch.set_num_threads(threads)


def _train(make, folder, weights, image_px, **denoiser):
    from semantica.config import to_dict
    from semantica.data.dataset import StageOutput, read_manifest
    from semantica.denoiser.configs import DenoiserConfig, StageConfig
    from semantica.diffusion.settings import ScheduleConfig
    from semantica.encoders.encoder import load_encoder
    from semantica.encoders.settings import EncodeConfig, EncoderConfig
    from semantica.encoders.shard import encode_shard
    from semantica.encoders.totals import finish_encodings, shards_of
    from semantica.pairs.loader import Batches, PairLoader, open_pairs
    from semantica.training.checkpoint import Provenance, write_checkpoint
    from semantica.training.loop import Hooks, fit
    from semantica.training.recipe import EmaConfig, OptimizerConfig, TrainConfig

    episodes = StageOutput(folder / "episodes", "episodes", {}, {})
    assert episodes.open() is None
    table = make.episodes((4, 3, 5, 4, 4), side=40)
    episodes.write_shard("part-00000", {"": table}, {"num_train_images": 20, "num_held_out_images": 0}, 1)
    drawings = [["drawings", "this test", "Apache-2.0"]]
    source = episodes.finish({"num_train_images": 20, "num_held_out_images": 0}, {"pictures": drawings})
    settings = EncodeConfig(encoder=EncoderConfig(weights=str(weights), image_px=image_px), batch_size=1, rows_per_group=1)
    stage = StageOutput(folder / "encodings", "encodings", to_dict(settings), {"episodes": source.hash})
    assert stage.open() is None
    encoder = load_encoder(settings.encoder)
    for shard in shards_of(source, ("", "held_out")):
        encode_shard(stage, folder / "episodes", shard, encoder, settings)
    encodings = finish_encodings(stage, source, 0.0)
    make.scores(folder / "scores", folder / "encodings")
    make.selection(folder / "selection", folder / "scores", low=-1.0, high=1.0, score="centred_cosine")

    identity = encoder.identity
    shape = {"token_dim": identity.token_dim, "num_tokens": identity.num_tokens, "pooled_dim": identity.pooled_dim, **denoiser}
    stages = (
        StageConfig(channels=16, num_blocks=1, kind="conv"),
        StageConfig(channels=16, num_blocks=1, kind="transformer"),
    )
    config = TrainConfig(
        denoiser=DenoiserConfig(
            resolution_px=16,
            patch_px=2,
            stages=stages,
            conditioning="both",
            noise_embedding_dim=16,
            head_dim=8,
            norm_groups=4,
            **shape,
        ),
        schedule=ScheduleConfig(resolution_px=16),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        ema=EmaConfig(decay=0.8, warmup=2),
        num_steps=12,
        batch_size=8,
        num_lanes=4,
    )
    loader = PairLoader(
        open_pairs(folder / "encodings", folder / "selection"),
        Batches(
            seed=0,
            batch_size=8,
            num_lanes=4,
            resolution_px=16,
            max_images=config.denoiser.max_images,
            signals=config.denoiser.signals,
        ),
    )
    provenance = Provenance(
        encoder={"identity": encodings.facts["encoder"], "config": encodings.config["encoder"]},
        encodings=encodings.hash,
        selection=read_manifest(folder / "selection", "selection").hash,
        corpus_mean=tuple(encodings.facts["corpus_mean"]),
    )
    model = folder / "checkpoint" / "model"
    fit(config, loader, provenance, Hooks(lambda report: None, lambda state: write_checkpoint(model, state.snapshot())))
    train_output = StageOutput(folder / "checkpoint", "checkpoint", to_dict(config), {})
    train_output.finish({"num_steps": 12}, {"loss": 1.0}, [f"model/{path.name}" for path in sorted(model.iterdir())])
    stored = [image["bytes"] for row in table["images"].to_pylist() for image in row]
    return SimpleNamespace(
        folder=folder, checkpoint=folder / "checkpoint", encoder=weights, pictures=stored, settings=settings, config=config
    )
