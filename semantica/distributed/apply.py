"""Stage `apply`: one application over a folder of pictures, by a pool of actors that each hold the model.

In: a trained model, pictures, and where the task needs them masks and conditioning images. Out: a PNG per sample
(`pictures/NAME-0.png`), tables of samples, latents and refused pictures, and a report with each picture beside its samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from semantica.applications.editor import Editor, load
from semantica.applications.folder import Drawn, Folders, Item, apply
from semantica.applications.settings import ApplyConfig, Task
from semantica.config import to_yaml
from semantica.data.dataset import Manifest, StageOutput, read_shard
from semantica.data.durable import write_atomically
from semantica.data.location import file_sha256
from semantica.data.schemas import EDITS, LATENTS, REFUSED
from semantica.distributed.runtime import Runtime, device
from semantica.distributed.session import check_absolute_when_submitted
from semantica.distributed.stage import Pass, Stage, StageSession, build_one, run_stage
from semantica.errors import DataError
from semantica.generation.conditioning_images import square_of
from semantica.generation.generate import png_bytes
from semantica.generation.pipeline import trained
from semantica.report.page import Figure, Grid, Report, Table, render
from semantica.report.pictures import Picture, grid_png
from semantica.tracking import Run
from semantica.tracking.run import git_commit
from semantica.training.checkpoint import open_checkpoint

PICTURES, REPORT, PREVIEW = "pictures", "report.html", "preview.png"
_SHOWN, _SHOWN_SAMPLES = 24, 9
_MADE_OF = {"edit": "edits", "refine": "refined pictures", "inpaint": "filled pictures", "vary": "variations"}
_MADE_OF |= {"interpolate": "pictures of interpolations", "invert": "pictures drawn again from their latents"}


@dataclass(frozen=True)
class ItemShard:
    """Some of the pictures, which one call of a worker does."""

    name: str
    items: tuple[Item, ...]


class ApplyShard:
    """One actor: the model, and the shards it is given. encoder: a folder of the encoder's weights, "" where they lie."""

    def __init__(
        self, task: Task, folders: Folders, config: ApplyConfig, checkpoint: Path, out: StageOutput, encoder: str = ""
    ) -> None:
        self.task, self.folders, self.config, self.out = task, folders, config, out
        self.model: Editor = load(checkpoint, device(), encoder or None, speed=config.speed)

    def __call__(self, shard: ItemShard) -> int:
        """The number of pictures that are done or refused. Their files are there before the receipt of the shard."""
        results = apply(self.model, self.task, shard.items, self.folders, self.config)
        edits = [row for drawn in results for row in self._written(drawn)]
        latents = [
            {"picture": drawn.item.name, "shape": list(drawn.z.shape), "z": drawn.z.numpy().astype("<f4").tobytes()}
            for drawn in results
            if drawn.z is not None
        ]
        refused = [{"picture": drawn.item.name, "reason": drawn.reason} for drawn in results if drawn.reason]
        tables = {"": pa.Table.from_pylist(edits, EDITS), "refused": pa.Table.from_pylist(refused, REFUSED)}
        if self.task == "invert":
            tables["latents"] = pa.Table.from_pylist(latents, LATENTS)
        stats = {"num_samples": len(edits), "refused": refused, "side": self.model.model.shape[-1]}
        self.out.write_shard(shard.name, tables, stats)
        return len(shard.items)

    def _written(self, drawn: Drawn) -> Iterator[dict[str, object]]:
        for index, sample in enumerate(drawn.samples):
            file = f"{PICTURES}/{drawn.item.name}-{index}.png"
            write_atomically(self.out.folder / file, png_bytes(np.asarray(sample)))
            yield {"picture": drawn.item.name, "sample_index": index, "file": file}


