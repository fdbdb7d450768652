"""The decoder in a child: it says what `normalise` says, and nothing that happens to it reaches the batch or the next picture.

The children that misbehave here are real processes: they run the real child, and on certain files they really die or hang.
"""

import io
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from semantica.episodes import decoder as decoder_module
from semantica.episodes.decoder import COMMAND, Decoder, InProcessDecoder, PictureDecoder, open_decoder
from semantica.episodes.images import ImageConfig, normalise
from semantica.episodes.quarantine import Reason, Refused

SMALL = ImageConfig(image_px=32, min_side_px=8)
HASTY = ImageConfig(image_px=32, min_side_px=8, decode_timeout_s=1.0)

# ctypes.PyDLL keeps Python's lock during the call, as a decoder in C may.
MISBEHAVE = """
import ctypes, os
from semantica.episodes import decoder_child
whole = decoder_child.normalise
def misbehave(data, settings):
    if data == b"segfault": ctypes.string_at(0)
    if data == b"exit": os._exit(3)
    if data == b"kill": os.kill(os.getpid(), 9)
    if data == b"hang": ctypes.PyDLL(None).sleep(600)
    if data == b"leak": keep.append(bytearray(30_000_000))
    if data == b"raise": raise ValueError("a defect of ours")
    if data == b"garble": os.write(3, bytes([1]) * 500_000)
    if data == b"chatter": os.write(1, b"from a C library"); print("from Python", flush=True)
    if data in (b"leak", b"chatter"): data = good
    return whole(data, settings)
keep, good = [], bytes.fromhex("GOOD")
decoder_child.normalise = misbehave
decoder_child.main()
"""


def encoded(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def noise(seed=0, side=48, mode="RGB"):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).convert(mode)


GOOD = encoded(noise())
WRONG = (*COMMAND[:2], "-c", MISBEHAVE.replace("GOOD", GOOD.hex()))


def outcome(decode, data):
    """All that is said of a file."""
    try:
        image = decode(data)
    except Refused as refused:
        return refused.reason, refused.detail
    return image.data, image.pixels.mode, image.pixels.tobytes(), image.original_width, image.original_height


def reason_of(decode, data):
    with pytest.raises(Refused) as caught:
        decode(data)
    assert caught.value.detail
    return caught.value.reason


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"  # nobody may be there to bury an orphan
    except FileNotFoundError:
        return False


def wait_until_ended(pid, seconds):
    deadline = time.monotonic() + seconds
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def decoder():
    with Decoder(SMALL) as decoder:
        yield decoder


def test_one_child_serves_all_pictures_good_and_bad(decoder):
    pids = set()
    for data in (GOOD, b"no picture", GOOD, b""):
        outcome(decoder, data)
        pids.add(decoder.pid)
    assert len(pids) == 1


@pytest.mark.parametrize(
    ("data", "detail"),
    [(b"segfault", "SIGSEGV"), (b"exit", "exit code 3"), (b"kill", "SIGKILL"), (b"raise", "exit code 1"), (b"garble", "announced")],
)
def test_a_picture_that_kills_the_decoder_is_refused_and_the_next_is_served(data, detail):
    expected = outcome(InProcessDecoder(SMALL), GOOD)
    with Decoder(SMALL, WRONG) as decoder:
        for _ in range(2):  # in a fresh child, and in one that has served
            with pytest.raises(Refused, match=detail) as caught:
                decoder(data)
            assert caught.value.reason == Reason.DECODER_DIED
            assert outcome(decoder, GOOD) == expected


def test_a_picture_that_hangs_is_refused_in_time_and_its_child_is_gone():
    with Decoder(HASTY, WRONG) as decoder:
        decoder(GOOD)
        pid, started = decoder.pid, time.monotonic()
        assert reason_of(decoder, b"hang") == Reason.DECODER_TIMEOUT
        assert 1 <= time.monotonic() - started < 10
        assert not is_running(pid)
        assert decoder(GOOD).width == 32


def test_a_large_file_that_the_child_never_reads_is_refused_in_time_too():
    with Decoder(HASTY) as decoder:
        decoder(GOOD)
        os.kill(decoder.pid, signal.SIGSTOP)
        assert reason_of(decoder, bytes(20_000_000)) == Reason.DECODER_TIMEOUT  # more than the pipe holds


def test_a_picture_that_needs_too_much_memory_is_refused_and_the_next_is_served():
    large = encoded(Image.linear_gradient("L").resize((6000, 6000)).convert("RGB"), compress_level=1)
    with Decoder(ImageConfig(decode_memory_mb=64)) as poor, Decoder(ImageConfig(decode_memory_mb=1024)) as rich:
        assert reason_of(poor, large) == Reason.DECODER_MEMORY
        assert poor(encoded(noise(side=500))).width == 256
        assert rich(large).original_width == 6000
        assert rich.num_started == 1


def test_memory_that_others_took_is_not_blamed_on_a_picture():
    with Decoder(ImageConfig(image_px=32, min_side_px=8, decode_memory_mb=64), WRONG) as decoder:
        for _ in range(6):  # two fit in a child
            assert decoder(b"leak").width == 32
        assert decoder.num_started == 3


