"""python -m benchmarks.orderings [--run runs/quickstart]: which of the paper's orderings hold on real pictures, under one budget.

On the run of `make demo`, or any run whose tokens are stored. Every variant is trained at every seed, with the same number of
pictures; its samples are measured in the encoder's features. Each (variant, seed) leaves a file in --out as soon as it is done, so
a stopped benchmark goes on with the same command, and several processes may share the work by --seeds. A larger budget is the same
command: --preset small --budget 200000 on a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.domains import EVERYTHING, EvaluationSet, Run, evaluation_sets, is_labelled, text_hash, unseen_pages, view
from benchmarks.orderings_table import measured_rows, written
from benchmarks.record import record
from benchmarks.trials import Measurer, run_trial
from benchmarks.variants import VARIANTS, Variant, train_config
from benchmarks.verdicts import Figure
from semantica.config import require, to_dict
from semantica.data.dataset import read_manifest
from semantica.data.durable import write_atomically
from semantica.diffusion.settings import SamplerConfig
from semantica.encoders.encoder import load_encoder
from semantica.encoders.settings import EncoderConfig
from semantica.errors import DataError, SemanticaError
from semantica.generation.settings import GenerateConfig
from semantica.measure.networks.extractors import encoder_features, load_features, load_perceptual, resolve
from semantica.pairs.selection import BandConfig
from semantica.presets import PRESETS, preset

FORMAT = 1


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, default=Path("runs/quickstart"), help="a finished run: its encodings and scores are read"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/orderings"), help="where results are left, and found again")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--budget", type=int, default=600, help="steps of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), help="only these; the table is of all results in --out")
    parser.add_argument("--points", type=int, default=3, help="how often a training is measured, the end included")
    parser.add_argument("--num", type=int, default=256, help="conditioning images of a set")
    parser.add_argument("--num-reference", type=int, default=50_000)
    parser.add_argument("--sampling-steps", type=int, default=32)
    parser.add_argument("--labelled", default="twemoji", help="the folder of the run whose folders are classes")
    parser.add_argument("--pages", type=Path, help="another run with the same encoder, on whose pages page_grouped trains")
    parser.add_argument("--siglip", type=Path, help="a run of the same pictures, encoded with SigLIP")
    parser.add_argument("--inception", action="store_true", help="FID beside the encoder's distance at the end of each training")
    parser.add_argument("--perceptual", default="st-lpips-alex", help='net of the distance to the condition, or "none"')
    parser.add_argument("--no-record", action="store_true", help="print the table and leave benchmarks/results/ as it is")
    parser.add_argument("--table-only", action="store_true", help="train nothing; tell what the results in --out say")
    return parser.parse_args(argv)


class Bench:
    """The runs, views and evaluation sets that all trainings share."""

    def __init__(self, given: argparse.Namespace) -> None:
        for name, least in (("budget", 1), ("points", 1), ("num", 2), ("num_reference", 2), ("sampling_steps", 1)):
            require(getattr(given, name) >= least, f"--{name.replace('_', '-')}", f"at least {least}", getattr(given, name))
        self.given, self.made = given, preset(given.preset)
        self.run = Run(given.run.absolute())
        self.pages = Run(given.pages.absolute()) if given.pages else None
        self.siglip = Run(given.siglip.absolute()) if given.siglip else None
        if self.pages and self.pages.encoder != self.run.encoder:
            raise DataError(
                f"orderings: {given.pages} was encoded by {self.pages.encoder['name']}, the run by {self.run.encoder['name']}"
            )
        label, listing = given.labelled, self.run.listing
        # With a run of its own, the page-grouped model sees none of this run's pages.
        others = frozenset(p.page for p in listing if not is_labelled(p.page, label))
        self.unseen = others if self.pages else unseen_pages(listing, label)
        self.sets = evaluation_sets(
            self.run.listing,
            given.labelled,
            self.unseen,
            num=given.num,
            num_reference=given.num_reference,
            has_pages=not self.pages,
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        sampler = SamplerConfig(num_steps=given.sampling_steps)
        self.drawing = GenerateConfig(sampler=sampler, speed=self.made.generate.speed)
        self._measurer: Measurer | None = None

    def source(self, variant: Variant) -> Run | None:
        """The run that the variant trains on; None when it was not given."""
        if variant.trains_on == "siglip":
            return self.siglip
        return self.pages if variant.trains_on == "pages" and self.pages else self.run

    def selection(self, variant: Variant) -> Path:
        """The pairs that the variant trains on."""
        source = self.source(variant)
        assert source is not None
        band = self.made.band if variant.filtered else BandConfig(low=EVERYTHING[0], high=EVERYTHING[1], score=self.made.band.score)
        label, unseen = self.given.labelled, self.unseen
        allowed = {
            "labelled": lambda page: is_labelled(page, label),
            "pages": None if self.pages else lambda page: not is_labelled(page, label) and page not in unseen,
        }.get(variant.trains_on)
        name = f"{variant.trains_on}-{'band' if variant.filtered else 'all'}"
        return view(source, band, self.given.out.absolute() / "selections" / name, allowed)

    @property
    def measurer(self) -> Measurer:
        """What measures samples; made when the first training needs it."""
        if self._measurer is None:
            encoder = load_encoder(EncoderConfig(**self.run.manifest.config["encoder"]), str(self.device))
            extractors = [encoder_features(encoder)]
            if self.given.inception:
                extractors.append(load_features(resolve("inception"), self.device))
            net = None if self.given.perceptual == "none" else load_perceptual(resolve(self.given.perceptual), self.device)
            names = {name for s in self.sets.values() for name in (*s.conditions, *s.reference, *s.classes)}
            self._measurer = Measurer(
                sets=self.sets,
                pictures=self.run.read(names),
                extractors=extractors,
                perceptual=net,
                mean=self.run.mean if self.made.band.score == "centred_cosine" else None,
                resolution_px=self.made.train.denoiser.resolution_px,
                drawing=self.drawing,
                device=self.device,
            )
        return self._measurer


def result_path(out: Path, variant: str, seed: int) -> Path:
    """Where the result of a training is left."""
    return out / "trials" / f"{variant}-{seed}.json"


def read_result(path: Path) -> dict[str, Any] | None:
    """The result in a file; None when there is none. Raises DataError when the file is not one of this benchmark's."""
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        if values["format"] != FORMAT:
            raise DataError(f"orderings: {path} has format {values['format']}, expected {FORMAT}; delete it")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"orderings: {path} is damaged ({error!r}); delete it and run the same command again") from None
    return values


