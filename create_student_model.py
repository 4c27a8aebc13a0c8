r"""Make a small student from some of a teacher's layers.

Reads   a Whisper checkpoint.
Writes  a Whisper checkpoint with fewer layers, copied maximally spaced from the teacher's.

    python create_student_model.py --teacher_checkpoint openai/whisper-large-v3 \
        --decoder_layers 2 --save_dir my-student-init

On a laptop:

    python create_student_model.py --teacher_checkpoint openai/whisper-tiny \
        --decoder_layers 1 --save_dir my-student-init
"""

from dataclasses import dataclass

from distillery.cli.arguments import license_problems
from distillery.cli.flags import (
    DRY_RUN,
    VERIFY,
    at_least,
    flag,
    one_of,
    parse,
    repeated,
    required,
)
from distillery.whisper.compute import DTYPES


@dataclass(frozen=True)
class StudentArguments:
    """Teacher, student and output folder."""

    teacher_checkpoint: str = required("Whisper checkpoint to copy from.", "-m", is_input=True)
    save_dir: str = required("Folder to write to.", "-o", "--output_dir", resumable=True)
    encoder_layers: int | None = flag(None, "Encoder layers of the student; default: all.")
    encoder_layers_numbers: list[int] = repeated(  # noqa: RUF009 (a field with a factory)
        "Which of the teacher's encoder layers these are, as --decoder_layers_numbers."
    )
    decoder_layers: int | None = flag(
        None, "Decoder layers of the student; default: those of --decoder_layers_numbers, else 2."
    )
    decoder_layers_numbers: list[int] = repeated(  # noqa: RUF009 (a field with a factory)
        "Which of the teacher's decoder layers these are, from 0, or from the end as -1; default: "
        "spaced maximally."
    )
    dtype: str = flag("float32", f"Dtype of its weights: {', '.join(DTYPES)}.")
    cache_dir: str | None = flag(None, "Folder for files fetched from the Hub.", resumable=True)
    push_to_hub: bool = flag(
        False,
        "Upload the student to the Hub, as a private repository; login and name are checked at "
        "the start. On a complete run it only uploads.",
        resumable=True,
    )
    hub_model_id: str | None = flag(
        None,
        "Hub repository: given, the student is uploaded there, with or without --push_to_hub; "
        "default: the name of the folder.",
        resumable=True,
    )
    hub_public: bool = flag(False, "Make the uploaded repository public.", resumable=True)
    license: str | None = flag(
        None, "Licence of the student, for its card, as the Hub names it: mit.", resumable=True
    )
    verify: bool = flag(False, VERIFY, resumable=True)
    dry_run: bool = flag(False, DRY_RUN, resumable=True)

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *at_least(self, "encoder_layers", 1),
            *at_least(self, "decoder_layers", 1),
            *_count_problems(self),
            *one_of(self, "dtype", DTYPES),
            *license_problems(self.license),
        ]


def _count_problems(args: StudentArguments) -> list[str]:
    return [
        f"--{stack}_layers_numbers names {len(numbers)}, --{stack}_layers {wanted}"
        for stack, numbers, wanted in (
            ("encoder", args.encoder_layers_numbers, args.encoder_layers),
            ("decoder", args.decoder_layers_numbers, args.decoder_layers),
        )
        if len(numbers) not in (0, wanted) and wanted is not None
    ]


GROUPS = (StudentArguments,)


if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__)

import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch

from distillery.cli import forecast, hub
from distillery.cli.runtime import (
    end_stage,
    log_end,
    log_start,
    set_up_logging,
    stage_run,
)
from distillery.storage.checkpoints import sealed_folder
from distillery.storage.ownership import taken_name
from distillery.storage.publication import public_names
from distillery.storage.runs import Run
from distillery.whisper import checkpoint, model_card
from distillery.whisper.student import make_student, spaced_layers

logger = logging.getLogger(__name__)


def main(args: StudentArguments) -> None:
    """Make the student, check that it runs, and save it."""
    set_up_logging()
    teacher_checksum = {args.teacher_checkpoint: checkpoint.fingerprint(args.teacher_checkpoint)}
    run = stage_run(
        "create_student_model",
        (args,),
        Path(args.save_dir),
        teacher_checksum,
        remedy="name another folder",
    )
    if args.dry_run:
        lines = _forecast(args, run, run.was_made("--save_dir"))
        sys.stdout.write(forecast.text_of(run, lines))
        return
    hub.check(run)
    with taken_name(run.folder, "--save_dir"):
        if not run.was_made("--save_dir"):
            _make(args, run)
        end_stage(run)