def test_a_child_that_somebody_kills_costs_no_picture(decoder):
    expected = outcome(decoder, GOOD)
    before = decoder.num_started
    os.kill(decoder.pid, signal.SIGKILL)  # between two pictures
    assert outcome(decoder, GOOD) == expected
    pid, got = decoder.pid, []
    os.kill(pid, signal.SIGSTOP)
    thread = threading.Thread(target=lambda: got.append(outcome(decoder, GOOD)))
    thread.start()
    time.sleep(0.2)
    assert not got
    os.kill(pid, signal.SIGKILL)  # with a picture in its hands
    thread.join()
    assert got == [expected]
    assert decoder.num_started == before + 2


def test_what_libraries_print_is_neither_taken_for_a_reply_nor_shown(capfd):
    chatty = bytearray(encoded(noise(), "TIFF", compression="tiff_lzw"))
    chatty[40:400] = bytes(360)
    assert reason_of(InProcessDecoder(SMALL), bytes(chatty)) == Reason.UNDECODABLE
    assert "scanline" in capfd.readouterr().err  # libtiff prints where it can
    with Decoder(SMALL, WRONG) as decoder:
        assert reason_of(decoder, bytes(chatty)) == Reason.UNDECODABLE
        assert outcome(decoder, b"chatter") == outcome(InProcessDecoder(SMALL), GOOD)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_child_inherits_neither_secrets_nor_open_files(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    with open(tmp_path / "open", "wb") as held, Decoder(SMALL) as decoder:
        os.set_inheritable(held.fileno(), True)
        decoder(GOOD)
        with open(f"/proc/{decoder.pid}/environ") as environment:
            assert "hush" not in environment.read()
        targets = [os.readlink(f"/proc/{decoder.pid}/fd/{number}") for number in os.listdir(f"/proc/{decoder.pid}/fd")]
        assert sorted(target.partition(":")[0] for target in targets) == ["/dev/null", "/dev/null", "pipe", "pipe"]
        with open(f"/proc/{decoder.pid}/maps") as maps:
            assert not any(name in maps.read() for name in ("libtorch", "_raylet"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("last", "seconds"), [("good", 5), ("hang", 15)])  # the alarm rings 1 + 5 s after the picture came
def test_the_child_ends_with_its_parent_whatever_it_does(last, seconds, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, threading, time\n"
        "from semantica.episodes.decoder import Decoder\n"
        "from semantica.episodes.images import ImageConfig\n"
        f"decoder = Decoder(ImageConfig(image_px=32, min_side_px=8, decode_timeout_s=1.0), {WRONG!r})\n"
        f"decoder(bytes.fromhex({GOOD.hex()!r}))\n"
        "print(decoder.pid, flush=True)\n"
        "if sys.argv[1] == 'hang':\n"
        "    threading.Timer(0.2, lambda: os.kill(os.getpid(), 9)).start()\n"
        "    decoder(b'hang')\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, script, last], stdout=subprocess.PIPE, env=environment)
    pid = int(parent.stdout.readline())
    assert is_running(pid)
    if last == "good":
        parent.kill()
    assert parent.wait() == -signal.SIGKILL
    parent.stdout.close()
    wait_until_ended(pid, seconds)


class Interrupted(BaseException):
    """As KeyboardInterrupt."""


def test_a_call_that_is_interrupted_leaves_no_reply_for_the_next():
    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Decoder(SMALL, WRONG) as decoder:
            expected = outcome(decoder, GOOD)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Interrupted):
                decoder(b"hang")
            assert outcome(decoder, GOOD) == expected
            assert decoder.num_started == 2
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_child_is_relieved_after_many_pictures(monkeypatch):
    monkeypatch.setattr(decoder_module, "_PICTURES_PER_CHILD", 2)
    with Decoder(SMALL) as decoder:
        assert len({outcome(decoder, GOOD) for _ in range(5)}) == 1
        assert decoder.num_started == 3


def test_closing_ends_the_child_and_a_later_picture_starts_another():
    decoder = Decoder(SMALL)
    assert decoder.pid is None
    decoder(GOOD)
    pid = decoder.pid
    decoder.close()
    assert not is_running(pid)
    decoder(GOOD)
    assert decoder.num_started == 2
    decoder.close()
    decoder.close()


def test_threads_share_a_decoder(decoder):
    data = [encoded(noise(seed)) for seed in range(8)]
    got = {}

    def work(index):
        for _ in range(5):
            got.setdefault(index, set()).add(outcome(decoder, data[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {index: {outcome(InProcessDecoder(SMALL), data[index])} for index in range(8)}


def test_a_child_that_cannot_start_is_an_error_and_no_pictures_fault():
    with Decoder(SMALL, (sys.executable, "-c", "raise SystemExit(7)")) as decoder, pytest.raises(RuntimeError, match="exit code 7"):
        decoder(GOOD)


def test_the_settings_say_where_pictures_are_decoded():
    with open_decoder(SMALL) as isolated, open_decoder(ImageConfig(image_px=32, min_side_px=8, isolate=False)) as direct:
        assert isinstance(isolated, Decoder)
        assert isinstance(direct, InProcessDecoder)
        assert isinstance(isolated, PictureDecoder)
        assert isinstance(direct, PictureDecoder)
        assert isolated(GOOD).data == direct(GOOD).data == normalise(GOOD, SMALL).data
