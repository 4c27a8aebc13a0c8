import sys

import pytest
from pipeline_parts import Parrot
from tiny import SHARED, tiny_punctuator_folder

from distillery.evaluation import results
from distillery.text.error_rates import score
from distillery.text.normalizers import normalizer_for
from distillery.whisper.pipelines.punctuation import (
    DEFAULT_MODEL,
    ModelPunctuator,
    load_punctuator,
    punctuate_by_rules,
)

PUBLISHED = SHARED / "data" / "kotoba_predictions"


def punctuate(texts, *sentences):
    return ModelPunctuator(Parrot(*sentences))(texts)


@pytest.mark.parametrize(
    ("texts", "sentences", "wanted"),
    [
        # marks are added, and nothing else
        (["今日は雨です"], ["今日は雨です。"], ["今日は雨です。"]),
        (["はい雨です"], ["はい、雨です。"], ["はい、雨です。"]),
        (["雨ですか晴れです"], ["雨ですか？", "晴れです。"], ["雨ですか？晴れです。"]),
        (["雨ですか晴れです"], ["雨ですか?晴れです."], ["雨ですか?晴れです."]),
        (["雨ですか?晴れです"], ["雨ですか?晴れです."], ["雨ですか?晴れです."]),
        (["雨です晴れ"], ["雨です.晴れ."], ["雨です.晴れ."]),
        (
            [" hello there how are you"],
            ["Hello there.", "How are you?"],
            [" hello there. how are you?"],
        ),
        # a mark that is there stays, alone
        (["雨です。"], ["雨です。"], ["雨です。"]),
        (["雨です！"], ["雨です。"], ["雨です！"]),
        (["雨です。."], ["雨です。"], ["雨です。"]),
        (["はい、、雨です。。"], ["はい。雨です。"], ["はい、雨です。"]),
        (["え？！"], ["え？"], ["え？！"]),
        (["雨です 。"], ["雨です。"], ["雨です 。"]),
        # the model's own doubling is not taken over
        (["雨です"], ["雨です。."], ["雨です。"]),
        # chunks: a sentence may go on, or end with the chunk, or have its mark in the next one
        (["今日は", "雨です"], ["今日は雨です。"], ["今日は", "雨です。"]),
        (["雨です", "はい"], ["雨です。", "はい。"], ["雨です。", "はい。"]),
        (["雨です", "。はい"], ["雨です。", "はい。"], ["雨です", "。はい。"]),
        (["雨です。", "。はい"], ["雨です。", "はい。"], ["雨です。", "はい。"]),
        ([" I see", " you"], ["I see.", "You."], [" I see.", " you."]),
        (["", "雨", ""], ["雨。"], ["", "雨。", ""]),
        # what the model writes otherwise does not matter
        (["ｶﾅと㍍です"], ["カナとメートルです。"], ["ｶﾅと㍍です。"]),
        (["鱻です魚です"], ["<unk>です。", "魚です。"], ["鱻です。魚です。"]),
        (["３.５キロです"], ["3.5キロです。"], ["３.５キロです。"]),
        (["1,000円です"], ["1,000円です。"], ["1,000円です。"]),
        (["usaです"], ["U.S.Aです。"], ["usaです。"]),
        (["雨です"], ["雪。"], ["雨です"]),
        (["雨です"], [], ["雨です"]),
        (["雨です"], ["。雨です"], ["雨です"]),
    ],
)
def test_only_marks_are_taken_from_a_model(texts, sentences, wanted):
    assert punctuate(texts, *sentences) == wanted


def test_a_model_is_asked_once_for_all_chunks_and_without_their_marks():
    model = Parrot()
    ModelPunctuator(model)([" はい、3.5", "キロです。", " OK."])
    assert model.asked == ["はい3.5キロです OK"]


