import importlib.util
import pickle
import random
import sys

import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, remove_symbols

from distillery.text import normalizers
from distillery.text.normalizers import (
    FILTER_VARIANTS,
    SPELLING_PACKAGES,
    SPELLING_TABLE,
    installed_spelling,
    japanese_words,
    normalizer_for,
    raw_text,
)


def test_japanese():
    japanese = normalizer_for("ja")
    assert japanese.id == "whisper-basic+no-spaces"
    assert japanese("水を、買わなくてはならないのです。") == "水を買わなくてはならないのです"
    assert japanese("１週間して、そのニュースは") == "1週間してそのニュースは"
    assert japanese("「東京」は晴れ！\u3000雨？ ") == "東京は晴れ雨"
    assert japanese("ｶﾞﾗｽ か゛") == "ガラスか"
    assert japanese("パンが好き") == "パンが好き"
    assert japanese("今日(きょう)は[笑]いい") == "今日はいい"
    assert japanese("NASA の OK") == "nasaのok"
    assert japanese("葛\U000e0100城") == "葛城"
    assert japanese("<|0.00|>あさ。<|1.20|>") == "あさ"
    assert japanese("。。。") == ""
    assert japanese("") == ""


def test_kotobas_filter_leaves_spaces():
    kotoba = normalizer_for("ja", variant="kotoba")
    assert kotoba.id == "whisper-basic"  # without "+no-spaces"
    assert kotoba("今日は、雨です。") == "今日は 雨です"
    assert kotoba("ＮＨＫ の 朝") == "nhk の 朝"
    assert normalizer_for("hi", variant="kotoba").id == "whisper-basic"  # marks become spaces
    english = normalizer_for("en", variant="kotoba")
    assert english("Colour, twenty!") == normalizer_for("en")("Colour, twenty!")


def test_basic_rules_are_those_of_transformers():
    theirs = BasicTextNormalizer()
    plain = normalizer_for("de", variant="basic")
    draw = random.Random(0)
    texts = ["".join(chr(draw.randrange(0x3100)) for _ in range(40)) for _ in range(500)]
    texts += ["".join(chr(draw.randrange(0x20000, 0x110000)) for _ in range(40)) for _ in range(99)]
    for text in [*texts, "[a] (b) <c> Ä ﬁ ｶﾞ か゛ 1½ €5 a\u0301 ☃ ½"]:
        assert plain(text) == theirs(text).strip()


def test_other_scripts_without_spaces():
    assert normalizer_for("zh")("你好， 世界！") == "你好世界"
    assert normalizer_for("yue")("你 好") == "你好"
    assert normalizer_for("zh").id == "whisper-basic+no-spaces"
    assert normalizer_for("ko")("안녕 하세요.") == "안녕 하세요"
    assert normalizer_for("ko").id == "whisper-basic"


def test_thai_lao_khmer_burmese_keep_marks_and_lose_spaces():
    for code in ("th", "lo", "km", "my"):
        assert normalizer_for(code).id == "marks-kept+no-spaces"
    assert normalizer_for("th")("ที่นี่ ดี ๆ") == "ที่นี่ดีๆ"
    assert normalizer_for("th")("น้ำ") == "น\u0e49\u0e4d\u0e32"  # NFKC parts sara am
    assert normalizer_for("lo")("ພາສາ ລາວ.") == "ພາສາລາວ"
    assert normalizer_for("km")("ខ្ញុំ\u200bស្រឡាញ់ ភាសា") == "ខ្ញុំស្រឡាញ់ភាសា"
    assert normalizer_for("my")("မြန်မာ စာ။") == "မြန်မာစာ"


def test_indic_scripts_keep_marks():
    hindi = normalizer_for("hi")
    assert hindi.id == "marks-kept"
    assert hindi("नमस्ते, दुनिया!") == "नमस्ते दुनिया"
    assert hindi("<|0.00|> हिन्दी।<|1.20|>") == "हिन्दी"
    assert hindi("\u0958लम") == hindi("क\u093cलम") == "क\u093cलम"
    assert normalizer_for("ta")("தமிழ் மொழி.") == "தமிழ் மொழி"
    assert normalizer_for("bn")("র\u200d\u09cdযাব, বাংলা।") == "র\u200d\u09cdযাব বাংলা"
    for code in ("as", "gu", "kn", "ml", "mr", "ne", "pa", "sa", "si", "te"):
        assert normalizer_for(code).id == "marks-kept"


