from distillery.evaluation.results import Result
from distillery.evaluation.tables import error_tables, folder_names, markdown_table

DECODING = {"language": "ja", "task": "transcribe", "num_beams": 1}


def row(model="org/a", dataset="org/x", cer=9.38, **fields):
    rates = {"cer_norm": cer, "wer_norm": 59.2, "cer_raw": 15.6, "wer_raw": 99.7}
    common = {"form": "short_form", "config": "default", "split": "test", "decoding": DECODING}
    common["normalizer"] = "whisper-basic+no-spaces"
    return Result.from_row({"model": model, "dataset": dataset, **common, **rates, **fields})


def table(*rows):
    """Return the lines of the first table, CER, below its rule."""
    head, *lines = error_tables(rows).split("\n\n")[1].splitlines()
    return [head, *lines[1:]]


def test_four_tables_of_models_by_sets():
    rows = [row("org/b"), row(), row(dataset="org/w", cer=10.0)]
    assert error_tables(rows) == (
        "- CER\n\n"
        "| model | org/w | org/x |\n"
        "| :--- | ---: | ---: |\n"
        "| org/a | 10.0 | 9.4 |\n"
        "| org/b |  | 9.4 |\n"
        "\n- WER\n\n"
        "| model | org/w | org/x |\n"
        "| :--- | ---: | ---: |\n"
        "| org/a | 59.2 | 59.2 |\n"
        "| org/b |  | 59.2 |\n"
        "\n- Raw CER\n\n"
        "| model | org/w | org/x |\n"
        "| :--- | ---: | ---: |\n"
        "| org/a | 15.6 | 15.6 |\n"
        "| org/b |  | 15.6 |\n"
        "\n- Raw WER\n\n"
        "| model | org/w | org/x |\n"
        "| :--- | ---: | ---: |\n"
        "| org/a | 99.7 | 99.7 |\n"
        "| org/b |  | 99.7 |\n"
    )


def test_postprocessing_makes_rows_of_their_own():
    name = "kotoba-tech/kotoba-whisper-v1.1"
    added = [[], ["punctuator"], ["stable-ts"], ["punctuator", "stable-ts"]]
    assert table(*(row(name, postprocessing=steps) for steps in added))[1:] == [
        f"| {name} | 9.4 |",
        f"| {name} (punctuator + stable-ts) | 9.4 |",
        f"| {name} (punctuator) | 9.4 |",
        f"| {name} (stable-ts) | 9.4 |",
    ]


def test_the_newest_of_equal_evaluations_counts():
    rows = [row(cer=1.0), row("org/b"), row(cer=2.0, model_fingerprint="trained again")]
    assert table(*rows)[1:] == ["| org/a | 2.0 |", "| org/b | 9.4 |"]


def test_algorithms_of_long_form_are_named_with_the_options_that_are_on():
    options = {"condition_on_prev_tokens": False, "temperature_fallback": False}
    rows = [
        row(form="long_form", algorithm="sequential", long_form=options),
        row(
            form="long_form",
            algorithm="sequential",
            long_form={**options, "temperature_fallback": True},
        ),
        row(
            form="long_form",
            algorithm="chunked",
            long_form={"chunk_length_s": 2.5, "stride_length_s": None},
        ),
    ]
    assert table(*rows) == [
        "| model | org/x (long form) |",
        "| org/a (algorithm=chunked, chunk_length_s=2.5) | 9.4 |",
        "| org/a (algorithm=sequential) | 9.4 |",
        "| org/a (algorithm=sequential, temperature_fallback=True) | 9.4 |",
    ]


def test_models_of_one_base_name_are_two():
    assert len(table(row("/run/1/student"), row("/run/2/student"))) == 3


def test_settings_that_differ_are_named():
    beams = row(cer=1.0, decoding={**DECODING, "num_beams": 5})
    chunked = row(cer=2.0, chunk_length_s=15.0)
    other_set = row(dataset="org/w", cer=3.0)
    assert table(row(), beams, chunked, other_set, row("org/b", "org/w")) == [
        "| model | org/w | org/x |",
        "| org/a | 3.0 |  |",
        "| org/a (chunk_length_s=15.0, num_beams=1) |  | 2.0 |",
        "| org/a (num_beams=1) |  | 9.4 |",
        "| org/a (num_beams=5) |  | 1.0 |",
        "| org/b | 9.4 |  |",
    ]


def test_sets_of_one_dataset_and_long_recordings_are_told_apart():
    rows = [
        *(row(dataset="google/fleurs", config=c, split="test") for c in ("hi_in", "ja_jp")),
        *(row(), row(form="long_form")),
    ]
    sets = ["google/fleurs hi_in test", "google/fleurs ja_jp test", "org/x", "org/x (long form)"]
    assert table(*rows)[0] == f"| model | {' | '.join(sets)} |"


def test_predictions_from_a_file_have_no_settings():
    scored = row(
        "org/c", config=None, split=None, decoding={"language": "ja", "task": "transcribe"}
    )
    assert table(scored) == ["| model | org/x |", "| org/c | 9.4 |"]


def test_words_come_first_where_they_are_spaced():
    titles = [line for line in error_tables([row(normalizer="basic")]).splitlines() if "- " in line]
    assert [title for title in titles if title.startswith("- ")] == [
        *("- WER", "- CER", "- Raw WER", "- Raw CER")
    ]
    assert error_tables([row(normalizer="basic"), row("b")]).startswith("- CER")


def test_a_folder_is_called_by_its_name_where_no_other_has_it():
    paths = ["/runs/1/student", "/runs/2/student", "/runs/teacher", "org/teacher"]
    assert folder_names(paths) == {
        **{path: path for path in paths},
        "/runs/teacher": "teacher",
    }
    assert table(row("/runs/teacher"))[1:] == ["| teacher | 9.4 |"]


def test_markdown_table():
    rows = [
        {"model": "teacher", "cer_norm": 1.25, "num_parameters": 1500, "done": True},
        {"model": "a|b\nc", "cer_norm": 100.0, "num_parameters": None},
    ]
    assert markdown_table(rows, ["model", "cer_norm", "num_parameters", "done"]) == (
        "| model | cer_norm | num_parameters | done |\n"
        "| :--- | ---: | ---: | :--- |\n"
        "| teacher | 1.2 | 1500 | True |\n"
        "| a\\|b c | 100.0 |  |  |\n"
    )
    assert "| 1.250 |" in markdown_table(rows, ["cer_norm"], decimals=3)
    assert markdown_table([], ["model"]) == "| model |\n| :--- |\n"
