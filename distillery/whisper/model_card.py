"""What the card of a model says beside its own description: header, how to use it, results.

Results are added to a card that is there, which a user may have edited: its text stays.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from distillery.storage.files import RUN_RECORD, read_json, replacing
from distillery.storage.publication import CARD, hub_ids
from distillery.text.tokens import language_code

# Flags that name the model which another was made of: the one whose layers it has comes first.
PARENTS = ("teacher_checkpoint", "teacher_model_name_or_path", "model_name_or_path")
EVALUATION = "## Evaluation"


def header(
    parent: str,
    language: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
) -> dict[str, Any]:
    """Return what the header of a model's card says, as far as it is known.

    Args:
        parent: the model that it was made of: Hub id or folder.
        language: code or name.
        license: as the Hub names it.
        datasets: those of the Hub that it was trained on.
    """
    said = {
        "base_model": base_model(parent),
        "language": language_code(language) if language else None,
        "license": license,
        "datasets": list(datasets),
    }
    return {name: value for name, value in said.items() if value}


def base_model(name: str) -> str | None:
    """Return the model of the Hub that a model was made of, over all stages; None for none."""
    seen: set[str] = set()
    while name not in seen and (Path(name) / RUN_RECORD).is_file():
        seen.add(name)
        flags = read_json(Path(name) / RUN_RECORD)["arguments"]
        name = next((flags[flag] for flag in PARENTS if flags.get(flag)), "")
    return next(iter(hub_ids(name)), None)


def usage(name: str, language: str | None) -> str:
    """Return how a model is used, as Markdown.

    Args:
        name: what it is loaded by.
        language: code or name; None where it is detected.
    """
    code = language_code(language) if language else None
    asked = f', generate_kwargs={{"language": "{code}"}}' if code else ""
    spoken = f', language="{code}"' if code else ""
    option = f" -l {code}" if code else ""
    return f"""## Use

```python
from transformers import pipeline

recognise = pipeline("automatic-speech-recognition", model="{name}")
print(recognise("speech.flac"{asked})["text"])
```

With [faster-whisper](https://github.com/SYSTRAN/faster-whisper), once Whisper Distillery has
exported it; both are compared on a clip of at most one window:

```bash
python export_model.py --format ctranslate2 -m "{name}"{option} -d clip.flac -o ct2
```

```python
from faster_whisper import WhisperModel

segments, info = WhisperModel("ct2/float32").transcribe("speech.flac"{spoken})
```

With [whisper.cpp](https://github.com/ggml-org/whisper.cpp):

```bash
python export_model.py --format ggml -m "{name}"{option} -d clip.flac -o ggml
whisper-cli -m ggml/float16/ggml-model.bin -f speech.wav{option}
```"""


# --- results --------------------------------------------------------------------------------------


def add_results(folder: Path, table: str, results: Sequence[EvalResult]) -> None:
    """Put results into the card of a model: a section of its text, and the header's model index.

    Args:
        folder: the model's.
        table: the section's Markdown.
        results: replace those of the header.
    """
    card = _loaded(folder)
    card.data.model_name = folder.resolve().name
    card.data.eval_results = list(results)
    card.data.metrics = sorted({result.metric_type for result in results})
    before, _, after = card.text.partition(f"\n{EVALUATION}\n")
    _, heading, rest = after.partition("\n## ")
    card.text = f"{before.rstrip()}\n\n{EVALUATION}\n\n{table.strip()}\n{heading}{rest}"
    _save(card, folder)


def add_header(folder: Path, said: Mapping[str, Any]) -> None:
    """Put values into the header of a model's or dataset's card."""
    card = _loaded(folder)
    for name, value in said.items():
        setattr(card.data, name, value)
    _save(card, folder)


def _loaded(folder: Path) -> ModelCard:
    return ModelCard((folder / CARD).read_text(encoding="utf-8"))


def _save(card: ModelCard, folder: Path) -> None:
    with replacing(folder / CARD) as temporary:
        temporary.write_text(str(card), encoding="utf-8")
