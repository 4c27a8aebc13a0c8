r"""Show a Whisper model, or two side by side, on a page: upload or record speech, read it.

Reads   one or two Whisper checkpoints, and what the page is given: recordings of any length.
Writes  nothing but the page's own temporary files.

    python run_demo.py -m student --compare_with openai/whisper-large-v3 --language de

After the quickstart, with no network:

    python run_demo.py -m runs/quickstart/student --compare_with runs/quickstart/teacher \
        --language ja --example runs/quickstart/corpus/audio/long-00000.flac

The page is at http://127.0.0.1:7860, for this machine alone; `--server_name 0.0.0.0` shows it to
the network, `--share` to everybody who has the link that Gradio then makes. It needs Gradio: `pip
install gradio`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from distillery.cli.arguments import DecodingArguments, ModelArguments
from distillery.cli.flags import at_least, flag, parse, plus_list, within


@dataclass(frozen=True)
class DemoArguments:
    """The page."""

    compare_with: str | None = flag(
        None,
        "A second model, whose transcript is shown beside that of the first, with what differs: "
        "Hub id or folder.",
        is_input=True,
    )
    example: str | None = flag(
        None, "Recordings that the page offers as examples, joined with '+'.", is_input=True
    )
    per_device_eval_batch_size: int = flag(
        8,
        "Windows of a long recording without timestamps that are decoded at once.",
        "-b",
        "--batch",
        resumable=True,
    )
    generation_max_length: int = flag(
        225, "Most ids of the transcript of one window.", "--max_label_length"
    )
    server_name: str = flag(
        "127.0.0.1",
        "Address to listen at: 127.0.0.1 is this machine alone, 0.0.0.0 the network.",
        "--host",
    )
    server_port: int = flag(7860, "Port to listen at.", "--port")
    share: bool = flag(
        False, "Let Gradio's server make a public link; recordings then pass through it."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *at_least(self, "per_device_eval_batch_size", 1),
            *at_least(self, "generation_max_length", 8),
            *within(self, "server_port", 1, 65535),
        ]


@dataclass(frozen=True)
class PageDecodingArguments(DecodingArguments):
    """Decoding."""

    return_timestamps: bool = flag(
        True, "Whether timestamps, for segments and subtitles, are chosen at first."
    )


GROUPS = (ModelArguments, PageDecodingArguments, DemoArguments)


if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__)

import logging
import os
import socket
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

from distillery.cli.arguments import RunArguments
from distillery.cli.evaluation import decoding_of
from distillery.cli.runtime import load_model, make_accelerator
from distillery.data import schema
from distillery.evaluation.side_by_side import Answer, Listener, answers, languages_of
from distillery.evaluation.tables import folder_names
from distillery.text.differences import Side, differences
from distillery.text.tokens import TASKS, language_code
from distillery.whisper import checkpoint

logger = logging.getLogger(__name__)

TITLE = "Whisper Distillery"
DETECTED = "detected"
KEPT_S = 3600  # uploads and subtitles, in Gradio's own folder
COLOURS = ("#d9822b", "#2b7bd9")  # of what only the first, and only the second model heard


def main(model_args: ModelArguments, decoding_args: DecodingArguments, args: DemoArguments) -> None:
    """Load the models, and serve the page until Ctrl-C."""
    _gradio()  # what may be missing is told before models are loaded
    _check(args)
    accelerator = make_accelerator(RunArguments(), ".", model_args.dtype)
    names = [model_args.model_name_or_path, *([args.compare_with] if args.compare_with else [])]
    listeners = [
        Listener(
            checkpoint.full_name(name),
            load_model(replace(model_args, model_name_or_path=name), accelerator),
            args.per_device_eval_batch_size,
            decoding_of(decoding_args, args.generation_max_length),
        )
        for name in names
    ]
    with TemporaryDirectory(prefix="distillery-demo-") as folder:
        page = page_of(listeners, decoding_args, plus_list(args.example), Path(folder))
        logger.info("http://%s:%d; Ctrl-C ends it", args.server_name, args.server_port)
        page.launch(
            server_name=args.server_name,
            server_port=args.server_port,
            share=args.share,
            quiet=not args.share,
            show_error=True,
            footer_links=[],
            allowed_paths=[str(Path(name).resolve()) for name in plus_list(args.example)],
        )


def _check(args: DemoArguments) -> None:
    """Raise an error if an example is not there, or no page can be served at the address."""
    for name in plus_list(args.example):
        if not Path(name).is_file():
            raise FileNotFoundError(f"--example {name}: there is no such file")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((args.server_name, args.server_port))
        except OSError as error:
            raise ValueError(
                f"--server_port {args.server_port} of --server_name {args.server_name}: "
                f"{error.strerror}; name another one"
            ) from error


def _gradio() -> Any:
    """Import Gradio, which then reports nothing to anybody."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ImportError(
            f"the page needs the package gradio ({error}): pip install gradio"
        ) from error
    return gradio


