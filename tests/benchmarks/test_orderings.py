"""Results of the orderings benchmark on disk and their table: found again, never mixed, and what was not run is said."""

import json
import re

import pytest

from benchmarks.orderings import finished, main, read_figures, read_result, result_path
from benchmarks.orderings_table import measured_rows, written
from benchmarks.variants import FINAL, FRECHET, ORDERINGS, address
from benchmarks.verdicts import FAILS, HOLDS, NOT_RUN, Place, judged
from benchmarks.verdicts import mean_figure as mean_over_seeds
from semantica.errors import DataError


def leave(out, variant, seed, value, work="w", **cells):
    path = result_path(out, variant, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {address(FINAL, "pictures", "held_out", 0, FRECHET): value, **{k: v for k, v in cells.items()}}
    values = {
        "format": 1,
        "work": work,
        "variant": variant,
        "seed": seed,
        "settings": {"preset": "tiny", "budget": 20, "sampling_steps": 4, "perceptual": "none"},
        "sizes": {"held_out": [4, 8, 2]},
        "encoder": "an encoder",
        "figures": {k: {"value": v, "without": [v - 0.1, v + 0.1]} for k, v in found.items()},
        "cost": {"gflop_an_image": 0.5, "images_seen": 640},
    }
    path.write_text(json.dumps(values))
    return path


def test_a_result_of_the_same_work_is_found_again_and_one_of_other_work_refused(tmp_path):
    path = leave(tmp_path, "film", 0, 3.0)
    assert finished(path, "w")
    assert not finished(result_path(tmp_path, "film", 1), "w")
    with pytest.raises(DataError, match="other settings"):
        finished(path, "another")


def test_results_of_two_budgets_are_never_in_one_table(tmp_path):
    leave(tmp_path, "film", 0, 3.0)
    path = leave(tmp_path, "baseline", 0, 3.0)
    path.write_text(path.read_text().replace('"budget": 20', '"budget": 40'))
    with pytest.raises(DataError, match="budget is 40 and 20"):
        read_figures(tmp_path)


@pytest.mark.parametrize("words", [["--budget", "0"], ["--num", "1"], ["--points", "0"]])
def test_a_budget_that_trains_or_measures_nothing_is_refused_in_one_line(tmp_path, capsys, words):
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    assert re.search(rf"error: {words[0]} must be at least \d, got {words[1]}\n", capsys.readouterr().out)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 99}'])
def test_a_file_that_is_no_result_is_named(tmp_path, content):
    path = tmp_path / "film-0.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"film-0\.json"):
        read_result(path)


def test_the_table_says_what_the_results_hold_and_what_was_not_run(tmp_path):
    early = "10/pictures/held_out/w0/frechet"
    for seed, shift in enumerate((0.0, 20.0, 40.0)):
        leave(tmp_path, "baseline", seed, 90 + shift, **{early: 150.0})
        leave(tmp_path, "film", seed, 99 + shift, **{early: 140.0})
        leave(tmp_path, "unfiltered", seed, 70 + shift)
    figures, results = read_figures(tmp_path)
    verdicts = {ordering.key: verdict for ordering, _, verdict in judged(figures, ORDERINGS)}
    assert verdicts["cross_attention_beats_film"] == HOLDS
    assert verdicts["filtered_beats_unfiltered"] == FAILS
    assert verdicts["one_shot_beats_copy"] == verdicts["dinov2_beats_siglip_with_cross_attention"] == NOT_RUN
    assert mean_over_seeds(figures, Place("film", early)) == (140.0, 0.0, 3)
    rows = {row.name: row for row in measured_rows(figures, results)}
    assert rows["cross_attention_beats_film"].figure == pytest.approx(9)
    assert rows["cross_attention_beats_film"].holds is True
    assert rows["filtered_beats_unfiltered"].holds is False
    assert "one_shot_beats_copy" not in rows
    assert rows["ranking at step 10 against the last"].figure == -1
    text = written(figures, results)
    assert "needs a run of the same pictures encoded with SigLIP" in text
    assert all(ordering.claim in text for ordering in ORDERINGS)
