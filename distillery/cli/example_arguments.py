"""Flags that say what training makes of its rows: texts and sound."""

from dataclasses import dataclass

from distillery.cli.flags import flag, repeated


@dataclass(frozen=True)
class ExampleArguments:
    """Training examples."""

    pack: bool = flag(
        False,
        "Let utterances share windows of the model's length, of which little is silence then: in "
        "order within a recording, all others where they fit best. Rows of a batch are windows.",
    )
    do_lower_case: bool = flag(
        False, "Learn to write small letters only. The texts that are scored stay as they are."
    )
    do_remove_punctuation: bool = flag(
        False,
        "Learn to write no punctuation; what belongs to a word or a number stays, as in it's and "
        "3.14, and so do combining marks.",
    )
    chars_to_ignore: list[str] = repeated(  # noqa: RUF009 (a field with a factory)
        "Learn to write none of these characters, such as: --chars_to_ignore , ? ! „ “"
    )
