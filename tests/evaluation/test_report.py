import json
import os
import time
from dataclasses import replace

import browser
import numpy as np
import pytest
import soundfile
from tiny import SAMPLE_RATE

from distillery.evaluation import figures, report, results
from distillery.evaluation.report import Entry
from distillery.evaluation.results import Prediction, Result
from distillery.storage.json_lines import append_row

HOSTILE = "</script><script>document.title = 'hacked'</script><img src=x onerror=alert(1)>\"'&amp;"
RIGHT_TO_LEFT = "abc \u202edef\u202c \u2067ghi"


def prediction(row_id, reference, found):
    return Prediction(row_id, reference, found, reference + "。", found)


JAPANESE = [
    prediction("right", "ねこがみずをのむ", "ねこがみずをのむ"),
    prediction("mixed", "ねこがみずをのむ", "ねこはみずのむよ"),
    prediction("empty", "いぬとさかな", ""),
]
ENGLISH = [prediction("words", "the cat sat on the mat", "a cat sat the mat today")]


def edits(hits, substitutions, deletions, insertions):
    return {
        "hits": hits,
        "substitutions": substitutions,
        "deletions": deletions,
        "insertions": insertions,
    }


def row_of(model="/models/teacher", dataset="/data/test.jsonl", cer=8.0, **more):
    """Return a row as evaluations write it."""
    return result_of(json_row(model, dataset, cer, **more))


def result_of(row):
    return Result.from_row(row)


def json_row(model, dataset, cer, **more):
    return {
        "form": "short_form",
        "model": model,
        "dataset": dataset,
        "config": "default",
        "split": "train",
        "dtype": "float32",
        "decoding": {"language": "ja", "task": "transcribe", "num_beams": 1},
        "normalizer": "whisper-basic+no-spaces",
        "cer_norm": cer,
        "wer_norm": 40.0,
        "cer_raw": cer + 1,
        "wer_raw": 60.0,
        "num_rows": 3,
        "num_empty_references": 0,
        "ci": {"cer_norm": [cer - 2, cer + 4], "wer_norm": [30.0, 50.0]},
        "edits": {"cer_norm": edits(90, 6, 4, 2), "wer_norm": edits(6, 3, 1, 0)},
        "by_duration": [
            {"from_s": 0, "to_s": 5, "num_rows": 2, "cer_norm": cer, "wer_norm": 40.0},
            {"from_s": 300, "to_s": None, "num_rows": 1, "cer_norm": cer / 2, "wer_norm": 40.0},
        ],
        "postprocessing": [],
        "wer_words": None,
        "baselines": [],
        "num_bad": 0,
        "num_parameters": 1_600_000,
        "audio_s": 7200.0,
        "rtfx": 12.34,
        "predictions": f"predictions/{model}.csv",
        "versions": {"torch": "2.0"},
        "commit": "abc",
        **more,
    }


def older_row(**more):
    """Return a row from before there were intervals, edits and rates by duration."""
    new = ("ci", "edits", "by_duration", "postprocessing", "wer_words", "baselines")
    row = row_of(**more).to_row()
    return result_of({key: value for key, value in row.items() if key not in new})


def results_folder(folder, rows, predictions=JAPANESE):
    for number, row in enumerate(rows):
        row = replace(row, predictions=f"predictions/{number}.csv")
        results.write_predictions(folder / row.predictions, predictions)
        append_row(folder / "metric.ja.transcribe.jsonl", row.to_row())
    return folder


def manifest_of(folder, ids_and_texts, **names):
    """Write a WAV for each id, and a manifest of them."""
    names = {"id": "id", "audio": "audio", "text": "text", **names}
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row_id, text in ids_and_texts:
        tone = 0.1 * np.sin(np.arange(SAMPLE_RATE) / 10)
        soundfile.write(folder / f"{row_id}.wav", tone, SAMPLE_RATE)
        entry = {names["id"]: row_id, names["audio"]: f"{row_id}.wav", names["text"]: text}
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    path = folder / "test.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


