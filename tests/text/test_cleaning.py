"""Cleaning of training texts: the assertions are the specification."""

import unicodedata

import pytest

from distillery.text.cleaning import TextCleaning
from distillery.text.normalizers import normalizer_for

BARE = TextCleaning(remove_punctuation=True)
# Hindi sentences with vowel signs, nukta, conjuncts, anusvara, chandrabindu and visarga.
HINDI = {
    "मैं हिन्दी में बात करता हूँ।": "मैं हिन्दी में बात करता हूँ",
    "क्या आपने खाना खाया?": "क्या आपने खाना खाया",
    "“दुःख” और सुख, दोनों आते-जाते हैं!": "दुःख और सुख दोनों आतेजाते हैं",
    "ज़रा सड़क पर ध्यान दीजिए; गाड़ी तेज़ है॥": "ज़रा सड़क पर ध्यान दीजिए गाड़ी तेज़ है",
    "श्री कृष्ण—अर्जुन संवाद, अध्याय १.२": "श्री कृष्ण अर्जुन संवाद अध्याय १.२",
    "राष्ट्रपति ने कहा: हमें शांति चाहिए…": "राष्ट्रपति ने कहा हमें शांति चाहिए",
}


def marks(text):
    return [c for c in text if unicodedata.category(c)[0] == "M"]


@pytest.mark.parametrize(("text", "wanted"), HINDI.items())
def test_hindi_keeps_its_vowel_signs(text, wanted):
    assert BARE(text) == wanted
    assert marks(text) == marks(wanted) != []
    assert TextCleaning(lower_case=True)(text) == text
    # What is scored keeps them too, and agrees with what is learnt but for the hyphen.
    normalizer = normalizer_for("hi")
    assert len(marks(normalizer(text))) == len(marks(unicodedata.normalize("NFKC", text)))
    assert normalizer(text).replace(" ", "") == normalizer(wanted).replace(" ", "")


def test_what_belongs_to_a_word_or_a_number_stays():
    assert BARE("It's 3.14, isn’t it?") == "It's 3.14 isn’t it"
    assert BARE("50 % of R&D at 10:30, me@home #1") == "50 % of R&D at 10:30 me@home #1"
    assert BARE("Costs €5 + 2$.") == "Costs €5 + 2$"
    assert BARE("'tis the dogs' day") == "tis the dogs day"
    assert BARE("fine-tuning, well–known") == "finetuning well known"
    assert BARE("yes—no and/or a,b") == "yes no and or a b"
    assert BARE("wait...what house--that “Hi,”he yes!?No 3...4") == (
        "wait what house that Hi he yes No 3 4"
    )
    assert BARE("¿Qué? ¡Sí!  (risas) [música]…") == "Qué Sí risas música"


def test_without_spaces_nothing_is_put_between_words():
    japanese = TextCleaning(remove_punctuation=True, has_spaces=False)
    assert japanese("今日は、雨です。「本当？」") == "今日は雨です本当"


def test_letters_and_characters():
    assert TextCleaning(lower_case=True)("ÀÉ Straße") == "àé straße"
    assert TextCleaning(ignored="%“”")("“50 %” done") == "50 done"
    assert TextCleaning(True, True, "€")("Ab, €C!") == "ab c"
    assert not TextCleaning().changes_texts
    assert TextCleaning(ignored="a").changes_texts
    assert BARE("...") == BARE("") == ""


def test_markup_stays():
    assert BARE("<|0.00|> Hello, you.<|1.20|><|1.20|> Bye!<|2.00|>") == (
        "<|0.00|> Hello you<|1.20|><|1.20|> Bye<|2.00|>"
    )
