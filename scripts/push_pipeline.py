r"""Save a model together with a pipeline that punctuates and fits timestamps to the sound.

Reads   a Whisper checkpoint: a folder, or a model of the Hub.
Writes  a copy of it with the code of `distillery/whisper/pipelines`, which `pipeline(model=…)` then
        loads.

    python scripts/push_pipeline.py -m my-student -o my-student-v1.1

The same, uploaded; the card then names the repository, which is private without --hub_public:

    python scripts/push_pipeline.py -m my-student -o hub/my-student-v1.1 \
        --push_to_hub --hub_model_id my-org/my-student-v1.1
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a bare clone

from distillery.cli.arguments import OutputArguments
from distillery.cli.flags import VERIFY, flag, parse, required


@dataclass(frozen=True)
class PipelineArguments:
    """Model."""

    model_name_or_path: str = required("Whisper checkpoint: folder or Hub id.", "-m", is_input=True)
    model_revision: str | None = flag(None, "Branch, tag or commit of the model on the Hub.")
    cache_dir: str | None = flag(None, "Folder for files fetched from the Hub.", resumable=True)
    verify: bool = flag(False, VERIFY, resumable=True)


GROUPS = (PipelineArguments, OutputArguments)

if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__)

import shutil
from dataclasses import replace

from transformers.dynamic_module_utils import custom_object_save

from distillery.cli import hub
from distillery.cli.runtime import (
    end_stage,
    log_end,
    log_start,
    set_up_logging,
    stage_run,
)
from distillery.storage.checkpoints import sealed_folder
from distillery.storage.files import RUN_RECORD, read_json, write_json
from distillery.storage.ownership import taken_name
from distillery.storage.runs import Run
from distillery.whisper import checkpoint
from distillery.whisper.pipelines import recognition

# A name of its own: `pipeline("automatic-speech-recognition", …)` goes on to load the plain one.
TASK = "whisper-distillery"
CARD = "README.md"
HEADING = "## Punctuation and timestamps"


def main(model_args: PipelineArguments, output_args: OutputArguments) -> None:
    """Copy the model, add the pipeline, and upload both where asked to."""
    set_up_logging()
    source, folder = _source(model_args), Path(output_args.output_dir)
    inputs = {model_args.model_name_or_path: checkpoint.fingerprint(str(source))}
    run = stage_run("push_pipeline", (model_args, output_args), folder, inputs)
    hub.check(run)
    with taken_name(folder):
        if not run.was_made("--output_dir", output_args.overwrite_output_dir):
            _make(source, run, output_args.hub_model_id)
        end_stage(run)


def _make(source: Path, run: Run, repo_id: str | None) -> None:
    """Write the folder, all of it or nothing."""
    run.refuse_damaged_inputs()
    name = run.arguments["model_name_or_path"]
    log_start(run, None, None, None, f"{name} with a pipeline")
    with sealed_folder(run.folder) as temporary:
        save_pipeline(source, temporary, repo_id or run.folder.resolve().name)
        written = replace(run, folder=temporary)
        written.outputs.add_all()
        written.finish()
    log_end(run, f"pipeline(model={str(run.folder)!r}, trust_remote_code=True)")


def _source(args: PipelineArguments) -> Path:
    """Return the folder of the checkpoint, fetched if need be."""
    folder = Path(args.model_name_or_path)
    if not folder.exists():
        folder = hub.download(
            args.model_name_or_path, hub.MODEL_FILES, args.model_revision, args.cache_dir
        )
    checkpoint.load_processor(str(folder))  # fails by name if it is no Whisper checkpoint
    return folder


def save_pipeline(source: Path, folder: Path, name: str) -> None:
    """Copy a checkpoint's files, and add the pipeline: its code, its entry, its instructions.

    Args:
        source: the checkpoint.
        folder: where the copy goes; it exists.
        name: what users will load the model by.
    """
    for pattern in hub.MODEL_FILES:
        for file in source.glob(pattern):
            if file.name != RUN_RECORD:  # the record of the run that made the model
                shutil.copy(file, folder / file.name)
    config = read_json(folder / "config.json")
    implementation = recognition.RecognitionPipeline
    module = implementation.__module__.rpartition(".")[2]
    config["custom_pipelines"] = {
        TASK: {
            "impl": f"{module}.{implementation.__name__}",
            "pt": ["WhisperForConditionalGeneration"],
        }
    }
    write_json(folder / "config.json", config)
    custom_object_save(implementation, folder)
    _write_card(folder, name)


def _write_card(folder: Path, name: str) -> None:
    if not (folder / CARD).exists():
        checkpoint.write_card(folder, "A Whisper checkpoint.", title=name)
    card = (folder / CARD).read_text("utf-8").partition(HEADING)[0].rstrip()
    (folder / CARD).write_text(f"{card}\n\n{_instructions(name)}", "utf-8")


def _instructions(name: str) -> str:
    return f"""{HEADING}

```bash
pip install punctuators                 # for punctuator=True
pip install stable-ts torchaudio        # for stable_ts=True
```

```python
from transformers import pipeline

recognise = pipeline(
    model="{name}", trust_remote_code=True, punctuator=True, stable_ts=True
)
recognise("speech.flac", chunk_length_s=15, batch_size=8)
```

`punctuator` adds punctuation: `True` fetches a model from the Hub, a string names another one or a
folder, and `"rules"` marks sentence ends of Japanese without any model. `stable_ts` moves
timestamps out of silence. Both are off by default; the code is in `recognition.py`.
"""


if __name__ == "__main__":
    main(*ARGUMENTS)