def test_other_languages_with_marks():
    assert normalizer_for("ar")("مُحَمَّدٌ، هنا") == "مُحَمَّدٌ هنا".replace("\u0651\u064e", "\u064e\u0651")
    assert normalizer_for("ar")("السلام عليكم.") == "السلام عليكم"
    assert normalizer_for("bo")("བོད་ཡིག") == "བོད ཡིག"
    assert normalizer_for("yo")("Ẹ̀kọ́ dára.") == "ẹ\u0300kọ\u0301 dára"
    assert normalizer_for("yo").id == normalizer_for("he").id == "marks-kept"


def test_marks_stay_on_letters_only():
    hindi = normalizer_for("hi")
    assert hindi("ठीक ❤\ufe0f है") == "ठीक है"  # an emoji with a variation selector
    assert hindi("1\ufe0f\u20e3 घर") == "1 घर"  # a keycap
    assert hindi("\u0301घर") == "घर"


def test_basic_variant_is_whispers_own():
    assert normalizer_for("hi", variant="basic")("हिन्दी!") == "ह न द"
    assert normalizer_for("hi", variant="basic").id == "whisper-basic"
    assert normalizer_for("th", variant="basic")("ที่นี่") == "ทน"
    assert normalizer_for("th", variant="basic").id == "whisper-basic+no-spaces"
    assert normalizer_for("en", variant="basic")("Mr. Smith won't.") == "mr smith won t"


def test_marks_variant():
    assert normalizer_for("ja", variant="marks").id == "marks-kept+no-spaces"
    assert normalizer_for("en", variant="marks")("Mr. Smith") == "mr smith"
    assert normalizer_for("ru", variant="basic")("за\u0301мок") == "за мок"
    assert normalizer_for("ru", variant="marks")("за\u0301мок") == "за\u0301мок"


def test_english():
    english = normalizer_for("en", english_spelling={})
    assert english.id == "whisper-english+no-spelling-map"
    assert english("Mr. Smith won't pay $20 million!") == "mister smith will not pay $20000000"
    assert english("Um, twenty-one [laughs] (noise) okay") == "21 okay"
    assert english("The colour's grey.") == "the colour is grey"
    assert english("<|0.00|> Let's go.<|1.20|>") == "let us go"
    assert english("Hmm?!") == english(".") == ""
    assert english("...") == "."  # Whisper's own rules leave a word here


