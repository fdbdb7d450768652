"""The guard of every check, and how findings are shown."""

import json
import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from semantica.doctor.finding import ORDER, Finding, as_json, as_text, exit_code, fail, ok, run_check, warn, worst

KINDS = [
    ValueError,
    OSError,
    KeyError,
    RuntimeError,
    SystemExit,
    KeyboardInterrupt,
    MemoryError,
    UnicodeError,
    type("Odd", (Exception,), {}),
]
statuses = st.sampled_from(ORDER)
findings = st.lists(st.builds(Finding, st.text(), statuses, st.text(), st.text()), max_size=8)


@given(st.sampled_from(KINDS), st.text(max_size=400), st.integers(0, 3))
def test_whatever_a_check_raises_is_a_failed_finding_and_what_it_found_before_stays(kind, text, before):
    def check():
        for number in range(before):
            yield ok(f"part {number}", "there")
        raise kind(text)

    found = run_check("some", check)
    assert [f.name for f in found] == [*(f"part {n}" for n in range(before)), "some"]
    assert found[-1].status == "FAIL"
    assert kind.__name__ in found[-1].found
    assert "\n" not in found[-1].found
    assert found[-1].remedy


def test_a_check_that_hangs_is_a_failed_finding_in_time():
    release = threading.Event()

    def check():
        yield ok("first", "there")
        release.wait(60)
        yield ok("second", "there")

    started = time.monotonic()
    found = run_check("some", check, seconds=0.2)
    assert time.monotonic() - started < 30
    release.set()
    assert [(f.name, f.status) for f in found] == [("first", "OK"), ("some", "FAIL")]
    assert found[-1].found == "no answer within 0.2 s"


def test_a_check_that_finds_nothing_wrong_is_passed_on():
    assert run_check("some", lambda: [ok("a", "b"), warn("c", "d", "e")]) == [
        Finding("a", "OK", "b"),
        Finding("c", "WARN", "d", "e"),
    ]


@given(findings)
def test_json_holds_every_finding_and_the_worst(found):
    back = json.loads(as_json(found))
    assert list(back) == ["worst", "findings"]
    assert [Finding(**one) for one in back["findings"]] == found
    assert back["worst"] == worst(found) == ("FAIL" if any(f.status == "FAIL" for f in found) else worst(found))
    assert as_json(found) == as_json(list(found))


@given(findings)
def test_the_exit_code_is_one_exactly_when_something_fails(found):
    assert exit_code(found) == int("FAIL" in {f.status for f in found})


def test_json_is_the_same_text_for_ever():
    assert as_json([fail("storage.space", "1 GB", "free some")]) == (
        '{\n "worst": "FAIL",\n "findings": [\n  {\n   "name": "storage.space",\n   "status": "FAIL",\n   "found": "1 GB",\n'
        '   "remedy": "free some"\n  }\n ]\n}'
    )


def test_the_text_has_a_line_a_finding_and_counts_them():
    lines = as_text([ok("a", "there"), warn("longer", "odd", "do this"), fail("b", "gone", "do that")]).splitlines()
    assert lines == ["OK    a       there", "WARN  longer  odd; do this", "FAIL  b       gone; do that", "1 OK, 1 WARN, 1 FAIL"]
