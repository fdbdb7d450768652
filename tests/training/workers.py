"""What tests of several training workers start: `python workers.py job.json`. Each worker is a process of a gloo group on the CPU.

A job is runs one after the other, each of `world` workers: a training of a few steps, or a checkpoint that is loaded and saved
again. What a worker found goes to NAME/RANK.json, checkpoints to NAME/checkpoints.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch._dynamo.testing  # here, so that it is paid for once
import torch.distributed as dist
from safetensors.torch import save_file

from semantica.config import from_dict
from semantica.data.durable import new_attempt
from semantica.pairs.loader import Batches, LoaderWorker, PairLoader, open_pairs
from semantica.training.checkpoint import Keeper, Provenance, Saver, TrainState, Writers, open_checkpoint
from semantica.training.compute import prepare
from semantica.training.ema import Ema
from semantica.training.loop import Hooks, fit, initial_network
from semantica.training.parallel import local, sharing, whole, wrap
from semantica.training.recipe import KeepConfig, TrainConfig
from semantica.training.step import make_optimizer

PROVENANCE = Provenance({"identity": {"name": "numbers"}}, "e", "s")


class Damaged:
    """A real loader, whose batch of one step holds one pixel that is not finite, on the first worker."""

    def __init__(self, loader, step):
        self.loader, self.step = loader, step

    def batch(self, step):
        batch = self.loader.batch(step)
        if step != self.step or 0 not in batch.slots:
            return batch
        x = batch.x.clone()
        x[batch.slots.index(0), 2, 3, 4] = float("nan")
        return replace(batch, x=x)


def held(state):
    """How many numbers of each kind this worker has."""
    moments = [m for s in state.optimizer.state.values() for m in (s["exp_avg"], s["exp_avg_sq"])]
    kinds = {"model": list(state.network.parameters()), "ema": list(state.ema.values.values()), "optimizer": moments}
    return {kind: sum(local(t).numel() for t in tensors) for kind, tensors in kinds.items()}


def work(job, run, rank):
    """One worker of one run."""
    torch.set_num_threads(1)
    world, folder = run["world"], Path(job["folder"]) / run["name"]
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    config = from_dict(TrainConfig, run["config"])
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch.compiler.set_default_backend(graphs)
    share = sharing(config.compute, rank, world)
    keeper = Keeper(folder / "checkpoints", KeepConfig(last=9))
    start = open_checkpoint(Path(run["start"])) if run["start"] else None
    found = {"reports": [], "failures": [], "graphs": []}
    with Saver(
        keeper,
        lambda f: found["failures"].append(str(f.error)),
        writers=Writers(share.rank, share.world, run["attempt"], patience_s=60),
    ) as saver:

        def on_checkpoint(state):
            if share.replica == 0:
                saver.save(state)
            found["held"] = held(state)
            found["graphs"].append(graphs.frame_count)
            gathered = whole(dict(state.network.named_parameters()), keep=rank == 0)
            found["gathered"] = len(gathered)
            if gathered:
                contiguous = {name: t.detach().contiguous() for name, t in gathered.items()}
                save_file(contiguous, folder / f"whole-{state.step}.safetensors")

        if run["resave"]:
            network = prepare(initial_network(config).train(), config.compute)
            wrap(network, config.compute, "cpu")
            ema = Ema(network, config.ema)
            optimizer = make_optimizer(network, config.optimizer)
            start.restore(network, ema, optimizer)
            on_checkpoint(TrainState(network, ema, optimizer, config, start.step, PROVENANCE))
        else:
            loader = PairLoader(
                open_pairs(Path(job["encodings"]), Path(job["selection"])),
                Batches(config.seed, config.batch_size, config.num_lanes, resolution_px=16),
                LoaderWorker(rank, world),
            )

            hooks = Hooks(lambda r: found["reports"].append([r.loss, r.grad_norm, r.num_skipped]), on_checkpoint)
            loader = Damaged(loader, run["damaged_step"])
            fit(config, loader, PROVENANCE, hooks, start=start)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    # Forked, when nothing has run yet: the imports are paid for once.
    context = multiprocessing.get_context("fork")
    for run in job["runs"]:
        run["attempt"] = new_attempt()
        (Path(job["folder"]) / run["name"]).mkdir()
        processes = [context.Process(target=work, args=(job, run, rank)) for rank in range(run["world"])]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit(f"{run['name']}: workers ended with {[process.exitcode for process in processes]}")


if __name__ == "__main__":
    main()