@pytest.mark.parametrize("texts", [[], [""], [" "], ["。"], ["", "、"]])
def test_a_model_is_not_asked_about_nothing(texts):
    model = Parrot()
    assert ModelPunctuator(model)(texts) == texts
    assert model.asked == []


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["今日は雨です"], ["今日は雨です。"]),
        (["雨が降ります"], ["雨が降ります。"]),
        (["そうでした"], ["そうでした。"]),
        (["食べました"], ["食べました。"]),
        (["食べません"], ["食べません。"]),
        (["食べませんでした"], ["食べませんでした。"]),
        (["晴れるでしょう"], ["晴れるでしょう。"]),
        (["行きましょう"], ["行きましょう。"]),
        (["待ってください"], ["待ってください。"]),
        (["おやすみなさい"], ["おやすみなさい。"]),
        (["猫だ"], ["猫だ。"]),
        (["猫だった"], ["猫だった。"]),
        (["雨だろう"], ["雨だろう。"]),
        (["首都である"], ["首都である。"]),
        (["雨ですか"], ["雨ですか。"]),
        (["行きますかね"], ["行きますかね。"]),
        (["そうですね"], ["そうですね。"]),
        (["雨ですよ"], ["雨ですよ。"]),
        (["雨ですよね"], ["雨ですよね。"]),
        (["猫だよ"], ["猫だよ。"]),
        (["そうだな"], ["そうだな。"]),
        (["行くよ"], ["行くよ。"]),
        (["高いね"], ["高いね。"]),
        (["食べたよね"], ["食べたよね。"]),
        (["来るかな"], ["来るかな。"]),
        (["なぜ行くのか"], ["なぜ行くのか。"]),
        # plain endings, at the end of the recording alone
        (["学校に行く"], ["学校に行く。"]),
        (["山が高い "], ["山が高い。 "]),
        (["もう食べた", " "], ["もう食べた。", " "]),
        (["ならない！"], ["ならない！"]),
        (["学校に行く", "山が高い", "雨です"], ["学校に行く", "山が高い", "雨です。"]),
        (["もう食べた 雨です"], ["もう食べた 雨です。"]),
        # a space is a pause, and so is the end of a chunk
        (["雨です 寒いです"], ["雨です。 寒いです。"]),
        (["雨です", "寒いですね"], ["雨です。", "寒いですね。"]),
        (["雨です ", " 寒いです"], ["雨です。 ", " 寒いです。"]),
        (["雨ですが", "行きます"], ["雨ですが、", "行きます。"]),
        (["寒いけど", "行きます"], ["寒いけど、", "行きます。"]),
        (["寒いので 帰ります"], ["寒いので、 帰ります。"]),
        (["見ながら", "食べました"], ["見ながら、", "食べました。"]),
        # a clause at the very end may be a sentence: nobody knows
        (["寒いけど"], ["寒いけど"]),
        (["寒いけど", " "], ["寒いけど", " "]),
        # marks that are there
        (["雨です。"], ["雨です。"]),
        (["雨ですか？"], ["雨ですか？"]),
        (["雨です", "。寒いです"], ["雨です", "。寒いです。"]),
        (["雨です。."], ["雨です。"]),
        # not the end of a sentence
        (["雨ですから行きません"], ["雨ですから行きません。"]),
        (["ますます", "増えます"], ["ますます", "増えます。"]),
        (["まだ"], ["まだ"]),
        (["ただ"], ["ただ"]),
        (["からだ"], ["からだ"]),
        (["あいだ"], ["あいだ"]),
        (["しずか"], ["しずか"]),
        (["ばか"], ["ばか"]),
        (["「好きです」"], ["「好きです」"]),
        # limits: nouns and other endings, and no pause
        (["素敵な庭"], ["素敵な庭"]),
        (["早くしろ"], ["早くしろ"]),
        (["寒いから"], ["寒いから"]),
        (["雨です寒いです"], ["雨です寒いです。"]),
        (["hello"], ["hello"]),
        ([], []),
        (["", "雨です", ""], ["", "雨です。", ""]),
    ],
)
def test_rules_for_japanese(texts, wanted):
    assert punctuate_by_rules(texts) == wanted


@pytest.mark.skipif(not PUBLISHED.exists(), reason="../shared is absent")
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("kotoba-whisper-v1.0.ja_asr.common_voice_8_0", 15.6, 13.1),
        ("whisper-large-v3.ja_asr.jsut_basic5000", 13.4, 11.1),
    ],
)
def test_rules_bring_published_predictions_nearer_to_their_references(name, before, after):
    pairs = [
        (row.reference_raw.replace("。.", "。"), row.prediction_raw.replace("。.", "。"))
        for row in results.read_predictions(PUBLISHED / f"{name}.csv")
    ]
    references, texts = zip(*pairs, strict=True)
    plain = score(references, texts, normalizer_for("ja"))
    marked = score(references, [punctuate_by_rules([t])[0] for t in texts], normalizer_for("ja"))
    assert plain.cer_raw == pytest.approx(before, abs=0.05)
    assert marked.cer_raw == pytest.approx(after, abs=0.05)
    assert marked.cer_norm == plain.cer_norm  # nothing but marks has changed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "punctuator"
    return tiny_punctuator_folder(path, {"す": "。", "が": "、"}, "すがあめで寒い行きまABab")


def test_a_real_model_of_the_package_is_read_from_a_folder(folder):
    punctuator = load_punctuator(str(folder))
    assert punctuator(["あめですが", "行きます"]) == ["あめです。が、", "行きます。"]
    assert punctuator(["雪です、 ABab"]) == ["雪です、 ABab"]


def test_a_real_model_reads_long_texts_in_overlapping_windows(folder):
    texts = ["あめです"] * 40  # five times the model's length
    assert load_punctuator(str(folder))(texts) == ["あめです。"] * 40


def test_rules_need_no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "punctuators", None)
    assert load_punctuator("rules")(["雨です"]) == ["雨です。"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "punctuators.models.punc_cap_seg_model", None)
    with pytest.raises(ImportError, match=r"pip install punctuators, or take 'rules'"):
        load_punctuator(True)


@pytest.mark.parametrize("name", [True, "my-org/my-punctuator"])
def test_a_missing_model_is_named_with_what_to_do(name):
    with pytest.raises(OSError) as caught:
        load_punctuator(name)
    told = str(caught.value)
    wanted = DEFAULT_MODEL if name is True else name
    assert told.startswith(f"the punctuator {wanted!r} has no sp.model here: ")
    assert f"hf download {wanted}" in told
    assert "take 'rules', which needs no model" in told


def test_a_folder_without_a_file_is_named(folder, tmp_path):
    (tmp_path / "sp.model").write_bytes((folder / "sp.model").read_bytes())
    with pytest.raises(OSError, match=rf"the punctuator '{tmp_path}' has no config.yaml here"):
        load_punctuator(str(tmp_path))