def apply_to_folder(
    task: Task,
    config: ApplyConfig,
    *,
    checkpoint: Path,
    folders: Folders,
    out: Path,
    runtime: Runtime,
    encoder: str = "",
    parent: Run | None = None,
) -> Manifest:
    """Do the task for every picture of the folders into `out`. Returns the manifest of the samples.

    checkpoint: a released folder, a checkpoint, or the output of semantica train. Raises DataError when no picture can be used.
    """
    folders.check(task)
    check_absolute_when_submitted(folders.pictures)
    items, model = folders.items(), trained(checkpoint)
    inputs = {"checkpoint": _hash_of(model), **folders.hashes(items)}
    further = {"task": task, "conditioning": folders.like if not folders.has_likes else "pictures"}
    output = StageOutput(out.absolute(), "edits", config, inputs, further)
    arguments = (task, folders, config, model, output, encoder)

    def passes(session: StageSession) -> Iterator[Pass[ItemShard, int]]:
        todo = [shard for shard in _shards(items, config.batch_size) if not output.has_shard(shard.name)]
        total = sum(len(shard.items) for shard in todo)
        one = Pass(worker=ApplyShard, arguments=arguments, shards=todo, total=total, unit="pictures", size=int, pool=True)
        yield replace(one, here=len(todo) <= 1)

    def finish(session: StageSession) -> Manifest:
        stats = [stats for _, stats in output.receipts()]
        refused = [(row["picture"], row["reason"]) for one in stats for row in one["refused"]]
        if len(refused) == len(items):
            raise DataError(f"apply: none of the {len(items)} pictures can be used; the first: {refused[0][1]}")
        num_samples = sum(one["num_samples"] for one in stats)
        files = [row["file"] for row in _rows(output)]
        counts = {"num_pictures": len(items) - len(refused), "num_refused": len(refused), "num_samples": num_samples}
        session.summary = f"{num_samples} {_MADE_OF[task]} of {counts['num_pictures']} pictures"
        if refused:
            session.notes.append(f"{len(refused)} pictures refused, the first: {refused[0][1]}")
        grid = _grid(task, items, output, stats[0]["side"])
        # Beside the dataset, not of it: made from it, for a person to look at first.
        write_atomically(output.folder / PREVIEW, grid.png)
        write_atomically(output.folder / REPORT, render(_report(task, config, counts, refused, grid)).encode())
        session.run.image(grid.png, "before-and-after")
        return output.finish(counts, {"resolution_px": stats[0]["side"]}, files)

    def ready(session: StageSession) -> None:
        build_one(ApplyShard, arguments, session)

    return run_stage(Stage(name="apply", out=output, passes=passes, finish=finish, ready=ready), runtime, parent)


def _hash_of(model: Path) -> str:
    """What names the weights of a model: the hash of a checkpoint's manifest, or of a release's files."""
    if not model.is_dir():
        raise DataError(f"checkpoint: no folder {model}; give a released model, a checkpoint, or the output of semantica train")
    if (model / "manifest.json").exists():
        return open_checkpoint(model).hash
    files = [model / "config.json", model / "model.safetensors"]
    if not all(file.is_file() for file in files):
        raise DataError(
            f"checkpoint: {model} holds no model; give a released model, a checkpoint, or the output of semantica train"
        )
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()


def _shards(items: Sequence[Item], size: int) -> Iterator[ItemShard]:
    for start in range(0, len(items), size):
        yield ItemShard(f"part-{start // size:05d}", tuple(items[start : start + size]))


def _rows(output: StageOutput) -> Iterator[dict[str, str]]:
    """The rows of EDITS of all shards."""
    for entry in output.files():
        if "/" not in entry.path:
            yield from read_shard(output.folder, entry).to_pylist()


def _grid(task: Task, items: Sequence[Item], output: StageOutput, side: int) -> Grid:
    """Each of the first pictures beside its mask, its conditioning image and its samples."""
    files: dict[str, list[str]] = {}
    for row in _rows(output):
        files.setdefault(row["picture"], []).append(row["file"])
    shown = [item for item in items if item.name in files][:_SHOWN]
    width = min(_SHOWN_SAMPLES, max(len(files[item.name]) for item in shown))
    given = {"picture": [item.picture for item in shown]}
    if any(item.mask for item in shown):
        given["mask"] = [item.mask or item.picture for item in shown]
    if any(item.like for item in shown):
        given["like"] = [item.like or item.picture for item in shown]
    rows: list[list[Picture | None]] = []
    for index, item in enumerate(shown):
        before = [_square(paths[index], side) for paths in given.values()]
        samples = [np.asarray(Image.open(output.folder / file)) for file in files[item.name]]  # type: ignore[arg-type]
        chosen = [samples[round(i * (len(samples) - 1) / max(1, width - 1))] for i in range(min(width, len(samples)))]
        rows.append([*before, *chosen, *[None] * (width - len(chosen))])
    columns = [*given, *(f"{task} {index}" for index in range(1, width + 1))]
    return Grid(
        title="Before and after",
        png=grid_png(rows, columns),
        alt=f"{len(rows)} rows: what was given ({', '.join(given)}), then {width} {_MADE_OF[task]}",
        caption=f"Left what was given ({', '.join(given)}), right what {task} made of it, for the first {len(rows)} pictures.",
        rows=rows,
        column_labels=columns,
        row_labels=[item.name for item in shown],
    )


def _square(path: Path, side: int) -> Picture:
    return square_of(path, side).permute(1, 2, 0).numpy()


def _report(task: Task, config: ApplyConfig, counts: dict[str, int], refused: Sequence[tuple[str, str]], grid: Grid) -> Report:
    summary = [f"{counts['num_samples']} {_MADE_OF[task]} of {counts['num_pictures']} pictures."]
    tables = []
    if refused:
        summary.append(f"{len(refused)} pictures were refused; the table says why.")
        tables = [Table(title="Refused pictures", columns=["picture", "reason"], rows=refused)]
    return Report(
        title=f"semantica apply {task}",
        summary=summary,
        figures=[Figure(name=name, value=value) for name, value in counts.items()],
        grids=[grid],
        tables=tables,
        config_yaml=to_yaml(config),
        commit=git_commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