def finished(path: Path, work: str) -> bool:
    """Whether the training that `work` names has left its result. Raises DataError when one with other settings has."""
    values = read_result(path)
    if values is None:
        return False
    if values["work"] != work:
        raise DataError(f"orderings: {path} was made with other settings or pictures; give another --out, or delete it")
    return True


def read_figures(out: Path) -> tuple[dict[tuple[str, int], dict[str, Figure]], dict[tuple[str, int], dict[str, Any]]]:
    """((variant, seed) -> address -> figure, (variant, seed) -> the whole result) of all that is in `out`."""
    figures, results, first = {}, {}, None
    for path in sorted((out / "trials").glob("*.json")):
        values = read_result(path)
        if values is not None:
            first = first or path
            check_settings(read_result(first), values["settings"], f"{first} and {path}")
            key = (values["variant"], values["seed"])
            results[key] = values
            figures[key] = {where: Figure(f["value"], tuple(f["without"])) for where, f in values["figures"].items()}
    return figures, results


def check_settings(result: Mapping[str, Any] | None, settings: Mapping[str, Any], where: str) -> None:
    """Raise DataError when a result was made with other common settings: its figures would not compare."""
    if result is None:
        return
    for name, value in settings.items():
        if result["settings"].get(name) != value:
            raise DataError(f"orderings: {where}: {name} is {result['settings'].get(name)!r} and {value!r}; give another --out")


def common_settings(given: argparse.Namespace, sets: Mapping[str, EvaluationSet]) -> dict[str, Any]:
    """What all results of one folder have in common, for the table and for the name of the work."""
    names = ("preset", "budget", "points", "num", "num_reference", "sampling_steps", "labelled", "inception", "perceptual")
    return {name: getattr(given, name) for name in names} | {"sets": {name: s.hash for name, s in sets.items()}}


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, then write the table. Returns the exit code."""
    given = options(argv)
    out = given.out.absolute()
    try:
        if not given.table_only:
            _train_all(Bench(given), out)
        figures, results = read_figures(out)
        if not results:
            raise DataError(f"orderings: {out / 'trials'} holds no result; run without --table-only")
        text = written(figures, results)
        write_atomically(out / "orderings.md", text.encode())
        print(text)
        if not given.no_record:
            print(record("orderings", measured_rows(figures, results)))
    except SemanticaError as error:
        print(f"error: {error}")
        return 1
    return 0


def _train_all(bench: Bench, out: Path) -> None:
    given = bench.given
    chosen = [VARIANTS[name] for name in given.variants or VARIANTS]
    settings = common_settings(given, bench.sets)
    for path in sorted((out / "trials").glob("*.json")):
        check_settings(read_result(path), settings, f"{path} and this command")
    for seed in given.seeds:  # all variants of a seed first: a stopped benchmark has whole comparisons
        for variant in chosen:
            source = bench.source(variant)
            if source is None:
                print(f"{variant.name}: not run, no --{variant.trains_on} was given", flush=True)
                continue
            config = train_config(variant, bench.made, source.encoder, budget=given.budget, points=given.points, seed=seed)
            selection = bench.selection(variant)
            chosen_pairs = read_manifest(selection, "selection")
            work = text_hash([settings, to_dict(config), to_dict(bench.drawing), variant.cells, chosen_pairs.hash])
            path = result_path(out, variant.name, seed)
            if finished(path, work):
                print(f"{variant.name}, seed {seed}: done before", flush=True)
                continue
            started = time.monotonic()

            def say(text: str, name: str = f"{variant.name}, seed {seed}", since: float = started) -> None:
                print(f"{name}, {time.monotonic() - since:.0f} s: {text}", flush=True)

            found = run_trial(variant, config, source, selection, bench.measurer, say)
            head = {"format": FORMAT, "work": work, "variant": variant.name, "about": variant.about, "seed": seed}
            shown = {name: [len(s.conditions), len(s.reference), len(s.classes)] for name, s in bench.sets.items()}
            facts = {"settings": settings, "sizes": shown, "encoder": bench.run.encoder["name"], "device": str(bench.device)}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({**head, **facts, **found}, indent=1).encode())


if __name__ == "__main__":
    raise SystemExit(main())