def test_english_spelling():
    english = normalizer_for("en", english_spelling={"colour": "color"})
    assert english.id == "whisper-english"
    assert english("Colour, odour") == "color odour"
    assert normalizer_for("en", english_spelling={}).id == "whisper-english+no-spelling-map"
    assert normalizer_for("ja", english_spelling={"a": "b"})("a") == "a"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Where packages can be put; those that are installed here are not found."""
    find = importlib.util.find_spec

    def found(name, *rest):
        spec = find(name, *rest)
        return spec if spec and str(tmp_path) in str(spec.submodule_search_locations) else None

    monkeypatch.setattr(importlib.util, "find_spec", found)
    monkeypatch.syspath_prepend(tmp_path)
    installed_spelling.cache_clear()
    yield tmp_path
    installed_spelling.cache_clear()


@pytest.mark.parametrize("name", SPELLING_PACKAGES)
def test_the_spelling_table_of_an_installed_package_is_read(packages, name):
    table = packages / name / SPELLING_TABLE
    table.parent.mkdir(parents=True)
    (packages / name / "__init__.py").write_text("raise ImportError('is not to be imported')")
    table.write_text('{"colour": "color"}', "utf-8")
    assert normalizer_for("en").id == "whisper-english"
    assert normalizer_for("en")("The colour") == "the color"


def test_a_missing_spelling_table_is_told_once(packages, caplog):
    (packages / "whisper").mkdir()  # a folder of that name is no package with a table
    names = {normalizer_for("en").id for _ in range(3)}
    assert names == {"whisper-english+no-spelling-map"}
    assert caplog.text.count("pip install whisper-normalizer") == 1


def test_whispers_own_spelling_table_is_there_without_a_model():
    if importlib.util.find_spec("whisper") is None:
        pytest.skip("openai-whisper, whose table is read, comes with scripts/test.sh")
    assert normalizer_for("en").id == "whisper-english"
    assert normalizer_for("en")("Favourite mouldy aeroplanes") == "favorite moldy airplanes"


MANY = [
    "",
    " ",
    "a",
    "ΑΣ",
    "Σ",
    "ﾞ",
    "\u0301é",
    "İ",
    "ß",
    "か\u3099",
    "(笑",
    "笑)",
    "[a",
    "b]>",
    "<",
    "(x) y",
]
ALPHABET = "aΣ İかガ\u3099\u0301\u200b\u200d हिन्दी。、-😀\U000e0100\n\x1c\x85\u2028\0<>[]()１ﾞ"


@pytest.mark.parametrize("variant", FILTER_VARIANTS)
@pytest.mark.parametrize("language", ["ja", "de", "hi", "th", "en", None])
def test_many_texts_are_normalised_as_each_one_is(language, variant, monkeypatch):
    monkeypatch.setattr(normalizers, "MOST_JOINED", 50)
    draw = random.Random(f"{language} {variant}")
    texts = MANY + ["".join(draw.choices(ALPHABET, k=draw.randint(0, 9))) for _ in range(700)]
    normalizer = normalizer_for(language, variant=variant)
    assert normalizer.many(texts) == [normalizer(text) for text in texts]
    assert normalizer.many([]) == []


def test_symbols_are_those_of_whispers_own_rule():
    for plane in range(0, 0x30000, 0x10000):
        text = "\0".join(map(chr, range(plane, plane + 0x10000)))
        assert normalizers._remove_symbols(text) == remove_symbols(text)


def test_latin_cyrillic_and_greek():
    assert normalizer_for("fr")("Ça, c'est l'été !") == "ça c est l été"
    assert normalizer_for("fr")("e\u0301te\u0301") == "été"
    assert normalizer_for("de")("Straße – Grüße") == "straße grüße"
    assert normalizer_for("vi")("Tiếng Việt, đẹp!") == "tiếng việt đẹp"
    assert normalizer_for("ru")("Ёлка, йод.") == "ёлка йод"
    assert normalizer_for("de").id == "whisper-basic"


def test_unknown_language_keeps_marks():
    assert normalizer_for(None).id == "marks-kept"
    assert normalizer_for(None)("हिन्दी!") == "हिन्दी"
    assert normalizer_for(None)("Ça va ?") == normalizer_for("fr")("Ça va ?")


def test_language_names():
    assert (
        normalizer_for("Japanese").id == normalizer_for("japanese").id == "whisper-basic+no-spaces"
    )
    assert normalizer_for("JA").id == "whisper-basic+no-spaces"
    assert normalizer_for("Mandarin").id == "whisper-basic+no-spaces"
    assert normalizer_for("cantonese").id == "whisper-basic+no-spaces"
    assert normalizer_for("Hindi").id == "marks-kept"
    assert normalizer_for("Burmese").id == normalizer_for("myanmar").id == "marks-kept+no-spaces"
    assert normalizer_for("english", english_spelling={"a": "b"}).id == "whisper-english"


@pytest.mark.parametrize("language", ["klingon", "xx", "", "zh-TW"])
def test_wrong_language(language):
    with pytest.raises(ValueError, match=f"no language '{language}'"):
        normalizer_for(language)


def test_wrong_variant():
    with pytest.raises(ValueError, match="auto, basic, marks, kotoba, got 'plain'"):
        normalizer_for("ja", variant="plain")


def test_normalizers_travel_to_other_processes():
    for code in ("ja", "hi", "en"):
        normalizer = normalizer_for(code)
        there = pickle.loads(pickle.dumps(normalizer))  # noqa: S301
        assert there.id == normalizer.id
        assert there("One, हिन्दी.") == normalizer("One, हिन्दी.")


def test_raw_text():
    assert raw_text("<|0.00|>asa<|1.20|>") == "asa"
    assert raw_text("<|0.00|> Hello,<|1.20|><|1.20|> world.<|2.00|>") == "Hello, world."
    assert raw_text("<|startoftranscript|><|ja|><|transcribe|><|0.00|> 朝。<|1.20|>") == "朝。"
    assert raw_text(" a  b\n") == "a  b"
    assert raw_text("1 < 2 | 3 > 2") == "1 < 2 | 3 > 2"
    assert raw_text("<|0.00|><|1.20|>") == ""


def test_texts_for_raw_rates():
    assert normalizer_for("ja").raw("今日は、 晴れ。.") == "今日は、晴れ。"
    assert normalizer_for("en").raw(" It's  5 o'clock. ") == "It's  5 o'clock."
    assert normalizer_for("hi").raw("NA") == "NA"


def test_japanese_words():
    words = japanese_words()
    assert words("木曜日停戦会談は終了しました") == "木曜 日 停戦 会談 は 終了 し まし た"
    assert words("na") == "na"
    assert words("") == ""


def test_japanese_words_without_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "fugashi", None)
    with pytest.raises(ModuleNotFoundError, match="pip install fugashi unidic-lite"):
        japanese_words()