TEXTS = [(p.id, p.reference_raw) for p in JAPANESE]


def test_worst_come_first_and_right_ones_not_at_all():
    found = report.worst(JAPANESE, "char")
    assert [(rate, p.id) for rate, p in found] == [(100.0, "empty"), (37.5, "mixed")]
    assert report.worst([prediction("a", "", "x")], "char") == []
    many = [prediction(str(i), "ab", "ac") for i in range(60)]
    assert len(report.worst(many, "char")) == report.NUM_WORST == 50


def test_gathered_are_the_newest_rows_of_all_files(tmp_path):
    folder = results_folder(tmp_path, [row_of(cer=8.0), row_of("/models/student")])
    newer = row_of(cer=7.0, predictions="x").to_row()
    append_row(folder / "metric.ja.transcribe.jsonl", newer)
    other = row_of(dataset="org/en").to_row()
    append_row(folder / "metric.en.transcribe.jsonl", other)
    entries = [entry.result for entry in report.gather(folder)]
    found = [(result.model, result.dataset, result.cer_norm) for result in entries]
    assert sorted(found) == [
        ("/models/student", "/data/test.jsonl", 8.0),
        ("/models/teacher", "/data/test.jsonl", 7.0),
        ("/models/teacher", "org/en", 8.0),
    ]


def test_lost_predictions_do_not_lose_the_result(tmp_path):
    results_folder(tmp_path, [row_of()])
    (tmp_path / "predictions" / "0.csv").unlink()
    (entry,) = report.gather(tmp_path)
    assert entry.result.cer_norm == 8.0
    assert entry.predictions == []


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no result"):
        report.gather(tmp_path)


@pytest.mark.parametrize("names", [{}, {"id": "name", "audio": "path", "text": "said"}])
def test_audio_is_found_through_the_manifest(tmp_path, names):
    manifest = manifest_of(tmp_path / "data", TEXTS, **names)
    row = row_of(dataset=str(manifest), columns=names or None)
    (entry,) = report.gather(results_folder(tmp_path / "eval", [row]))
    assert entry.audio == {p.id: str(tmp_path / "data" / f"{p.id}.wav") for p in JAPANESE}


def test_audio_is_found_in_a_folder_of_audio(tmp_path):
    manifest_of(tmp_path / "data", TEXTS).unlink()
    row = row_of(dataset=str(tmp_path / "data"), config="default", split="train")
    folder = results_folder(tmp_path / "eval", [row])
    for clip in JAPANESE:
        text = clip.reference_raw
        (tmp_path / "data" / f"{clip.id}.txt").write_text(text, "utf-8")
    (entry,) = report.gather(folder)
    assert entry.audio == {p.id: str(tmp_path / "data" / f"{p.id}.wav") for p in JAPANESE}


def test_a_clip_with_another_text_is_not_the_one_that_was_heard(tmp_path):
    manifest = manifest_of(tmp_path / "data", [*TEXTS[:2], ("empty", "とり")])
    folder = results_folder(tmp_path / "eval", [row_of(dataset=str(manifest))])
    (entry,) = report.gather(folder)
    assert set(entry.audio) == {"right", "mixed"}


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ("org/name", "audio is inside the dataset"),
        ("/nowhere/test.jsonl", "dataset /nowhere/test.jsonl: there is no such file or folder"),
    ],
)
def test_why_there_is_no_audio(tmp_path, dataset, reason):
    (entry,) = report.gather(results_folder(tmp_path, [row_of(dataset=dataset)]))
    assert (entry.audio, entry.why_no_audio) == ({}, reason)


def names_of(*rows):
    entries = [Entry(row, []) for row in rows]
    return [(r.model, r.test_set) for r in report._shown_results(entries, None)]


