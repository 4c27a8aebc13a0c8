"""The page of the demo, in a browser, as its users see it."""

import re
import socket
import subprocess
import sys

import pytest
import soundfile
from browser import chromium, chromium_path
from command_lines import parsed
from launching import command, environment, free_port, wait_until
from stage_runs import english_only, run, talkative_model_folder
from tiny import SAMPLE_RATE, load_script, spoken

from distillery.evaluation.side_by_side import Listener
from distillery.text.subtitles import read_subtitles
from distillery.whisper import checkpoint
from distillery.whisper.decoding import Decoding

SCRIPT = "run_demo.py"
TIMEOUT_MS = 30_000


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    talkative_model_folder(root / "teacher", seed=1)
    talkative_model_folder(root / "student", seed=2, decoder_layers=1)
    soundfile.write(root / "talk.wav", spoken(0.5, 1.0, 1.0, 0.5)[0], SAMPLE_RATE)
    (root / "broken.wav").write_bytes(b"no audio at all")
    return root


@pytest.fixture(scope="module")
def port(root):
    """Serve the page, as users start it; return its port."""
    chromium_path()  # skips where there is none
    pytest.importorskip("gradio")
    port = free_port()
    words = ["-m", root / "teacher", "--compare_with", root / "student", "--language", "ja"]
    words += ["--example", root / "talk.wav", "--generation_max_length", 24, "--port", port]
    log = (root / "log.txt").open("w")
    program = subprocess.Popen(
        command(SCRIPT, *words), env=environment(), stdout=log, stderr=subprocess.STDOUT
    )
    try:
        wait_until(lambda: program.poll() is not None or is_served(port), 120)
        assert program.poll() is None, (root / "log.txt").read_text()
        yield port
    finally:
        program.terminate()
        program.wait(30)
        log.close()


def is_served(port):
    import requests

    try:
        return requests.get(f"http://127.0.0.1:{port}/", timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="module")
def browser(port):
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, port):
    """Open the page, which may ask nobody but this machine."""
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"http://127.0.0.1:{port}/")
    page.get_by_role("button", name="Transcribe").wait_for()
    yield page
    ours = (f"http://127.0.0.1:{port}", "blob:", "data:")
    assert [url for url in asked if not url.startswith(ours)] == []
    page.close()


def transcribe(page):
    page.get_by_role("button", name="Transcribe").click()


def text_by(page, name):
    return page.get_by_label(f"Text by {name}")


def wait_for_answers(page):
    page.get_by_text("times faster than real time").nth(1).wait_for()


def upload(page, path):
    with page.expect_response(is_upload):
        page.set_input_files("input[type=file]", path)
    page.get_by_label("Clear").first.wait_for()


def is_upload(response):
    return "/upload" in response.url and response.ok


def test_an_upload_is_heard_by_both_and_its_subtitles_come_down(page, root, tmp_path):
    upload(page, root / "talk.wav")
    transcribe(page)
    wait_for_answers(page)
    texts = {name: text_by(page, name).input_value() for name in ("teacher", "student")}
    assert all(texts.values())
    assert texts["teacher"] != texts["student"]
    assert page.get_by_text("only teacher").count() >= 1
    assert page.get_by_text("only student").count() >= 1
    for name, text in texts.items():
        with page.expect_download() as download:
            page.get_by_text(f"Subtitles by {name}").click()
        assert download.value.suggested_filename == f"talk.{name}.srt"
        download.value.save_as(tmp_path / f"{name}.srt")
        cues = read_subtitles(tmp_path / f"{name}.srt").cues
        assert len(cues) > 1
        assert all("".join(cue.text.split()) in "".join(text.split()) for cue in cues)


def test_an_example_is_one_click_away_and_timestamps_can_be_left_out(page):
    page.get_by_text("talk.wav").click()
    page.get_by_label("Timestamps").uncheck()
    page.get_by_label("Clear").first.wait_for()
    transcribe(page)
    wait_for_answers(page)
    assert text_by(page, "teacher").input_value()
    assert page.get_by_role("button", name="Subtitles by teacher").is_disabled()


def test_what_is_recorded_is_heard(page):
    page.get_by_label("Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(2000)
    with page.expect_response(is_upload):
        page.get_by_role("button", name="Stop").first.click()
    page.get_by_label("Clear").first.wait_for()
    transcribe(page)
    wait_for_answers(page)
    # What a model of random weights writes of it depends on when the browser beeps, and may be "".
    summary = page.get_by_text("times faster than real time").first.inner_text()
    (seconds,) = re.findall(r"for ([\d.]+) s of audio", summary)
    assert 1 < float(seconds) < 60


def test_a_broken_file_is_told_and_the_page_goes_on(page, root):
    transcribe(page)
    page.get_by_text("Upload or record something first.").wait_for()
    upload(page, root / "broken.wav")
    transcribe(page)
    page.get_by_text("broken.wav cannot be decoded").wait_for()
    assert text_by(page, "teacher").input_value() == ""


def test_what_is_wrong_with_the_flags_is_told(root):
    pytest.importorskip("gradio")
    with pytest.raises(SystemExit):
        run(SCRIPT, "-m", "m", "--port", 0)
    with pytest.raises(FileNotFoundError, match=r"--example .*none\.wav: there is no such file"):
        run(SCRIPT, "-m", "m", "--example", root / "none.wav", "--port", free_port())


def chosen_at_first(listeners, *words):
    gradio = pytest.importorskip("gradio")
    stage = load_script(SCRIPT)
    _, asked, _ = parsed(SCRIPT, ["-m", "m", *words])
    return [each.value for each in stage._settings(gradio, listeners, asked)]


@pytest.fixture(scope="module")
def listeners(root):
    asked = Decoding(None, "transcribe", timestamps=True, num_beams=1, max_length=24)
    english = english_only(talkative_model_folder(root / "english"))
    whispers = [checkpoint.load(str(folder)) for folder in (root / "student", english)]
    return [Listener("model", whisper, 1, asked) for whisper in whispers]


def test_flags_say_what_is_chosen_at_first(listeners):
    assert chosen_at_first(listeners[:1]) == ["detected", "transcribe", True]
    words = ["-l", "Japanese", "-t", "translate", "--return_timestamps", "False"]
    assert chosen_at_first(listeners[:1], *words) == ["ja", "translate", False]
    assert chosen_at_first(listeners) == ["en", "transcribe", True]


def test_a_language_that_a_model_lacks_is_told(listeners):
    with pytest.raises(ValueError, match="--language ja: not every model on the page knows it"):
        chosen_at_first(listeners, "-l", "ja")


def test_a_port_that_is_taken_is_named_before_models_are_loaded():
    pytest.importorskip("gradio")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=f"--server_port {port} of .*: Address already in use"):
            run(SCRIPT, "-m", "no/model", "--port", port)


def test_without_gradio_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match="pip install gradio"):
        load_script(SCRIPT)._gradio()
