import numpy as np
import pytest

from semantica.report.charts import StepPoint, TradeOffPoint, frechet_by_step, trade_off
from semantica.report.page import (
    Curve,
    Example,
    Figure,
    Gallery,
    Grid,
    Histogram,
    PaperRow,
    PaperTable,
    Protocol,
    Report,
    Table,
)
from semantica.report.pictures import guidance_grid, samples_grid, sheet_png

WEIGHTS = (0, 0.1, 0.2, 0.5, 1)
PROTOCOL = Protocol(
    data="made-up pages",
    resolution_px=32,
    num_samples=500,
    num_reference=480,
    extractor="inception",
    resize="torch-fidelity",
    num_steps=48,
    guidance=0.5,
    ema=True,
    seeds=(0, 1, 2),
    error_of="3 sampling seeds",
)
LPIPS = Protocol(
    data="ImageNet validation", resolution_px=256, num_samples=500, extractor="st-lpips-alex", guidance=0.5, ema=True, seeds=(0,)
)


@pytest.fixture(scope="session")
def paper_report():
    """report = paper_report("text"): one of everything that a page can show, the text wherever one may come from outside."""
    return _paper_report


def picture(seed: int, side: int) -> np.ndarray:
    """A smooth picture with a shape of its own, so that neighbours are told apart."""
    y, x = np.mgrid[0:side, 0:side] / side
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [np.sin(7 * x * np.cos(p) + 7 * y * np.sin(p) + p) for p in phase]
    return (127.5 + 127.4 * np.stack(waves, axis=-1)).astype(np.uint8)


def _paper_report(text: str) -> Report:
    conditions = [picture(seed, 256) for seed in range(6)]
    samples = [[picture(100 * seed + w, 32) for w in range(5)] for seed in range(6)]
    names = [f"{text} {index}" for index in range(6)]
    points = [
        TradeOffPoint(guidance=w, frechet=90 - 20 * w, perceptual=0.36 - 0.03 * w, frechet_error=3.25, perceptual_error=0.0061)
        for w in WEIGHTS
    ]
    worse = [TradeOffPoint(guidance=w, frechet=120 - 20 * w, perceptual=0.38 - 0.03 * w, frechet_error=4.5) for w in WEIGHTS]
    runs = {
        name: [StepPoint(step=s, frechet=add + 9000 / s, error=2.5) for s in (100, 200, 300)]
        for name, add in (("FiLM", 40), ("both", 20))
    }
    holed = [[None if (row, column) == (2, 2) else p for column, p in enumerate(line)] for row, line in enumerate(samples)]
    return Report(
        title=f"Report {text}",
        summary=[f"Samples look like their condition {text}", "Guidance lowers the distance."],
        figures=[
            Figure(name="fid", value=344.38, standard_error=4.21, explanation=text, protocol=PROTOCOL),
            Figure(name="own_similarity", value=0.41234, standard_error=0.0123, explanation="cosine", protocol=text),
            Figure(name="num_pairs", value=1234567, unit=text),
            Figure(name="fd_dinov2", value=None, explanation="in DINOv2's features", missing=f"no weights {text}"),
        ],
        grids=[
            samples_grid(conditions, samples, guidance=0.5, row_labels=names, protocol=PROTOCOL),
            guidance_grid(conditions, holed, weights=WEIGHTS, protocol=PROTOCOL),
            Grid(title=f"Sheet {text}", png=sheet_png([line[0] for line in samples]), alt=f"six samples {text}", caption=text),
        ],
        galleries=[
            Gallery(
                title=f"Pairs {text}",
                examples=[
                    Example(condition=c, samples=line[:1], label=name, sample_labels=[f"w = 0.5 {text}"], notes={text: 0.1234 + i})
                    for i, (c, line, name) in enumerate(zip(conditions, samples, names, strict=True))
                ],
                caption=text,
                protocol=PROTOCOL,
            ),
            Gallery(title="Rows", examples=[Example(condition=c, samples=s) for c, s in zip(conditions, samples, strict=True)]),
        ],
        curves=[
            trade_off(
                {"page-grouped": points, text: worse},
                frechet_name="FID",
                perceptual_name="st-lpips-alex",
                error_of="5 conditioning sets",
                protocol=PROTOCOL,
            ),
            frechet_by_step(runs, frechet_name="FID", error_of="3 training seeds"),
            Curve(title=text, x_label=text, y_label="$loss", series={text: ([1, 2], [0.5, 0.1]), "b": ([1], [2])}, log_y=True),
        ],
        histograms=[
            Histogram(
                title=f"Pairs {text}",
                x_label=text,
                edges=[0, 0.5, 1],
                counts=[3, 1],
                low=0.3,
                high=0.9,
                share_inside=0.25,
                caption=text,
            )
        ],
        papers=[
            PaperTable(
                title=f"FID {text}",
                rows=[
                    PaperRow(paper="fid.semantica.imagenet.w0.5", value=344.38, standard_error=4.21, protocol=PROTOCOL),
                    PaperRow(paper="lpips.semantica.imagenet.w0.5", value=0.347, standard_error=0.012, protocol=LPIPS),
                    PaperRow(paper="fid.semantica.bedroom.w0", missing=f"no pictures {text}"),
                    PaperRow(paper="standard_error.conditions", missing="one set was drawn"),
                ],
                caption=text,
            )
        ],
        tables=[
            Table(title=f"Refused {text}", columns=["reason", "rows"], rows=[[text, 12], ["too-small", 3]], caption=text),
            Table(
                title="By guidance",
                columns=["w", "FID", "KID"],
                rows=[[0, 344.125, None], [0.5, 300.25, 0.0123]],
                errors=[[None, 2.125, None], [None, 0.35, 0.002]],
                missing="KID needs 1000 samples",
                protocol=PROTOCOL,
            ),
        ],
        provenance=[(text, "https://pictures.example.org/augly/", "CC-BY-4.0"), ("x", "javascript:alert(1)", text)],
        protocol={"n": 500, "extractor": text},
        config_yaml=f"train: {text}\n",
        versions={"torch": "2.9"},
        commit="abc1234",
        date="2025-11-21",
        command=f"semantica evaluate {text}",
    )
