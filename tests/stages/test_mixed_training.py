"""Several languages and tasks in one run, as kotoba-whisper's bilingual models are made."""

import pytest
from command_lines import complaints
from stage_runs import read_manifest, record, run, write_manifest
from tiny import tone_manifest
from training_runs import (
    DISTILLATION,
    FINETUNING,
    KILL,
    NEVER,
    assert_close_run,
    assert_same_run,
    model_folder,
    record_rows,
    run_in_child,
    run_in_two,
    student_folder,
    training_log,
)

from distillery.cli.training_arguments import TRAINING_GROUPS, check
from distillery.training import step, validation
from distillery.whisper import checkpoint

UPDATE = "distillery.training.loop:_update"
JA, EN, JA_TO_EN = ("ja", "transcribe"), ("en", "transcribe"), ("ja", "translate")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Japanese and English clips of up to 0.3 s; the Japanese ones have a translation, too."""
    root = tmp_path_factory.mktemp("mixed")
    texts = {"ja": "ねこがみず", "en": "a cat"}
    for language, text in texts.items():
        clips = tone_manifest(root / f"{language}.jsonl", 4, 0.3)
        rows = read_manifest(clips)
        write_manifest(clips, [{**row, "text": text, "english": "water cat"} for row in rows])
    student_folder(root / "student", model_folder(root / "teacher", 2))
    return root


@pytest.fixture(scope="module")
def bilingual(place):
    """Transcribe in two languages, and translate what the teacher cannot."""
    data = "+".join(str(place / f"{name}.jsonl") for name in ("ja", "en", "ja"))
    flags = ["-m", place / "student", "--teacher", place / "teacher", "-d", data]
    flags += ["--text_column_name", "text+text+english", "--language", "ja+English+ja"]
    flags += ["--task", "transcribe+transcribe+translate", "--kl_weight", "1+0.5+0"]
    flags += ["--per_device_train_batch_size", 2, "--logging_steps", 1, "--save_steps", 2]
    return [*flags, "--freeze_encoder", "--max_steps", 6]


@pytest.fixture(scope="module")
def whole(bilingual, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for name, more in WAYS.items():
        run(DISTILLATION, *bilingual, *more, "-o", folder / name)
    return folder


WAYS = {"rows": [], "windows": ["--pack", "True"], "stream": ["--streaming"]}
WAYS["windows of a stream"] = [*WAYS["windows"], *WAYS["stream"]]


def asked(rows, place):
    """Return (id, language, task) of rows, as their labels say."""
    tokens = checkpoint.load_processor(str(place / "student")).tokens
    return [(row["id"], *tokens.asked(row["labels"])) for row in rows]


EVERYTHING = {(f"{prompt[0]}-{i:04}", *prompt) for prompt in (JA, EN, JA_TO_EN) for i in range(4)}


@pytest.mark.parametrize("way", ["rows", "stream"])
def test_each_row_has_the_prompt_of_its_dataset(bilingual, place, tmp_path, monkeypatch, way):
    seen = record_rows(monkeypatch)
    run(DISTILLATION, *bilingual, *WAYS[way], "-o", tmp_path)
    found = set(asked([row for batch in seen for row in batch], place))
    assert found <= EVERYTHING
    assert {(language, task) for _, language, task in found} == {JA, EN, JA_TO_EN}
    assert (
        way == "stream" or found == EVERYTHING
    )  # the first rows of a stream are of several passes


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_goes_on_as_if_it_had_not_been(bilingual, whole, tmp_path, way):
    args = [*bilingual, *WAYS[way], "-o", tmp_path]
    assert run_in_child(DISTILLATION, UPDATE, 4, KILL, *args) == -KILL
    run(DISTILLATION, *args)
    assert_same_run(tmp_path, whole / way)


def test_two_processes_train_as_one(bilingual, whole, tmp_path):
    args = [*bilingual, "--per_device_train_batch_size", 1, "-o", tmp_path]
    assert run_in_two(DISTILLATION, UPDATE, NEVER, KILL, *args) == [0, 0]
    assert_close_run(tmp_path, whole / "rows")


def test_a_teacher_teaches_what_it_is_asked_to(bilingual, tmp_path, monkeypatch):
    seen, decoded = [], []
    call = step.Teacher.__call__

    def recording(self, features, inputs, kl_weights):
        outputs = call(self, features, inputs, kl_weights)
        seen.append((kl_weights.item(), outputs.decoder_states is not None))
        decoded.append(outputs.encoder_states)
        return outputs

    monkeypatch.setattr(step.Teacher, "__call__", recording)
    flags = ["--per_device_train_batch_size", 1, "--max_steps", 12, "-o", tmp_path]
    run(DISTILLATION, *bilingual, *flags)
    assert sorted(seen) == [*[(0.0, False)] * 4, *[(0.5, True)] * 4, *[(1.0, True)] * 4]
    assert all(states is not None for states in decoded)  # the student's are the same
    for (weight, _), line in zip(seen, training_log(tmp_path), strict=True):
        wanted = 0.8 * line["ce"] + weight * line["kl"]
        assert line["loss"] == pytest.approx(wanted, rel=1e-5)
        assert (line["kl"] == 0) == (weight == 0)


def test_a_student_of_several_languages_has_none_by_default(whole):
    settings = checkpoint.load(str(whole / "rows")).model.generation_config
    assert (settings.language, settings.task) == (None, "transcribe")
    flags = record(whole / "rows")["arguments"]
    assert (flags["language"], flags["kl_weight"]) == ("ja+English+ja", "1+0.5+0")
    card = (whole / "rows" / "README.md").read_text("utf-8")
    assert "language:\n- ja\n- en\n" in card
    assert "generate_kwargs" not in card


@pytest.fixture
def decodings(monkeypatch):
    """Return a list that will hold language and task of each window that is transcribed."""
    found = []
    transcribe = validation.transcribe_windows

    def recording(student, features, decodings, **more):
        found.extend((each.language, each.task) for each in decodings)
        return transcribe(student, features, decodings, **more)

    monkeypatch.setattr(validation, "transcribe_windows", recording)
    return found


EVALUATE = ["--do_eval", "--predict_with_generate", "--generation_max_length", 8]


def test_an_evaluation_asks_for_what_is_learnt(bilingual, place, tmp_path, decodings):
    data = "+".join(str(place / f"{name}.jsonl") for name in ("ja", "en", "ja"))
    flags = [*EVALUATE, "--eval_dataset_name", data, "--eval_text_column_name", "text+text+english"]
    run(DISTILLATION, *bilingual, *flags, "--max_steps", 1, "-o", tmp_path)
    assert decodings == [*[JA] * 4, *[EN] * 4, *[JA_TO_EN] * 4]
    lines = training_log(tmp_path, "eval")
    assert [line["kl"] > 0 for line in lines] == [True, True, False]
    ja, en = (str(place / f"{name}.jsonl") for name in ("ja", "en"))
    names = [f"eval {ja} ja transcribe", f"eval {en}", f"eval {ja} ja translate"]
    assert [line["kind"] for line in lines] == names


def test_rows_are_evaluated_and_scored_in_their_own_language(
    place, tmp_path, decodings, monkeypatch
):
    columns = {"ja": ("Japanese", "transcribe"), "en": ("EN", "translate")}
    rows = [
        {**row, "said": columns[name][0], "wanted": columns[name][1], "text": "can't ねこ"}
        for name in columns
        for row in read_manifest(place / f"{name}.jsonl")[:2]
    ]
    mixed = write_manifest(place / "columns.jsonl", rows)
    pairs = []
    monkeypatch.setattr(
        validation, "error_rates_of", lambda found, _: pairs.extend(found) or ({}, 0)
    )
    flags = ["-m", place / "student", "-d", mixed, "--eval_dataset_name", mixed, *EVALUATE]
    flags += ["--language_column_name", "said", "--task_column_name", "wanted", "--max_steps", 1]
    run(FINETUNING, *flags, "--metric_for_best_model", "loss", "-o", tmp_path)
    assert decodings == [JA] * 2 + [("en", "translate")] * 2
    assert [text for text, _ in pairs] == ["cantねこ"] * 2 + ["can not ねこ"] * 2


def test_what_labelling_wrote_is_read(place, tmp_path, monkeypatch):
    rows = [
        {
            **row,
            "whisper_transcript": "ねこ",
            "language": "fr" if index else "ja",
            "task": "translate",
        }
        for index, row in enumerate(read_manifest(place / "ja.jsonl")[:3])
    ]
    labelled = write_manifest(place / "labelled.jsonl", rows)
    seen = record_rows(monkeypatch)
    run(FINETUNING, "-m", place / "student", "-d", labelled, "--max_steps", 1, "-o", tmp_path)
    found = set(asked([row for batch in seen for row in batch], place))
    assert found == {(f"ja-{i:04}", "fr" if i else "ja", "translate") for i in range(3)}
    assert checkpoint.load(str(tmp_path)).model.generation_config.language is None


@pytest.mark.parametrize("more", [[], ["--streaming", "--max_steps", 1]])
def test_a_row_in_an_unknown_language_is_named(place, tmp_path, more):
    rows = read_manifest(place / "ja.jsonl")
    said = ["ja", "Klingon", "ja", "ja"]
    rows = [{**row, "said": language} for row, language in zip(rows, said, strict=True)]
    wrong = write_manifest(place / "wrong.jsonl", rows)
    flags = ["-m", place / "student", "-d", wrong, "--language_column_name", "said", *more]
    with pytest.raises(ValueError, match=r"row ja-0001: column 'said': .* no language 'Klingon'"):
        run(FINETUNING, *flags, "-o", tmp_path)


def test_a_dry_run_says_what_is_asked_for(bilingual, place, tmp_path, capsys):
    run(DISTILLATION, *bilingual, "--dry_run", "-o", tmp_path / "run")
    said = capsys.readouterr().out
    for line in (
        f"{place}/ja.jsonl: ja, transcribe, KL weight 1",
        f"{place}/en.jsonl: en, transcribe, KL weight 0.5",
        f"{place}/ja.jsonl: ja, translate, KL weight 0",
    ):
        assert line in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-d a+b --language ja+en+fr", "--train_dataset_name names 2, but there are 3 datasets"),
        ("-d a+b+c --language ja+en", "--language names 2, but there are 3 datasets"),
        ("-d a+b --language ja+xx", "--language: Whisper has no language 'xx'"),
        ("-d a --language ja,en", "--language joins several with '+', got 'ja,en'"),
        ("-d a --task sing", "--task must be of transcribe, translate; got 'sing'"),
        ("-d a --eval_language ja", "--eval_language needs --eval_dataset_name"),
        ("-d a --train_dataset_samples 1+2", "--train_dataset_samples has 2 weights, but there"),
        (
            "-d a+b --eval_dataset_name c --eval_dataset_samples 1+2",
            "--eval_dataset_samples has 2 weights, but there are 1 datasets",
        ),
        (
            "-d a+b --language ja+en --eval_dataset_name e",
            "--language names 2, but there are 1 datasets to evaluate on: say what these are with "
            "--eval_language",
        ),
    ],
)
def test_flags_that_do_not_fit_the_datasets(capsys, flags, message):
    words = f"-m m -o o {flags}".split()
    assert message in complaints(capsys, *words, groups=TRAINING_GROUPS, check=check)[0]


def test_weights_that_do_not_fit_the_datasets(place, tmp_path, capsys):
    flags = ["-m", place / "student", "--teacher", place / "teacher", "-o", tmp_path]
    for weights, message in (
        ("1+0+1", "--kl_weight names 3, but there are 2 datasets"),
        ("1+x", "--kl_weight must be numbers >= 0, got 1+x"),
        ("-1", "--kl_weight must be numbers >= 0, got -1"),
    ):
        with pytest.raises(SystemExit):
            run(DISTILLATION, *flags, "-d", "a+b", "--language", "ja", f"--kl_weight={weights}")
        assert message in capsys.readouterr().err


def test_a_window_of_a_stream_is_of_one_dataset(bilingual, place, tmp_path, monkeypatch):
    seen = record_rows(monkeypatch)
    run(DISTILLATION, *bilingual, *WAYS["windows of a stream"], "-o", tmp_path)
    windows = [row for batch in seen for row in batch]
    words = {JA: "ねこがみず", EN: "a cat", JA_TO_EN: "water cat"}
    tokenizer = checkpoint.load_processor(str(place / "student")).tokenizer
    for row, (_, *prompt) in zip(windows, asked(windows, place), strict=True):
        text = tokenizer.decode(row["labels"], skip_special_tokens=True)
        assert text.replace(words[tuple(prompt)], "").strip() == ""
    assert any(row["id"] != windows[0]["id"] for row in windows)
