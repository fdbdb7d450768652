"""Records what the guards compare with: the figures and the outputs of the code of commit f049af4.

    git worktree add ../before f049af4
    cp -r tests/guards ../before/tests/guards
    cd ../before && PYTHONPATH=$PWD python tests/guards/record.py --out ../guards

Takes 4 minutes of 2 cores. FOLDER then holds figures.json, the crawl and the encoder that everything begins with, and old outputs:
run (of every stage), html, one-worker, trainings/NAME/STEP, release, protocols. Nothing in it is changed by the tests. Figures hold
on one machine with one version of torch; the folder may not be moved, since configurations name the encoder in it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONPATH"] = os.getcwd()  # of Ray's workers
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")

import torch
from guard_cases import (
    LOADS,
    SAMPLES,
    STAGES,
    TRAININGS,
    comparable,
    draw_crawl,
    history_of,
    make_encoder,
    manifest_of,
    weights_of,
)


def record(guards: Path) -> None:
    """Fill the folder, which is new."""
    import then

    import semantica

    assert Path(semantica.__file__).is_relative_to(Path.cwd()), f"PYTHONPATH=$PWD is missing: {semantica.__file__}"
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - started:5.0f} s  {what}", flush=True)

    torch.set_num_threads(1)
    draw_crawl(guards / "crawl")
    make_encoder(guards / "encoder")
    then.run_pipeline(guards, guards / "run")
    say("every stage")
    then.ingest_html(guards, guards / "html")
    say("HTML pages")
    one_worker = then.train_by_one_worker(guards, guards / "one-worker")
    say("training by one worker of Ray")
    then.evaluate_protocols(guards, guards / "protocols")
    say("protocols")
    trainings = {t.name: then.train_losses(guards, t, guards / "trainings" / t.name).to_dict() for t in TRAININGS}
    say("trainings in one process")
    samples = {sample.name: then.draw_sample(guards, sample) for sample in SAMPLES}
    chunks = {str(rows): then.draw_chunks(guards, rows) for rows in (2, 4, 64)}
    say("samples")
    then.release_model(guards, guards / "release")
    loaded = {name: then.draw_loaded(guards, name) for name in LOADS}
    say("release")
    losses, norms = history_of(guards / "run" / "checkpoint")
    weights = weights_of(guards / "run" / "checkpoint" / "model")
    figures = {
        "torch": torch.__version__,
        "manifests": {stage: manifest_of(guards / "run" / stage) for stage in STAGES} | {"html": manifest_of(guards / "html")},
        "reports": {
            "run": comparable(json.loads((guards / "run" / "evaluation" / "report.json").read_text())),
            "protocols": comparable(json.loads((guards / "protocols" / "report.json").read_text())),
        },
        "two-workers": {"losses": losses, "norms": norms, "weights": weights},
        "one-worker": one_worker.to_dict(),
        "trainings": trainings,
        "samples": samples,
        "chunks": chunks,
        "loaded": loaded,
    }
    (guards / "figures.json").write_text(json.dumps(figures, indent=1))


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the recording, which is replaced when it is one")
    out = parser.parse_args().out.absolute()
    if out.exists() and any(out.iterdir()) and not (out / "crawl").exists():
        print(f"record: {out} holds something else; name another folder", file=sys.stderr)
        return 2
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    record(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
