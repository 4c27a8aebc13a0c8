"""Flags of transformers' trainer that say in other words what the training stages do."""

from dataclasses import dataclass, replace
from pathlib import Path

from distillery.cli.arguments import ModelArguments, OutputArguments
from distillery.cli.flags import flag
from distillery.whisper.compute import AUTO

STEPS = "steps"


@dataclass(frozen=True)
class TrainerArguments:
    """Flags of transformers' trainer."""

    bf16: bool = flag(False, "The same as --dtype bfloat16.")
    fp16: bool = flag(False, "The same as --dtype float16.")
    eval_strategy: str | None = flag(
        None,
        "Only `steps` is taken, which changes nothing: with --do_eval, evaluations come every "
        "--eval_steps and at the end.",
        "--evaluation_strategy",
    )
    save_strategy: str | None = flag(
        None, "Only `steps` is taken, which changes nothing: see --save_steps."
    )
    greater_is_better: bool | None = flag(
        None,
        "Only False is taken, which changes nothing: every --metric_for_best_model is better where "
        "it is lower.",
    )
    resume_from_checkpoint: str | None = flag(
        None,
        "Checkpoint of another run to begin with: its weights, its optimiser and its place. With "
        "checkpoints of its own a run always goes on from the newest; True changes nothing.",
        resumable=True,
    )
    save_best_total_limit: int = flag(
        1, "Only 1 is taken, which changes nothing: best/ holds one model."
    )
    do_normalize_eval: bool = flag(
        True, "Only True is taken: texts are scored as the language's normaliser has them."
    )
    length_column_name: str | None = flag(
        None,
        "Changes nothing: the rows of an update are grouped by their labels, without a column.",
    )
    use_auth_token: bool = flag(
        False,
        "Changes nothing: the login of `hf auth login`, or HF_TOKEN, is always used.",
    )
    model_index_name: str | None = flag(
        None, "Title of the model card; default: the name of --output_dir."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        found = [
            f"--{name} must be {STEPS}, got {value!r}: say after how many updates, with {instead}"
            for name, value, instead in (
                ("eval_strategy", self.eval_strategy, "--eval_steps"),
                ("save_strategy", self.save_strategy, "--save_steps"),
            )
            if value not in (None, STEPS)
        ]
        if self.greater_is_better:
            found.append("--greater_is_better must be False: loss, WER and CER are better if lower")
        if not self.do_normalize_eval:
            found.append(
                "--do_normalize_eval must be True: raw error rates are those of "
                "run_short_form_eval.py"
            )
        if self.save_best_total_limit != 1:
            found.append("--save_best_total_limit must be 1: best/ holds one model")
        begun_with = self.begun_with
        if begun_with is not None and not begun_with.is_dir():
            found.append(f"--resume_from_checkpoint {begun_with}: there is no such folder")
        if self.bf16 and self.fp16:
            found.append("--bf16 and --fp16: give one of them")
        return found

    @property
    def begun_with(self) -> Path | None:
        """The checkpoint that a run without any of its own begins with; None for none."""
        is_named = self.resume_from_checkpoint not in (None, "True", "False")
        return Path(str(self.resume_from_checkpoint)) if is_named else None

    @property
    def dtype(self) -> str | None:
        """The dtype that is asked for in the trainer's way; None if none is."""
        if self.bf16:
            return "bfloat16"
        return "float16" if self.fp16 else None


def dtype_problems(model_args: ModelArguments, args: TrainerArguments) -> list[str]:
    """Return a message if two flags name two dtypes."""
    if args.dtype is None or model_args.dtype in (AUTO, args.dtype):
        return []
    return [f"--dtype {model_args.dtype} and {'--bf16' if args.bf16 else '--fp16'}: give one"]


def with_dtype(model_args: ModelArguments, args: TrainerArguments) -> ModelArguments:
    """Return the flags of the model with the dtype that is asked for in the trainer's way."""
    return model_args if args.dtype is None else replace(model_args, dtype=args.dtype)


def refuse_lost_checkpoint(args: TrainerArguments, output_args: OutputArguments) -> None:
    """Raise ValueError if starting over would throw away the checkpoint to begin with."""
    begun_with, folder = args.begun_with, Path(output_args.output_dir).resolve()
    if begun_with is None or not output_args.overwrite_output_dir:
        return
    if begun_with.resolve().is_relative_to(folder):
        raise ValueError(
            f"--resume_from_checkpoint {begun_with}: --overwrite_output_dir would throw it away: "
            "leave that out to go on from the newest, or name another --output_dir"
        )