def _make(args: StudentArguments, run: Run) -> None:
    run.refuse_damaged_inputs()
    teacher = checkpoint.load(args.teacher_checkpoint, args.dtype, cache_dir=args.cache_dir)
    checkpoint.check_finite(teacher.model, args.teacher_checkpoint)
    encoder, decoder = _copied_layers(args, teacher)
    layers = f"layers {encoder} of the encoder and {decoder} of the decoder"
    log_start(run, None, args.teacher_checkpoint, args.dtype, layers)
    student = make_student(teacher.model, encoder, decoder)
    _check_forward(student)
    _save(student, teacher, run, encoder, decoder)
    log_end(
        run,
        f"a student of {student.num_parameters() / 1e6:.1f} M parameters; its teacher has "
        f"{teacher.num_parameters / 1e6:.1f} M",
        f"python run_distillation.py -m {run.folder} --teacher {args.teacher_checkpoint} "
        "-d FILTERED_DATASET -o student",
    )


def _forecast(args: StudentArguments, run: Run, is_made: bool) -> list[forecast.Line]:
    """Say what this run would do and take."""
    teacher = checkpoint.load_outline(args.teacher_checkpoint, args.dtype, cache_dir=args.cache_dir)
    encoder, decoder = _copied_layers(args, teacher)
    with torch.device("meta"):
        outline = replace(teacher, model=make_student(teacher.model, encoder, decoder))
    needed = outline.num_bytes
    return [
        forecast.model_line(args.teacher_checkpoint, teacher),
        forecast.model_line("student", outline),
        ("layers", f"of the teacher: {encoder} of the encoder, {decoder} of the decoder"),
        ("memory", f"{forecast.size(needed + teacher.num_bytes)} for both models"),
        forecast.disk_line(run.folder, needed, "the student"),
        ("resume", "complete: nothing to do" if is_made else "nothing is there of an earlier run"),
    ]


def _copied_layers(
    args: StudentArguments, teacher: checkpoint.Whisper
) -> tuple[list[int], list[int]]:
    config = teacher.model.config
    num_encoder = args.encoder_layers or config.encoder_layers
    num_decoder = args.decoder_layers or 2
    return (
        _layers("encoder", config.encoder_layers, num_encoder, args.encoder_layers_numbers),
        _layers("decoder", config.decoder_layers, num_decoder, args.decoder_layers_numbers),
    )


def _layers(stack: str, num_teacher: int, num_student: int, numbers: list[int]) -> list[int]:
    """Return the layers of a stack that are copied: the named ones, else spaced maximally."""
    if numbers:
        return _named_layers(stack, num_teacher, numbers)
    try:
        return spaced_layers(num_teacher, num_student)
    except ValueError as error:
        raise ValueError(f"--{stack}_layers: {error}") from error


def _named_layers(stack: str, num_teacher: int, numbers: list[int]) -> list[int]:
    wrong = [number for number in numbers if not -num_teacher <= number < num_teacher]
    if wrong:
        raise ValueError(
            f"--{stack}_layers_numbers {wrong[0]}: the teacher has {num_teacher} {stack} layers, 0 "
            f"to {num_teacher - 1}"
        )
    named = [number % num_teacher for number in numbers]
    if len(set(named)) < len(named):
        raise ValueError(f"--{stack}_layers_numbers {numbers}: a layer is copied once")
    return named


@torch.inference_mode()
def _check_forward(student: checkpoint.WhisperForConditionalGeneration) -> None:
    """Run the student once on silence.

    Raises:
        ValueError: it gives numbers that are not finite.
    """
    config = student.config
    silence = torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions)
    start = torch.tensor([[config.decoder_start_token_id]])
    logits = student.eval()(silence.to(student.dtype), decoder_input_ids=start).logits
    if not logits.isfinite().all():
        raise ValueError("the student's forward pass gives numbers that are not finite")


def _save(
    student: checkpoint.WhisperForConditionalGeneration,
    teacher: checkpoint.Whisper,
    run: Run,
    encoder: list[int],
    decoder: list[int],
) -> None:
    """Write the checkpoint with its card and its record, all of it or nothing."""
    teacher_name = public_names(run.arguments["teacher_checkpoint"])
    card = (
        f"A student of `{teacher_name}` before training: teacher layers {encoder} of the encoder "
        f"and {decoder} of the decoder."
    )
    header = model_card.header(
        run.arguments["teacher_checkpoint"], license=run.arguments["license"]
    )
    with sealed_folder(run.folder) as temporary:
        checkpoint.save(student, teacher.tokenizer, teacher.feature_extractor, temporary)
        checkpoint.write_card(temporary, card, run.folder.resolve().name, header)
        written = replace(run, folder=temporary)
        written.write_config()
        written.outputs.add_all()
        written.finish(
            encoder_layers=encoder,
            decoder_layers=decoder,
            num_parameters=student.num_parameters(),
        )


if __name__ == "__main__":
    main(*ARGUMENTS)