def page_of(
    listeners: Sequence[Listener], asked: DecodingArguments, examples: Sequence[str], folder: Path
) -> Any:
    """Return the page, to be launched.

    Args:
        listeners: one model, or two.
        asked: what is chosen on the page at first.
        examples: recordings to offer.
        folder: for subtitles.
    """
    gr = _gradio()
    names = folder_names(listener.name for listener in listeners)
    shown = [names[listener.name] for listener in listeners]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as page:
        gr.Markdown(f"# {TITLE}\n{' beside '.join(f'`{name}`' for name in shown)}")
        with gr.Row():
            audio = gr.Audio(sources=["upload", "microphone"], type="filepath", label="Recording")
            with gr.Column():
                settings = _settings(gr, listeners, asked)
                button = gr.Button("Transcribe", variant="primary")
        if examples:
            gr.Examples([[name] for name in examples], inputs=[audio], label="Examples")
        outputs = _outputs(gr, shown)

        def transcribe(path: str | None, language: str, task: str, timestamps: bool) -> list[Any]:
            if path is None:
                raise gr.Error("Upload or record something first.", print_exception=False)
            spoken = None if language == DETECTED else language
            try:
                found = answers(listeners, Path(path), spoken, task, timestamps)
            except ValueError as error:  # it cannot be decoded, or a model lacks the language
                message = f"{Path(path).name} {error}"
                raise gr.Error(message, duration=None, print_exception=False) from error
            subtitles = [
                answer.write_srt(folder / str(number), Path(path).stem) if timestamps else None
                for number, answer in enumerate(found)
            ]
            return _values(gr, found, shown, subtitles)

        button.click(transcribe, [audio, *settings], outputs, concurrency_limit=1)
    return page


def _settings(gr: Any, listeners: Sequence[Listener], asked: DecodingArguments) -> list[Any]:
    """Return the components that choose language, task and timestamps.

    Raises:
        ValueError: a model does not know the language that is to be chosen at first.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    named = sorted((LANGUAGES[code].capitalize(), code) for code in languages_of(listeners))
    choices = [("Detect it", DETECTED), *named] if named else [("English", "en")]
    chosen = language_code(asked.language) if asked.language else choices[0][1]
    if chosen not in dict(choices).values():
        raise ValueError(f"--language {asked.language}: not every model on the page knows it")
    return [
        gr.Dropdown(choices, value=chosen, label="Language spoken"),
        gr.Radio(list(TASKS), value=asked.task, label="Task"),
        gr.Checkbox(asked.return_timestamps, label="Timestamps, for segments and subtitles"),
    ]


def _outputs(gr: Any, names: Sequence[str]) -> list[Any]:
    """Return what shows the answers: of each model times, text, subtitles; differences; segments.

    They are in the order of `_values`.
    """
    outputs: list[Any] = []
    with gr.Row():
        for name in names:
            with gr.Column():
                outputs += [
                    gr.Markdown(f"**{name}**"),
                    gr.Textbox(label=f"Text by {name}", lines=5, max_lines=20),
                    gr.DownloadButton(f"Subtitles by {name} (SRT)", interactive=False),
                ]
    if len(names) > 1:
        colours = dict(zip(map(_only, names), COLOURS, strict=False))
        outputs.append(
            gr.HighlightedText(
                label="Differences",
                color_map=colours,
                show_legend=True,
                show_inline_category=False,
            )
        )
    with gr.Row():
        headers = [schema.SEGMENT_START, schema.SEGMENT_END, schema.TEXT]
        outputs += [
            gr.Dataframe(headers=headers, label=f"Segments by {name}", interactive=False)
            for name in names
        ]
    return outputs


def _only(name: str) -> str:
    return f"only {name}"


def _values(
    gr: Any, found: Sequence[Answer], names: Sequence[str], subtitles: Sequence[Path | None]
) -> list[Any]:
    """Return what the outputs show."""
    values: list[Any] = []
    for answer, name, path in zip(found, names, subtitles, strict=True):
        button = gr.DownloadButton(value=path, interactive=path is not None)
        values += [f"**{name}**: {answer.summary}", answer.heard.text, button]
    if len(found) > 1:
        first, second = (answer.heard.text for answer in found)
        labels = {Side.FIRST: _only(names[0]), Side.SECOND: _only(names[1]), Side.BOTH: None}
        pieces = differences(first, second)
        values.append([(piece.text, labels[piece.side]) for piece in pieces])
    for answer in found:
        segments = answer.heard.segments
        values.append([[f"{s.start:.2f}", f"{s.end:.2f}", s.text.strip()] for s in segments])
    return values


if __name__ == "__main__":
    main(*ARGUMENTS)
