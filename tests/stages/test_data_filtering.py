import numpy as np
import pytest
from launching import kill
from stage_runs import (
    loaded,
    record,
    run,
    snapshot,
    split_rows,
    talkative_model_folder,
    tracked_scalars,
)
from tiny import tone_manifest

from distillery.audio.decoding import decode_audio
from distillery.data import column_types, hub_layout, schema
from distillery.ingest import sources
from distillery.labelling import bad_clips
from distillery.storage.files import write_json
from distillery.text.compression import compression_ratio
from distillery.text.labels import num_text_labels
from distillery.text.normalizers import raw_text
from distillery.whisper import checkpoint

SCRIPT = "run_data_filtering.py"

# Reference and transcript of each row; a label is the text with what `row` adds.
TEXTS = [
    ("right", "ねこがみずをのむ。", "ねこがみずをのむ。"),
    ("one-of-eight", "ねこがみずをのむ。", "ねこがみずをのま"),
    ("comma", "せんせいおはよう", "せんせい、おはよう。"),
    ("wrong", "いぬとさかな", "りんごとたまご"),
    ("cut", "いぬとさかな", "いぬとさかな"),
    ("short", "いぬとさかな", "いぬとさかな"),
    ("long", "いぬとさかな", "いぬとさかな"),
    ("wordy", "いぬと", "漢字" * 16),
    ("unsure", "いぬとさかな", "いぬとさかな"),
    ("loop", "いぬ" * 30, "いぬ" * 30),
    ("no-reference", None, "いぬとさかな"),
    ("empty-reference", "。", "いぬとさかな"),
    ("empty-transcript", "いぬとさかな", "。"),
    ("silence", "", ""),
]
SPECIAL = {
    "cut": {schema.TRUNCATED: True},
    "short": {schema.DURATION: 0.1},
    "long": {schema.DURATION: 3.5},
    "unsure": {schema.AVG_LOGPROB: -2.5},
}
LIMITS = ["--min_duration_in_seconds", 0.2, "--max_duration_in_seconds", 3]
LIMITS += ["--max_label_length", 70, "--min_avg_logprob", -1, "--max_compression_ratio", 5]
REASONS = {
    "truncated": 1,
    "too_short": 1,
    "too_long": 1,
    "too_long_labels": 1,
    "low_logprob": 1,
    "high_compression": 1,
    "empty_reference": 2,
    "empty_transcript": 1,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("filtering")


@pytest.fixture(scope="module")
def teacher(root):
    return talkative_model_folder(root / "teacher")


@pytest.fixture(scope="module")
def processor(teacher):
    return checkpoint.load_processor(str(teacher))


@pytest.fixture(scope="module")
def clips(root):
    """Fourteen clips as undecoded bytes."""
    folder = tone_manifest(root / "clips" / "clip.jsonl", len(TEXTS), 0.5).parent
    return [path.read_bytes() for path in sorted(folder.glob("*.flac"))]


@pytest.fixture(scope="module")
def rows(processor, clips):
    """Labelled rows that give each reason once or twice, with timestamps around each text."""
    tokens, previous, made = processor.tokens, None, []
    for (name, text, transcript), content in zip(TEXTS, clips, strict=True):
        body = processor.tokenizer.encode(transcript, add_special_tokens=False)
        body = [tokens.timestamp(0), *body, tokens.timestamp(0.4)]
        ids = [*tokens.prefix("ja", "transcribe", True), *body]
        row = {
            schema.ID: name,
            schema.AUDIO: {"bytes": content, "path": f"{name}.flac"},
            schema.TEXT: text,
            schema.DURATION: 0.5,
            schema.WHISPER_TRANSCRIPT: [*ids, tokens.end_of_text],
            schema.CONDITION_ON_PREV: previous,
            schema.AVG_LOGPROB: -0.5,
            schema.COMPRESSION_RATIO: compression_ratio(raw_text(transcript)),
            schema.TRUNCATED: False,
        }
        made.append({**row, **SPECIAL.get(name, {})})
        previous = body
    return made


@pytest.fixture(scope="module")
def labelled(root, rows, teacher):
    """A dataset as labelling writes it."""
    return write_labelled(root / "labelled", rows, teacher)


def write_labelled(folder, rows, teacher, split="train"):
    path = hub_layout.shard_path(folder, "default", split, 0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    hub_layout.write_parquet(
        path, rows, sources.Features({**column_types.source_features(), **label_types()})
    )
    hub_layout.write_card(folder, {"default": [split]}, "Labels", "")
    arguments = {"model_name_or_path": str(teacher), "language": "ja", "task": "transcribe"}
    write_json(folder / "run.json", {"stage": "run_pseudo_labelling", "arguments": arguments})
    return folder


def label_types():
    return column_types.label_features(decode_token_ids=False)


def kept(folder):
    return [row["id"] for row in split_rows(folder)]


def dropped(folder):
    return record(folder)["ledger"]["dropped"]


# --- which rows pass -----------------------------------------------------------------------------


def test_each_reason_is_counted_and_the_cer_keeps_what_is_close(tmp_path, labelled, capsys):
    run(SCRIPT, "-d", labelled, "--cer_threshold", 12.5, *LIMITS, "-o", tmp_path)
    assert kept(tmp_path) == ["right", "one-of-eight", "comma", "silence"]
    assert dropped(tmp_path) == {**REASONS, "error_rate": 1}
    assert record(tmp_path)["ledger"]["in"] == len(TEXTS)
    assert "14 in = 4 out + 10 dropped (empty_reference: 2, " in capsys.readouterr().err


def test_counts_reach_the_trackers(tmp_path, labelled, capsys):
    flags = [*LIMITS, "--report_to", "tensorboard", "--cer_threshold", 12.5]
    run(SCRIPT, "-d", labelled, *flags, "-o", tmp_path)
    dropped = {f"dropped/{reason}": count for reason, count in REASONS.items()}
    expected = {"rows/in": 14, "rows/out": 4, **dropped, "dropped/error_rate": 1}
    found = {name: value for name, ((_, value),) in tracked_scalars(tmp_path).items()}
    assert found == expected
    log = capsys.readouterr().err
    assert "14 rows of " in log and f" -d {tmp_path} " in log


def test_the_wer_keeps_little_but_what_is_right(tmp_path, labelled):
    run(SCRIPT, "-d", labelled, "--wer_threshold", 10, *LIMITS, "-o", tmp_path)
    assert kept(tmp_path) == ["right", "comma", "silence"]
    assert dropped(tmp_path) == {**REASONS, "error_rate": 2}


def test_without_a_threshold_references_are_not_looked_at(tmp_path, labelled):
    run(SCRIPT, "-d", labelled, "--keep_truncated", "-o", tmp_path)
    assert kept(tmp_path) == [name for name, _, _ in TEXTS if name != "wordy"]  # > 96 positions
    assert dropped(tmp_path) == {"too_long_labels": 1}


def test_no_row_passes(tmp_path, labelled):
    with pytest.raises(ValueError, match=r"no row passes the filter: 14 in = 0 out .*loosen"):
        run(SCRIPT, "-d", labelled, "--min_duration_in_seconds", 9, "-o", tmp_path)
    assert record(tmp_path)["status"] == "started"
    assert not list(tmp_path.glob("default/*"))


@pytest.mark.parametrize(
    ("flags", "suffix"),
    [
        (["--wer_threshold", 10], ".wer_10.0"),
        (["--cer_threshold", 10], ".cer_10.0"),
        (["--wer_threshold", 5, "--vectorize"], ".wer_5.0.vectorized"),
        (["--vectorize"], ".vectorized"),
        ([], ".filtered"),
    ],
)
def test_the_output_is_named_after_the_threshold(tmp_path, rows, teacher, flags, suffix):
    write_labelled(tmp_path / "labels", rows[:3], teacher)
    run(SCRIPT, "-d", tmp_path / "labels", *flags)
    assert {path.name for path in tmp_path.iterdir()} == {"labels", f"labels{suffix}"}
    assert "right" in kept(tmp_path / f"labels{suffix}")


KOTOBA = ["--normalizer", "kotoba", "--strict_limits", "--wer_threshold", 10]


def test_kotobas_filter_compares_with_spaces(tmp_path, rows, teacher, processor):
    def spoken(name, text, transcript, **changes):
        ids = processor.tokenizer.encode(transcript, add_special_tokens=False)
        changed = {schema.ID: name, schema.TEXT: text, schema.WHISPER_TRANSCRIPT: ids, **changes}
        return {**rows[0], **changed}

    folder = write_labelled(
        tmp_path / "labels",
        [
            spoken("same", "ねこ、みずをのむ。", "ねこ、みずをのむ"),
            spoken("comma", "ねこ、みずをのむ。", "ねこみずをのむ。"),
            spoken("silence", "", ""),
            spoken("at-the-limit", "いぬ", "いぬ", **{schema.DURATION: 3.0}),
        ],
        teacher,
    )
    run(SCRIPT, "-d", folder, "--wer_threshold", 10, "-o", tmp_path / "ours")
    assert kept(tmp_path / "ours") == ["same", "comma", "silence", "at-the-limit"]
    limits = ["--min_duration_in_seconds", 0, "--max_duration_in_seconds", 3]
    run(SCRIPT, "-d", folder, *KOTOBA, *limits, "-o", tmp_path / "theirs")
    assert kept(tmp_path / "theirs") == ["same"]
    assert dropped(tmp_path / "theirs") == {"error_rate": 1, "empty_reference": 1, "too_long": 1}
    assert record(tmp_path / "theirs")["normalizer"] == "whisper-basic"


def test_capitals_and_missing_transcripts_are_counted(tmp_path, rows, teacher, processor):
    shouted = processor.tokenizer.encode("NEKO", add_special_tokens=False)
    odd = [
        {**rows[0], schema.ID: "shouted", schema.WHISPER_TRANSCRIPT: shouted},
        {**rows[0], schema.ID: "null", schema.WHISPER_TRANSCRIPT: None},
    ]
    folder = write_labelled(tmp_path / "labels", [rows[0], *odd], teacher)
    run(SCRIPT, "-d", folder, "--drop_all_capitals", "-o", tmp_path / "out")
    assert kept(tmp_path / "out") == ["right"]
    assert dropped(tmp_path / "out") == {"all_capitals": 1, "no_transcript": 1}


def test_labels_with_their_prompts_keep_to_the_maximum(tmp_path, labelled, processor):
    flags = ["-d", labelled, "--condition_on_prev_probability", 1, "--keep_truncated"]
    run(SCRIPT, *flags, "-o", tmp_path / "whole")
    run(SCRIPT, *flags, "--max_label_length", 24, "-o", tmp_path / "short")
    whole, short = (
        {row["id"]: row["labels"] for row in split_rows(tmp_path / name)}
        for name in ("whole", "short")
    )
    fitting = [name for name in whole if num_text_labels(whole[name], processor.tokens) <= 24]
    assert list(short) == fitting  # a prompt is shortened, and no row dropped for it
    assert max(map(len, short.values())) == 24
    assert sum(len(whole[name]) > 24 for name in fitting) > 1
    for name, labels in short.items():
        num_text = num_text_labels(labels, processor.tokens)
        assert labels[-num_text:] == whole[name][-num_text:]


# --- what is written -----------------------------------------------------------------------------


def test_columns_types_and_bytes_are_kept(tmp_path, labelled, rows):
    run(SCRIPT, "-d", labelled, "--cer_threshold", 12.5, *LIMITS, "-o", tmp_path)
    before, after = (loaded(p, split="train").features for p in (labelled, tmp_path))
    assert after == {**before, "labels": column_types.TOKEN_IDS}
    wanted = {row["id"]: row for row in rows}
    for row in split_rows(tmp_path):
        assert row["labels"]
        assert row["audio"] == wanted[row["id"]]["audio"]
        assert row["whisper_transcript"] == wanted[row["id"]]["whisper_transcript"]


def chosen(processor, name, *, timestamps, prompt):
    """The labels of a row, written out."""
    tokens, encode = processor.tokens, processor.tokenizer.encode
    names = [row[0] for row in TEXTS]

    def body(transcript):
        text = encode(transcript, add_special_tokens=False)
        return [tokens.timestamp(0), *text, tokens.timestamp(0.4)] if timestamps else text

    place = names.index(name)
    start = [tokens.start_of_transcript, tokens.languages["ja"], tokens.transcribe]
    start += [] if timestamps else [tokens.no_timestamps]
    end = [] if name == "cut" else [tokens.end_of_text]
    before = body(TEXTS[place - 1][2]) if prompt and place else []
    labels = [*start, *body(TEXTS[place][2]), *end]
    return [tokens.start_of_prev, *before, *labels] if before else labels


@pytest.mark.parametrize("timestamps", [0, 1])
@pytest.mark.parametrize("prompt", [0, 1])
def test_labels_are_exact(tmp_path, labelled, processor, timestamps, prompt):
    flags = ["--timestamp_probability", timestamps, "--condition_on_prev_probability", prompt]
    run(SCRIPT, "-d", labelled, *flags, "--keep_truncated", "-o", tmp_path)
    found = {row["id"]: row["labels"] for row in split_rows(tmp_path)}
    for name in ("right", "one-of-eight", "comma", "wrong", "cut", "short", "silence"):
        wanted = chosen(processor, name, timestamps=timestamps, prompt=prompt)
        # A lone character may be several bytes: what is not left of a prompt is cut, not the text.
        assert len(wanted) <= processor.max_label_length
        assert found[name] == wanted, name


def test_shares_are_drawn_from_the_seed(tmp_path, labelled, processor):
    def draws(name, seed):
        flags = ["--timestamp_probability", 0.5, "--condition_on_prev_probability", 0.5]
        flags += ["--seed", seed, "--keep_truncated", "-o", tmp_path / name]
        run(SCRIPT, "-d", labelled, *flags)
        return [
            (
                processor.tokens.no_timestamps not in row["labels"],
                row["labels"][0] == processor.tokens.start_of_prev,
            )
            for row in split_rows(tmp_path / name)
        ]

    first = draws("a", 1)
    assert first == draws("b", 1)
    assert first != draws("c", 2)
    assert len(set(first)) == 4


def test_vectorized_rows_hold_the_features_of_their_audio(tmp_path, labelled, processor, rows):
    flags = ["--vectorize", "--cer_threshold", 12.5, *LIMITS, "-o", tmp_path]
    run(SCRIPT, "-d", labelled, *flags)
    audio = {row["id"]: row["audio"] for row in rows}
    found = split_rows(tmp_path)
    assert [row["id"] for row in found] == ["right", "one-of-eight", "comma", "silence"]
    for row in found:
        assert "audio" not in row
        wave = decode_audio(audio[row["id"]], 16_000)
        frames = np.array([np.frombuffer(bin_, np.float16) for bin_ in row["input_features"]])
        assert frames.shape == (80, (len(wave) + 400) // 160)
        wanted = processor.log_mel.real_frames(wave).numpy()
        assert np.abs(frames - wanted).max() < 1e-3  # float16


def test_transcripts_in_words_give_the_same_labels(tmp_path, rows, teacher, processor):
    tokens, decode = processor.tokens, processor.tokenizer.decode
    texts = [
        {
            **row,
            schema.WHISPER_TRANSCRIPT: decode(
                row[schema.WHISPER_TRANSCRIPT][3:-1], decode_with_timestamps=True
            ),
        }
        for row in rows[:4]
    ]
    assert texts[0][schema.WHISPER_TRANSCRIPT] == "<|0.00|>ねこがみずをのむ。<|0.40|>"
    assert num_text_labels(rows[0][schema.WHISPER_TRANSCRIPT], tokens) > 0
    folder = tmp_path / "words"
    path = hub_layout.shard_path(folder, "default", "train", 0, 1)
    path.parent.mkdir(parents=True)
    types = {**column_types.source_features(), **column_types.label_features(decode_token_ids=True)}
    hub_layout.write_parquet(path, texts, sources.Features(types))
    hub_layout.write_card(folder, {"default": ["train"]}, "Labels", "")
    flags = ["--timestamp_probability", 1, "--condition_on_prev_probability", 1]
    # Model and language come by flag: there is no record beside this dataset.
    flags += ["-m", teacher, "-l", "ja", "-o", tmp_path / "out"]
    run(SCRIPT, "-d", folder, *flags)
    for row in split_rows(tmp_path / "out"):
        assert row["labels"] == chosen(processor, row["id"], timestamps=True, prompt=True)


# --- again, killed, in parallel ------------------------------------------------------------------


def test_rerun_writes_nothing(tmp_path, labelled, capsys):
    flags = ["-d", labelled, "--cer_threshold", 12.5, "-o", tmp_path]
    run(SCRIPT, *flags)
    before = snapshot(tmp_path)
    capsys.readouterr()
    run(SCRIPT, *flags)
    assert "is complete: nothing to do" in capsys.readouterr().err
    assert snapshot(tmp_path) == before
    with pytest.raises(ValueError, match=r"--cer_threshold: 12.5 then, 20.0 now"):
        run(SCRIPT, *flags, "--cer_threshold", 20)
    run(SCRIPT, *flags, "--cer_threshold", 100, "--overwrite_output_dir")
    assert "wrong" in kept(tmp_path)


def test_killed_run_goes_on(tmp_path, labelled):
    flags = ["-d", labelled, "--cer_threshold", 12.5, "--rows_per_shard", 4]
    run(SCRIPT, *flags, "-o", tmp_path / "whole")
    out = tmp_path / "killed"
    # run.json and config.yaml are synced by 2 calls each, as are shard and seal of each chunk.
    kill(SCRIPT, "distillery.storage.files:sync", 11, *flags, "-o", out)
    work = out / ".filtered" / "default" / "train"
    assert [path.name for path in work.glob("*.seal.json")] == ["00000.parquet.seal.json"]
    sealed = snapshot(work)["00000.parquet"]
    assert not list(out.glob("default/*"))

    run(SCRIPT, *flags, "-o", out)
    assert snapshot(out)["default/train-00000-of-00004.parquet"] == sealed
    assert split_rows(out) == split_rows(tmp_path / "whole")
    assert record(out)["ledger"] == record(tmp_path / "whole")["ledger"]
    assert [path.name for path in out.rglob(".*")] == [".filtered"]


def test_two_workers_write_what_one_writes(tmp_path, labelled):
    flags = ["-d", labelled, "--cer_threshold", 12.5, "--rows_per_shard", 4, "--vectorize"]
    run(SCRIPT, *flags, "-o", tmp_path / "one")
    run(SCRIPT, *flags, "--preprocessing_num_workers", 2, "-o", tmp_path / "two")
    assert split_rows(tmp_path / "two") == split_rows(tmp_path / "one")
    assert record(tmp_path / "two")["ledger"] == record(tmp_path / "one")["ledger"]


def test_streaming_equals_reading_from_disk(tmp_path, labelled):
    flags = ["-d", labelled, "--cer_threshold", 12.5]
    run(SCRIPT, *flags, "-o", tmp_path / "disk")
    run(SCRIPT, *flags, "--streaming", "-o", tmp_path / "stream")
    assert split_rows(tmp_path / "stream") == split_rows(tmp_path / "disk")


# --- rejected rows, and the report ----------------------------------------------------------------


REJECTED = ["wrong", "cut", "short", "long", "wordy", "unsure", "loop", "no-reference"]
REJECTED += ["empty-reference", "empty-transcript"]


def test_rejected_rows_are_a_dataset_of_their_own(tmp_path, labelled, rows):
    flags = ["-d", labelled, "--cer_threshold", 12.5, *LIMITS, "--keep_rejected"]
    run(SCRIPT, *flags, "--rows_per_shard", 4, "-o", tmp_path)
    found = split_rows(tmp_path / "rejected")
    assert [row["id"] for row in found] == REJECTED
    assert [*kept(tmp_path), *REJECTED] != [row["id"] for row in rows]  # but the same rows
    assert {*kept(tmp_path), *REJECTED} == {row["id"] for row in rows}
    counts = {reason: 0 for reason in dropped(tmp_path)}
    audio = {row["id"]: row["audio"] for row in rows}
    for row in found:
        counts[row["filter_reason"]] += 1
        assert row["audio"] == audio[row["id"]]
        assert "labels" not in row
    assert counts == dropped(tmp_path)
    rates = {row["id"]: (row["filter_wer"], row["filter_cer"]) for row in found}
    assert rates["wrong"] == pytest.approx((100.0, 100.0))
    assert rates["short"] == (None, None)  # it was never compared

    # Both load as users load them, each by its folder.
    assert len(loaded(tmp_path / "rejected", split="train")) == len(REJECTED)
    assert list(loaded(tmp_path)) == ["train"]
    assert len(loaded(tmp_path, split="train")) == 4
    # What was rejected may be given another chance, and the reason of then is no column twice.
    again = ["-d", tmp_path / "rejected", "--keep_rejected", "-o", tmp_path.parent / "again"]
    record_of = ["-m", record(labelled)["arguments"]["model_name_or_path"], "-l", "ja"]
    run(SCRIPT, *again, *record_of)
    assert [row["id"] for row in split_rows(tmp_path.parent / "again" / "rejected")] == [
        "cut",
        "wordy",
    ]


def test_rejected_rows_survive_a_kill(tmp_path, labelled):
    flags = ["-d", labelled, "--cer_threshold", 12.5, "--rows_per_shard", 4, "--keep_rejected"]
    run(SCRIPT, *flags, "-o", tmp_path / "whole")
    wanted = split_rows(tmp_path / "whole" / "rejected")
    report = (tmp_path / "whole" / "filter_report.md").read_text("utf-8")
    for call in (
        13,
        33,
        37,
    ):  # in the second shard; rejected rows are published; all is, but the record
        out = tmp_path / f"killed-{call}"
        kill(SCRIPT, "distillery.storage.files:sync", call, *flags, "-o", out)
        run(SCRIPT, *flags, "-o", out)
        assert split_rows(out) == split_rows(tmp_path / "whole")
        assert split_rows(out / "rejected") == wanted
        assert (out / "filter_report.md").read_text("utf-8") == report

    # A file of theirs that is gone is made again, and the others are left as they are.
    file = "rejected/default/train-00001-of-00004.parquet"
    before = snapshot(out)
    (out / file).unlink()
    run(SCRIPT, *flags, "-o", out)
    assert split_rows(out / "rejected") == wanted
    others = {name for name in before if name.endswith(".parquet") and "00001-of" not in name}
    assert len(others) == 6
    assert {name: snapshot(out)[name] for name in others} == {name: before[name] for name in others}
    run(SCRIPT, *flags[:-1], "-o", out, "--overwrite_output_dir")
    assert not list(out.rglob("rejected/**/*.parquet"))  # another run's


def test_the_report_tells_hours_reasons_and_examples(tmp_path, labelled, rows):
    run(SCRIPT, "-d", labelled, "--cer_threshold", 12.5, *LIMITS, "-o", tmp_path)
    report = (tmp_path / "filter_report.md").read_text("utf-8")
    assert "--cer_threshold 12.5" in report and "`whisper-basic+no-spaces`" in report
    seconds = sum(row["duration"] for row in rows)
    assert f"| in | 14 | {seconds / 3600:.2f} | 100.0 % |" in report
    assert f"| kept | 4 | {2 / 3600:.2f} | {100 * 2 / seconds:.1f} % |" in report
    for reason, count in {**REASONS, "error_rate": 1}.items():
        assert f"| {reason} | {count} |" in report
    worst, best = report.split("## Worst that were kept")[1].split("## Best that were dropped")
    assert "`one-of-eight`: WER 100.0 %, CER 12.5 %" in worst
    assert "`right`" not in worst  # nothing is wrong in it
    assert "REF: ねこがみずをのむ\n    HYP: ねこがみずをのま" in worst
    assert "`wrong`: WER 100.0 %" in best and "`empty-transcript`" in best
    assert (tmp_path / "filter_report.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_tells_why_no_row_passes(tmp_path, labelled):
    with pytest.raises(ValueError, match="no row passes"):
        run(SCRIPT, "-d", labelled, "--min_duration_in_seconds", 9, "-o", tmp_path)
    assert "| kept | 0 |" in (tmp_path / "filter_report.md").read_text("utf-8")


# --- several datasets, bad input -----------------------------------------------------------------


def test_two_splits_stay_two_and_one_split_twice_is_refused(tmp_path, rows, teacher):
    a = write_labelled(tmp_path / "a", rows[:3], teacher)
    b = write_labelled(tmp_path / "b", rows[:2], teacher, "validation")
    joined = ["-d", f"{a}+{b}", "--dataset_split_name", "train+validation"]
    run(SCRIPT, *joined, "-o", tmp_path / "out")
    dataset = loaded(tmp_path / "out")
    assert {split: len(dataset[split]) for split in dataset} == {"train": 3, "validation": 2}
    assert record(tmp_path / "out")["ledger"]["out"] == 5

    c = write_labelled(tmp_path / "c", rows[:2], teacher)
    with pytest.raises(ValueError, match="would both be written as split 'train'"):
        run(SCRIPT, "-d", f"{a}+{c}", "-o", tmp_path / "twice")


def test_the_rows_are_those_of_this_folder_as_it_is_now(tmp_path, rows, teacher):
    # The datasets library would take its cached copy of any folder of this name.
    flags = ["-o", tmp_path / "out", "--overwrite_output_dir"]
    for folder, some in (("a", rows[:3]), ("b", rows[5:7]), ("a", rows[6:9])):
        write_labelled(tmp_path / folder / "labels", some, teacher)
        run(SCRIPT, "-d", tmp_path / folder / "labels", *flags)
        assert kept(tmp_path / "out") == [row["id"] for row in some if row["id"] != "wordy"]


def test_clip_without_sound_is_counted_where_features_are_made(tmp_path, rows, teacher, capsys):
    noise = {"bytes": b"no sound at all" * 100, "path": "noise.flac"}
    folder = write_labelled(
        tmp_path / "labels", [rows[0], {**rows[1], "audio": noise}, rows[2]], teacher
    )
    flags = ["-d", folder, "--vectorize", "-o", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"1 of 3 rows cannot be used \(audio: 1\)"):
        run(SCRIPT, *flags)
    assert "clip one-of-eight cannot be decoded" in capsys.readouterr().err
    run(SCRIPT, *flags, "--max_bad_fraction", 0.4)
    assert kept(tmp_path / "out") == ["right", "comma"]
    assert record(tmp_path / "out")["ledger"]["quarantined"] == {"audio": 1}


def test_a_run_with_too_many_clips_without_sound_ends_early_and_goes_on_where_more_are_allowed(
    tmp_path, rows, teacher, capsys, monkeypatch
):
    monkeypatch.setattr(bad_clips, "MANY_BAD", 2)
    noise = {"bytes": b"no sound at all" * 100, "path": "noise.flac"}
    many = [{**rows[0], "id": f"bad-{i}", "audio": noise} for i in range(4)]
    good = [{**rows[0], "id": f"good-{i}"} for i in range(4)]
    folder = write_labelled(tmp_path / "labels", [*many, *good], teacher)
    flags = ["-d", folder, "--vectorize", "--rows_per_shard", 1, "-o", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"2 of 8 rows cannot be used \(audio: 2\)"):
        run(SCRIPT, *flags)
    assert capsys.readouterr().err.count("cannot be decoded") == 2
    run(SCRIPT, *flags, "--max_bad_fraction", 0.5)
    assert capsys.readouterr().err.count("cannot be decoded") == 2  # of the other two
    assert kept(tmp_path / "out") == [f"good-{i}" for i in range(4)]


def test_dataset_without_labels_names_its_columns(tmp_path, teacher):
    manifest = tone_manifest(tmp_path / "clips" / "clip.jsonl", 1, 0.5)
    with pytest.raises(
        ValueError, match=r"no column 'whisper_transcript'; its columns are .*audio"
    ):
        run(SCRIPT, "-d", manifest, "-m", teacher, "-l", "ja", "-o", tmp_path / "out")


def test_a_multilingual_model_needs_a_language(tmp_path, rows, teacher):
    folder = write_labelled(tmp_path / "labels", rows[:1], teacher)
    (folder / "run.json").unlink()  # which names it
    with pytest.raises(ValueError, match="the model is multilingual and needs a language"):
        run(SCRIPT, "-d", folder, "-m", teacher, "-o", tmp_path / "out")