def test_names_are_as_short_as_they_can_be():
    assert names_of(row_of("org/a", "org/test.clean"), row_of("org/b", "/d/test.jsonl")) == [
        ("a", "test.clean"),
        ("b", "test"),
    ]
    assert names_of(row_of("/runs/1/student"), row_of("/runs/2/student")) == [
        ("1/student", "test"),
        ("2/student", "test"),
    ]
    assert names_of(row_of("/x", "/a/t.jsonl"), row_of("/x", "/b/t.jsonl")) == [
        ("x", "a/t"),
        ("x", "b/t"),
    ]


def test_names_say_what_was_added_and_what_differs():
    steps = ["punctuator", "stable-ts"]
    beams = {"decoding": {"language": "ja", "task": "transcribe", "num_beams": 5}}
    rows = [row_of(), row_of(postprocessing=steps), row_of(**beams)]
    assert [model for model, _ in names_of(*rows)] == [
        "teacher (num_beams=1)",
        "teacher (punctuator + stable-ts)",
        "teacher (num_beams=5)",
    ]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([2.0, 5.0, 261.0], [0, 1, 2, 3, 4, 5]),  # the one far out is cut
        ([1.0, 100.0, 90.0], [0, 20, 40, 60, 80, 100]),  # most are large: the axis is theirs
        ([37.0], [0, 10, 20, 30, 40]),
        ([0.0, 0.0], [0.0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        ([0.0, 0.0, 7.0], [0, 2, 4, 6, 8]),
    ],
)
def test_axis_is_round_and_starts_at_zero(values, ticks):
    axis = figures.axis_for(values)
    assert axis.ticks == ticks
    assert axis.end == pytest.approx(ticks[-1])


def test_files_of_players_are_relative_and_quoted(tmp_path):
    page = tmp_path / "eval" / "report.html"
    audio = tmp_path / "clips" / 'a#b?"c:d%.wav'
    audio.parent.mkdir()
    audio.write_bytes(b"x")
    (result,) = report._shown_results(
        [Entry(row_of(), JAPANESE, {"mixed": str(audio)})], page.parent
    )
    players = {u.prediction.id: u.player for u in result.worst}
    assert players == {"empty": None, "mixed": "../clips/a%23b%3F%22c%3Ad%25.wav"}


def test_a_page_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    report.write_report(path, [Entry(row_of(), JAPANESE)])
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda handle: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write_report(path, [Entry(row_of("other"), JAPANESE)])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.fixture(scope="module")
def tab():
    with browser.chromium() as running, running.new_context() as context:
        yield context.new_page()


class Opened:
    """A page in the browser, with all that it asked for and all that it complained about."""

    def __init__(self, tab, path, width=1280, color_scheme="light"):
        self.tab = tab
        self.requests, self.complaints = [], []
        self.listeners = {
            "request": lambda request: self.requests.append(request.url),
            "console": lambda message: self.complaints.append(message.text),
            "pageerror": lambda error: self.complaints.append(str(error)),
        }
        for event, listener in self.listeners.items():
            tab.on(event, listener)
        tab.set_viewport_size({"width": width, "height": 800})
        tab.emulate_media(media="screen", color_scheme=color_scheme)
        tab.goto(path.as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")

    def close(self):
        for event, listener in self.listeners.items():
            self.tab.remove_listener(event, listener)
        assert self.complaints == []
        assert self.requests
        assert all(url.startswith(("file:", "data:")) for url in self.requests)

    def texts(self, selector):
        return [" ".join(text.split()) for text in self.tab.locator(selector).all_inner_texts()]

    def each(self, selector, expression):
        """Evaluate a JavaScript expression in `e` for every element."""
        return self.tab.eval_on_selector_all(selector, f"all => all.map(e => {expression})")


@pytest.fixture
def opened(tab, tmp_path):
    pages = []

    def open_page(entries, **options):
        path = tmp_path / "report.html"
        report.write_report(path, entries)
        pages.append(Opened(tab, path, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


def full_entries():
    """Return entries that fill every section of the page."""
    teacher = row_of()
    baselines = [
        {
            "model": teacher.model,
            "predictions": teacher.predictions,
            "num_rows": 3,
            "error_ratio": {"cer_norm": 2.0, "wer_norm": None},
            "error_difference": {"cer_norm": 8.0, "wer_norm": -1.0},
            "error_difference_ci": {"cer_norm": [7.0, 9.0]},
            "speed_ratio": None,
        }
    ]
    student = row_of(
        "/models/student", cer=16.0, rtfx=None, num_parameters=None, baselines=baselines
    )
    loop = row_of("/models/loop", cer=480.0)
    english = row_of(
        "org/" + "an-english-model-of-a-very-long-name-" * 3,
        "org/" + "a_test_set_of_a_very_long_name_" * 3,
        normalizer="whisper-english",
        decoding={"language": "English", "task": "transcribe"},
        wer_words=12.0,
    )
    return [
        *(Entry(row, JAPANESE) for row in (teacher, student, loop)),
        Entry(english, ENGLISH),
    ]


def test_tables_hold_the_figures(opened):
    page = opened(full_entries()[:3])
    assert page.texts("table.rates caption") == [
        "CER in percent",
        "WER in percent",
        "Raw CER in percent",
        "Raw WER in percent",
    ]
    assert page.texts("table[data-rate=cer_norm].rates tr") == [
        "Model test",
        "teacher 8.0 6.0–12.0",
        "student 16.0 14.0–20.0",
        "loop 480.0 478.0–484.0",
    ]
    assert page.texts("table[data-rate=wer_raw].rates tbody tr") == [
        f"{model} 60.0" for model in ("teacher", "student", "loop")
    ]
    assert page.texts("table[data-rate=cer_norm].rates strong") == ["8.0"]
    assert page.texts("#edits tbody tr")[0] == "teacher test characters 6.0 4.0 2.0"
    assert page.texts("#baselines tbody tr") == [
        "student teacher test CER 2.00 +8.0 +7.0 to +9.0 –",
        "student teacher test WER – -1.0 – –",
    ]
    assert page.texts("#durations tbody tr") == [
        "0–5 s 2 8.0 16.0 480.0",
        "over 300 s 1 4.0 8.0 240.0",
    ]
    assert page.texts("#runs tbody tr")[0].startswith("teacher test 3 0 0 120.0 min 12.3 1.6 M")
    assert page.texts("header p")[0].startswith("3 models on 1 test set (2.0 hours of audio).")


def test_the_page_begins_with_what_it_is_about_and_how_large_the_models_are(opened):
    page = opened(full_entries()[:3])
    assert page.texts("header p")[1:] == [
        "Each model wrote down what is said in the test sets; this page compares its texts with "
        "the references, and how fast it was.",
        "Size: teacher 1.6 M parameters, student unknown, loop 1.6 M.",
    ]


def test_words_come_first_where_they_are_spaced(opened):
    page = opened(full_entries()[3:])
    captions = page.texts("table.rates caption")
    assert captions[:2] == ["WER in percent", "CER in percent"]
    assert page.each("table.chart", "e.dataset.rate") == ["wer_norm", "cer_norm"]
    assert "“five” becomes “5”" in page.texts("#rates .digits")[0]


def test_digits_are_not_spoken_of_in_other_languages(opened):
    assert opened([Entry(row_of(), JAPANESE)]).texts("#rates .digits") == []


def test_one_table_for_every_rate_and_a_dash_where_nothing_was_measured(opened):
    page = opened(full_entries())
    assert page.texts("table[data-rate=wer_words].rates tbody td") == [*["–"] * 7, "12.0"]
    assert page.texts("table[data-rate=cer_norm].rates tbody tr:first-child td") == [
        "8.0 6.0–12.0",
        "–",
    ]


def test_bars_and_intervals_are_drawn_to_scale(opened):
    page = opened(full_entries()[:3])
    chart = "table.chart[data-rate=cer_norm]"
    assert page.texts(f"{chart} tbody th") == ["teacher", "student", "loop"]
    lengths = page.each(f"{chart} .length", "e.getBoundingClientRect().width")
    (width, *_) = page.each(f"{chart} .bar", "e.getBoundingClientRect().width")
    assert page.each(f"{chart} .scale text", "e.textContent") == ["0", "5", "10", "15", "20"]
    assert lengths == pytest.approx([width * 8 / 20, width * 16 / 20, width], abs=0.1)
    assert page.tab.locator(f"{chart} .cut").count() == 1  # the third goes on
    box = "e.getBoundingClientRect()"
    (place,) = page.each(f"{chart} tbody tr:first-child .bar", f"{box}.left")
    spans = page.each(f"{chart} tbody tr:first-child .interval", f"[{box}.left, {box}.right]")
    assert spans[0] == pytest.approx([place + width * 6 / 20, place + width * 12 / 20], abs=0.1)


def test_alignment_shows_characters_where_words_have_no_spaces(opened):
    page = opened([Entry(row_of(), JAPANESE)])
    assert page.texts("#worst li .heading") == [
        "empty 100.0 % of the characters wrong",
        "mixed 37.5 % of the characters wrong",
    ]
    mixed = "#worst ol > li:nth-child(2) p.alignment"
    assert page.each(mixed, "e.textContent.trim()") == ["ねこがはみずをのむよ"]
    parts = "`${e.className || e.parentNode.className} ${e.tagName} ${e.textContent}`"
    assert page.each(f"{mixed} :is(del, ins)", parts) == [
        "replace DEL が",
        "replace INS は",
        "delete DEL を",
        "insert INS よ",
    ]
    assert page.each(f"{mixed}", "e.lang") == ["ja"]
    assert page.texts("#worst ol > li:first-child dd") == ["いぬとさかな。", "nothing"]
    assert page.texts("#worst summary") == ["teacher on test 2 of 3 utterances have errors"]


def test_alignment_shows_words_elsewhere(opened):
    page = opened(full_entries()[3:])
    assert page.texts("#worst ol p.heading") == ["words 50.0 % of the words wrong"]
    parts = "`${e.className || e.parentNode.className} ${e.textContent}`"
    assert page.each("#worst ol :is(del, ins)", parts) == [
        "replace the",
        "replace a",
        "delete on",
        "insert today",
    ]
    assert page.each("#worst ol p.alignment", "e.lang") == ["en"]


def test_kinds_of_errors_differ_without_colour(opened):
    page = opened([Entry(row_of(), JAPANESE)])
    decoration = "getComputedStyle(e).textDecorationLine + getComputedStyle(e).textDecorationStyle"
    mixed = "#worst ol > li:nth-child(2) p.alignment"
    found = page.each(f"{mixed} :is(del, ins)", decoration)
    assert found == ["underlinedotted", "underlinedouble", "line-throughsolid", "underlinedouble"]
    (above, below) = page.each(f"{mixed} .replace > *", "e.getBoundingClientRect().top")
    assert above < below


def test_hostile_texts_stay_texts(opened):
    texts = [prediction(HOSTILE, "a " + HOSTILE, RIGHT_TO_LEFT)]
    names = {"model": HOSTILE, "dataset": HOSTILE, "config": HOSTILE, "normalizer": HOSTILE}
    entry = Entry(row_of(**names, versions={HOSTILE: HOSTILE}), texts, {}, HOSTILE)
    page = opened([entry])
    assert "<img src=x onerror=alert(1)>" in page.tab.title()
    policy = page.each("meta[http-equiv=Content-Security-Policy]", "e.content")
    assert policy[0].startswith("default-src 'none';")
    assert page.tab.locator("script, img").count() == 0
    assert page.texts("#worst li .id") == [HOSTILE]
    shown = page.each("#worst dd bdi", "e.textContent")
    assert shown == ["a " + HOSTILE + "。", RIGHT_TO_LEFT]
    isolated = page.each(
        "#worst dd bdi, #worst .id, p.alignment", "getComputedStyle(e).unicodeBidi"
    )
    assert set(isolated) == {"isolate"}


def test_right_to_left_text_is_set_from_the_right(opened):
    arabic = [prediction("1", "مرحبا بكم في العالم", "مرحبا في العالم")]
    page = opened([Entry(row_of(normalizer="marks-kept", decoding=None), arabic)])
    assert page.each("p.alignment", "getComputedStyle(e).direction") == ["rtl"]
    assert page.each("p.alignment", "e.lang") == [""]


def test_audio_plays_with_the_keyboard(opened, tmp_path):
    manifest = manifest_of(tmp_path / "clips", TEXTS)
    folder = results_folder(tmp_path / "eval", [row_of(dataset=str(manifest))])
    page = opened(report.gather(folder))
    assert page.each("audio", "[e.controls, e.preload, e.getAttribute('src')]") == [
        [True, "none", "clips/empty.wav"],
        [True, "none", "clips/mixed.wav"],
    ]
    assert not [url for url in page.requests if url.endswith(".wav")]
    page.tab.locator("audio").first.focus()
    page.tab.keyboard.press("Space")
    deadline = time.monotonic() + 20
    while page.each("audio", "e.currentTime")[0] == 0 and time.monotonic() < deadline:
        page.tab.wait_for_timeout(50)
    (played, untouched) = page.each("audio", "[e.currentTime > 0, e.duration]")
    assert played == [True, pytest.approx(1.0)]
    assert untouched[0] is False
    assert {url for url in page.requests if url.endswith(".wav")} == {
        (tmp_path / "clips" / "empty.wav").as_uri()
    }


def test_missing_audio_is_explained(opened, tmp_path):
    gone = {"mixed": str(tmp_path / "gone.wav")}
    page = opened([Entry(row_of(), JAPANESE), Entry(row_of("/other"), JAPANESE, gone)])
    assert page.tab.locator("audio").count() == 0
    assert page.texts("#worst .note") == [
        "No players: audio is inside the dataset.",
        *["No player: the audio file is missing."] * 2,
    ]


LONG_FORM_FIGURES = {
    "num_loops": 2,
    "loop_characters": 30,
    "max_compression_ratio": 2.444,
    "num_segments_in_silence": 0,
    "characters_in_silence": 0,
    "num_segments_in_gaps": None,
    "num_rows_with_times": 3,
    "start_error_mean_s": 0.0354,
    "end_error_mean_s": None,
    "timestamp_coverage": 95.75,
    "timestamp_overlap": 90.9,
}


def test_figures_of_long_recordings_have_a_table_and_are_no_settings(opened):
    long = row_of(form="long_form", algorithm="sequential", **LONG_FORM_FIGURES)
    page = opened([Entry(row_of(), JAPANESE), Entry(long, JAPANESE)])
    assert page.texts("#long-form tbody tr") == [
        "teacher test (long form) 2 2.44 0 – 0.04 – 95.75 90.90"
    ]
    assert not set(LONG_FORM_FIGURES) & set(page.texts("#runs dt"))
    assert "algorithm" in page.texts("#runs dt")


def test_older_rows_leave_sections_out(opened):
    older = [Entry(older_row(), JAPANESE), Entry(older_row(model="/models/b"), [])]
    page = opened(older)
    assert page.texts("h2") == [
        "Error rates",
        "Models side by side",
        "Worst utterances",
        "Settings",
    ]
    assert page.tab.locator(".interval, small").count() == 0
    assert page.tab.locator(".length").count() == 4
    links = page.each("nav a", "document.querySelector(e.getAttribute('href')) !== null")
    assert links == [True] * 4
    assert page.texts("#worst summary")[1] == "b on test the predictions file is missing"


def test_older_and_newer_rows_share_a_page(opened):
    mixed = opened([Entry(older_row(), JAPANESE), Entry(row_of("/models/new"), JAPANESE)])
    assert mixed.texts("#durations thead th") == ["Duration", "Clips", "new"]


def test_scored_predictions_have_no_audio_and_no_speed(opened):
    nothing = dict.fromkeys(("audio_s", "rtfx", "num_parameters"))
    decoding = {"language": "ja", "task": "transcribe"}
    page = opened([Entry(row_of(**nothing, by_duration=[], decoding=decoding), JAPANESE)])
    assert page.texts("#runs tbody tr")[0].startswith("teacher test 3 0 0 – – –")
    assert page.tab.locator("#durations").count() == 0


def test_results_that_cannot_be_compared_are_marked(opened):
    page = opened([Entry(row_of(), []), Entry(row_of("/models/b", num_rows=2), [])])
    assert page.texts("#rates .note") == [
        "Compare with care: the results on test differ in number of clips."
    ]


# The contrast of every text with what is behind it (WCAG 2.2, success criterion 1.4.3).
LOW_CONTRAST = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    throw new Error('nothing is painted behind the text');
  };
  const low = [];
  let count = 0;
  for (const e of document.body.querySelectorAll('*')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length) continue;
    const style = getComputedStyle(e);
    const ink = light(parse(e instanceof SVGElement ? style.fill : style.color));
    const paper = light(behind(e));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    count++;
    if (ratio < 4.5) low.push(`${e.outerHTML.slice(0, 80)}: ${ratio.toFixed(2)}`);
  }
  return [count, low];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_in_both_schemes(opened, scheme):
    page = opened(full_entries(), color_scheme=scheme)
    count, low = page.tab.evaluate(LOW_CONTRAST)
    assert count > 100
    assert low == []
    (paper,) = page.each("body", "getComputedStyle(e).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]


@pytest.mark.parametrize("width", [320, 400, 1200])
def test_the_page_is_never_wider_than_the_window(opened, width):
    long = [prediction("x" * 200, "a" * 300 + " b c", "c" * 300 + " d c")]
    words = row_of("/models/words", normalizer="whisper-english")
    page = opened([*full_entries(), Entry(words, long)], width=width)
    wide, window = page.tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide == window == width
    # What is too wide scrolls within itself, and the keyboard can do it.
    assert set(page.each(".scroll", "e.tabIndex")) == {0}


def test_printed_pages_have_no_players_and_cut_nothing_off(opened, tmp_path):
    manifest = manifest_of(tmp_path / "clips", TEXTS)
    folder = results_folder(tmp_path / "eval", [row_of(dataset=str(manifest))])
    page = opened(report.gather(folder))
    page.tab.emulate_media(media="print")
    assert set(page.each("nav, audio", "getComputedStyle(e).display")) == {"none"}
    assert set(page.each(".scroll", "getComputedStyle(e).overflowX")) == {"visible"}


def test_the_page_can_be_read_aloud(opened):
    page = opened(full_entries())
    assert page.each("html", "e.lang") == ["en"]
    assert page.tab.locator("h1").count() == 1
    captions = page.each("table", "e.caption !== null && e.caption.textContent.trim() !== ''")
    assert set(captions) == {True}
    assert set(page.each("tbody tr", "e.querySelector('th[scope=row]') !== null")) == {True}
    assert set(page.each("svg", "e.closest('[aria-hidden=true]') !== null")) == {True}
    assert set(page.each("[role=region], nav", "e.getAttribute('aria-label') !== ''")) == {True}


def test_chromium_may_be_absent_but_not_in_ci(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="Chromium absent"):
        browser.chromium_path()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="Chromium absent"):
        browser.chromium_path()
