"""The training loop that fine-tuning and distillation share.

The two stages differ in one thing: whether a teacher says something about each batch. Which rows,
in which order, updates, checkpoints, evaluation and logs are the same, and are here.
"""

import gc
import json
import logging
import math
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from distillery.cli.arguments import (
    DecodingArguments,
    ModelArguments,
    OutputArguments,
    RunArguments,
)
from distillery.cli.runtime import stage_run
from distillery.cli.training_arguments import TrainDataArguments, TrainingArguments
from distillery.data import sources
from distillery.data.collators import Batch, SpeechCollator
from distillery.data.examples import StreamedRows, TrainingRows, usable_rows
from distillery.data.filters import TranscriptFilter
from distillery.data.order import BatchPlan, Order
from distillery.storage import checkpoints
from distillery.storage.files import RUN_RECORD, read_json, replacing, write_json
from distillery.storage.ledger import Ledger
from distillery.storage.runs import Run
from distillery.storage.stops import StopRequest, stop_request
from distillery.text.error_rates import error_rates
from distillery.text.labels import IGNORED, LabelRule, plain_text
from distillery.text.normalizers import Normalizer
from distillery.text.tokens import language_code
from distillery.training.losses import LossWeights
from distillery.training.optim import make_optimizer, make_schedule
from distillery.training.seeding import seed_everything
from distillery.training.step import Lesson, StudentStep
from distillery.whisper import checkpoint
from distillery.whisper.windows import Decoding, transcribe_windows

logger = logging.getLogger(__name__)

LOSS_LOG = "train_log.jsonl"
OWNED = (
    checkpoints.CHECKPOINTS,
    checkpoints.BEST,
    f"{checkpoints.BEST}.tmp",
    LOSS_LOG,
    "README.md",
    "model*.safetensors*",
)
MAX_NON_FINITE = 3  # updates in a row
STOPPED = 143  # exit status of a run that SIGTERM stopped, as the shell has it: 128 + 15

# What a resumed run must keep, however its processes share it; named as a message shows it.
GLOBAL_BATCH = "per_device_train_batch_size * gradient_accumulation_steps * num_processes"

Teach = Callable[[Tensor, Tensor], Lesson]


@dataclass
class Progress:
    """All that a resumed run must know beside weights and optimiser.

    Attributes:
        step: updates done.
        window: sums since the last log line: loss, CE, KL, tokens.
        best: lowest evaluation metric so far.
        num_bad: clips left out by any process because they could not be decoded.
        num_seen: clips asked for by all processes.
    """

    step: int = 0
    window: list[float] = field(default_factory=lambda: [0.0] * 4)
    best: float | None = None
    num_bad: int = 0
    num_seen: int = 0


@dataclass(frozen=True)
class EvalSet:
    """A dataset to evaluate on while training."""

    name: str
    rows: TrainingRows


@dataclass(frozen=True)
class Job:
    """Everything that stays the same through a training run."""

    accelerator: Accelerator
    student: checkpoint.Whisper
    teach: Teach | None
    step: nn.Module  # the student with its loss, as prepared for this launch
    optimizer: Any
    schedule: LRScheduler
    collate: SpeechCollator
    rule: LabelRule
    normalizer: Normalizer
    decoding: Decoding
    eval_sets: list[EvalSet]
    args: TrainingArguments
    run_args: RunArguments
    run: Run


def training_run(
    accelerator: Accelerator,
    stage: str,
    groups: Sequence[Any],
    models: Sequence[str],
    data_args: TrainDataArguments,
    args: TrainingArguments,
    output_args: OutputArguments,
) -> Run:
    """Describe a training run, which `open_run` then takes the output folder for.

    Args:
        accelerator: of this launch.
        stage: the stage's name.
        groups: all flags.
        models: checkpoints that the run starts from; local ones must stay as they are.
        data_args, args, output_args: three of those groups.
    """
    datasets = {str(spec): sources.fingerprint(spec) for spec in data_args.train_specs()}
    return stage_run(
        stage,
        groups,
        Path(output_args.output_dir),
        {**datasets, **{name: checkpoint.fingerprint(name) for name in models}},
        owned=OWNED,
        derived={GLOBAL_BATCH: batch_plan(accelerator, args).global_size},
    )


def load_student(
    accelerator: Accelerator, model_args: ModelArguments, args: TrainingArguments, run: Run
) -> checkpoint.Whisper:
    """Load the model to be trained, from the run's newest checkpoint where there is one.

    Its weights are float32, whatever the computation's number type: AdamW on bfloat16 weights
    loses small updates.
    """
    newest = checkpoints.newest_checkpoint(run.folder)
    student = checkpoint.load(
        str(newest or model_args.model_name_or_path),
        "float32",
        model_args.attn_type,
        None if newest else model_args.model_revision,
        model_args.cache_dir,
    )
    if args.freeze_encoder:
        student.model.model.encoder.requires_grad_(False)
    if args.gradient_checkpointing:
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
    student.model.to(accelerator.device)
    return student


def train(
    accelerator: Accelerator,
    student: checkpoint.Whisper,
    teach: Teach | None,
    weights: LossWeights,
    data_args: TrainDataArguments,
    decoding_args: DecodingArguments,
    args: TrainingArguments,
    run_args: RunArguments,
    run: Run,
) -> None:
    """Train a student until the last update, going on from the newest checkpoint.

    Args:
        accelerator: of this launch.
        student: float32 weights, on the accelerator's device; those of the newest checkpoint where
            there is one.
        teach: what says something about each batch; None for plain fine-tuning.
        weights: of the loss.
        data_args, decoding_args, args, run_args: the flags.
        run: the run's folder and record, which is completed here.
    """
    finished = _train(
        accelerator, student, teach, weights, data_args, decoding_args, args, run_args, run
    )
    _leave_together(accelerator)
    if not finished:
        raise SystemExit(STOPPED)  # not 0: a recipe must not go on with this model


def _leave_together(accelerator: Accelerator) -> None:
    """Let go of the process group, on all processes at once.

    The wrapper that shares the model's gradients must be gone before, so `_train` has returned: its
    reducer would else let go of the group last, which joins gloo's threads while it holds Python's
    lock, and hangs where one of them waits for that lock to forget the last collective. (Seen with
    torch 2.13.)
    """
    accelerator.wait_for_everyone()
    gc.collect()  # should the wrapper be in a cycle
    accelerator.end_training()


def _train(
    accelerator: Accelerator,
    student: checkpoint.Whisper,
    teach: Teach | None,
    weights: LossWeights,
    data_args: TrainDataArguments,
    decoding_args: DecodingArguments,
    args: TrainingArguments,
    run_args: RunArguments,
    run: Run,
) -> bool:
    """Train as `train` says; return False if SIGTERM asked to stop before the end."""
    rule = _label_rule(student, decoding_args, args, run_args.seed)
    normalizer = student.normalizer(decoding_args.language, decoding_args.task)
    rows, order, ledger = _training_rows(data_args, args, rule, normalizer)
    plan = batch_plan(accelerator, args)
    num_rows, num_updates = length(args, plan, order.rows_per_epoch if order else None)
    module = StudentStep(student.model, weights)
    optimizer = make_optimizer(
        module, args.learning_rate, args.weight_decay, (args.adam_beta1, args.adam_beta2)
    )
    schedule = make_schedule(optimizer, args.lr_scheduler_type, args.warmup_steps, num_updates)
    progress = _resume(run.folder, optimizer, schedule, accelerator)
    step, optimizer = accelerator.prepare(module, optimizer)
    job = Job(
        accelerator=accelerator,
        student=student,
        teach=teach,
        step=step,
        optimizer=optimizer,
        schedule=schedule,
        collate=SpeechCollator(student.log_mel, student.tokens),
        rule=rule,
        normalizer=normalizer,
        decoding=_decoding(decoding_args, args, student),
        eval_sets=_eval_sets(data_args, rule, normalizer) if args.do_eval else [],
        args=args,
        run_args=run_args,
        run=run,
    )
    _start_trackers(job)
    if args.do_train:
        _announce(job, plan, num_updates, num_rows, progress)
        batches = _micro_batches(job, rows, order, plan, progress.step, num_updates, num_rows)
        with closing(batches):
            finished = _update_until(job, batches, progress, num_updates)
        if not finished:
            return False
        _check_bad(progress, data_args.max_bad_fraction)
    _conclude(job, progress, ledger)
    return True


def batch_plan(accelerator: Accelerator, args: TrainingArguments) -> BatchPlan:
    """Return how this launch cuts a global batch."""
    return BatchPlan(
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        accelerator.num_processes,
    )


def _label_rule(
    student: checkpoint.Whisper, decoding: DecodingArguments, args: TrainingArguments, seed: int
) -> LabelRule:
    student.tokens.prefix(decoding.language, decoding.task, True)  # fails by name if they misfit
    return LabelRule(
        tokens=student.tokens,
        tokenizer=student.tokenizer,
        language=decoding.language,
        task=decoding.task,
        max_positions=student.max_label_length,
        timestamp_probability=args.timestamp_probability,
        condition_on_prev_probability=args.condition_on_prev_probability,
        seed=seed,
    )


def _decoding(
    decoding: DecodingArguments, args: TrainingArguments, student: checkpoint.Whisper
) -> Decoding:
    return Decoding(
        decoding.language,
        decoding.task,
        decoding.return_timestamps,
        decoding.generation_num_beams,
        args.generation_max_length,
    ).fitted_to(student)


def _training_rows(
    data_args: TrainDataArguments,
    args: TrainingArguments,
    rule: LabelRule,
    normalizer: Normalizer,
) -> tuple[Any, Order | None, Ledger | None]:
    """Return the rows, their order, and the account of those left out; a stream has only rows."""
    limits = TranscriptFilter(
        normalizer=normalizer,
        wer_threshold=args.wer_threshold,
        max_label_length=min(args.max_label_length, rule.max_positions),
    )
    specs = data_args.train_specs()
    samples = [spec.samples for spec in specs]
    weights = None if None in samples else tuple(float(x) for x in samples if x is not None)
    if data_args.streaming:
        streams = [sources.load(spec) for spec in specs]
        return StreamedRows(streams, weights, rule, limits), None, None
    found = [usable_rows(spec, rule, limits) for spec in specs]
    rows = TrainingRows([part for part, _ in found], rule)
    ledger = sum((account for _, account in found), Ledger())
    return rows, Order(rows.sizes, weights, rule.seed), ledger


def _eval_sets(
    data_args: TrainDataArguments, rule: LabelRule, normalizer: Normalizer
) -> list[EvalSet]:
    limits = TranscriptFilter(
        normalizer=normalizer, max_label_length=rule.max_positions, drop_truncated=False
    )
    # Read whole even where training rows are streamed: the same rows are needed again and again.
    specs = [replace(spec, streaming=False) for spec in data_args.eval_specs()]
    if not specs:
        raise ValueError("--do_eval needs --eval_dataset_name")
    return [
        EvalSet(str(spec), TrainingRows([usable_rows(spec, rule, limits)[0]], rule))
        for spec in specs
    ]


def length(args: TrainingArguments, plan: BatchPlan, rows_per_epoch: int | None) -> tuple[int, int]:
    """Return how many rows a run trains on in all, and in how many updates.

    Args:
        args: the flags.
        plan: how a global batch is cut.
        rows_per_epoch: None for a stream, which does not say how long it is.

    Raises:
        ValueError: nothing says how many updates there are.
    """
    if args.max_steps > 0:
        return args.max_steps * plan.global_size, args.max_steps
    if rows_per_epoch is None:
        raise ValueError("--streaming needs --max_steps: a stream does not say how long it is")
    num_rows = math.ceil(args.num_train_epochs * rows_per_epoch)
    return num_rows, math.ceil(num_rows / plan.global_size)


def _announce(
    job: Job, plan: BatchPlan, num_updates: int, num_rows: int, progress: Progress
) -> None:
    trained = sum(p.numel() for p in job.step.parameters() if p.requires_grad)
    logger.info(
        "%d updates of %d rows (%d per process x %d accumulated x %d processes), %d rows in all; "
        "%.2f M of %.2f M parameters are trained; starting at update %d",
        num_updates,
        plan.global_size,
        plan.per_device,
        plan.accumulation,
        plan.num_processes,
        num_rows,
        trained / 1e6,
        job.student.num_parameters / 1e6,
        progress.step,
    )


def _start_trackers(job: Job) -> None:
    if job.accelerator.log_with:
        plain = {
            name: value if isinstance(value, int | float | str | bool) else str(value)
            for name, value in job.run.arguments.items()
        }
        job.accelerator.init_trackers(job.run_args.wandb_project or job.run.stage, plain)


# --- batches --------------------------------------------------------------------------------------


def _micro_batches(
    job: Job,
    rows: Any,
    order: Order | None,
    plan: BatchPlan,
    first_update: int,
    num_updates: int,
    num_rows: int,
) -> Generator[Batch, None, None]:
    """Yield this process's micro-batches from an update on; to close it ends its workers."""
    process = job.accelerator.process_index
    if order is None:
        rows.place(plan, first_update, process)
        yield from DataLoader(rows, batch_size=None, collate_fn=job.collate)
        return
    spans = plan.spans(first_update, num_updates, num_rows, process)
    yield from DataLoader(
        rows,
        batch_sampler=(order[span] for span in spans),
        collate_fn=job.collate,
        num_workers=job.run_args.dataloader_num_workers,
        worker_init_fn=_outlive_one_sigterm,
        pin_memory=job.accelerator.device.type == "cuda",
    )


def _outlive_one_sigterm(_worker: int) -> None:
    """Let a worker go on when all processes of a job are told to stop: its owner must save first.

    The owner ends it when it is done.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _tensors(job: Job, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, decoder inputs and targets on the device.

    A process without any row takes part with an empty lesson: the others wait for its gradients.
    """
    device = job.accelerator.device
    if batch.input_features is None:
        log_mel = job.student.log_mel
        shape = (1, log_mel.num_mels, log_mel.num_frames)
        start = torch.tensor([[job.student.tokens.start_of_transcript]], device=device)
        return torch.zeros(shape, device=device), start, torch.full_like(start, IGNORED)
    assert batch.decoder_input_ids is not None and batch.targets is not None
    return (
        batch.input_features.to(device, non_blocking=True),
        batch.decoder_input_ids.to(device, non_blocking=True),
        batch.targets.to(device, non_blocking=True),
    )


# --- updates --------------------------------------------------------------------------------------


def _update_until(job: Job, batches: Iterator[Batch], progress: Progress, num_updates: int) -> bool:
    """Make updates until the last one; return False if SIGTERM asked to stop before."""
    args = job.args
    non_finite = 0
    saved = progress.step  # the run went on from there, or starts at 0 with nothing to lose
    job.step.train()
    window = torch.tensor(progress.window, dtype=torch.float64)
    if not job.accelerator.is_main_process:
        window.zero_()
    window = window.to(job.accelerator.device)
    bar = tqdm(
        total=num_updates,
        initial=progress.step,
        desc="training",
        unit=" updates",
        disable=not job.accelerator.is_local_main_process,
    )
    with stop_request() as stop:
        while progress.step < num_updates:
            micro = list(islice(batches, args.gradient_accumulation_steps))
            num_tokens, num_seen, num_bad, num_stops = _agree(job, micro, stop)
            if num_stops:
                if progress.step > saved:
                    _save_checkpoint(job, progress, window)
                logger.info("stopped by SIGTERM at update %d: start again to go on", progress.step)
                return False
            seed_everything(job.rule.seed, progress.step, job.accelerator.process_index)
            sums, norm = _update(job, micro, num_tokens)
            progress.step += 1
            if math.isfinite(norm):
                non_finite = 0
                window += sums
            elif job.accelerator.scaler is None:
                # With float16 an overflow is no fault: the gradient scaler finds its scale by it.
                non_finite += 1
                _note_non_finite(micro, progress.step, non_finite)
            progress.num_seen += num_seen
            progress.num_bad += num_bad
            _name_bad(micro)
            bar.update()
            last = progress.step == num_updates
            if last or progress.step % job.run_args.logging_steps == 0:
                window = _log_losses(job, window, progress, norm, bar)
            if job.eval_sets and (last or _is_due(progress.step, args.eval_steps)):
                _evaluate_and_keep_best(job, progress)
            if last or progress.step % args.save_steps == 0:
                window = _save_checkpoint(job, progress, window)
                saved = progress.step
    bar.close()
    return True


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _agree(job: Job, micro: Sequence[Batch], stop: StopRequest) -> list[int]:
    """Return sums over all processes: tokens, clips, undecodable clips, requests to stop."""
    num_bad = sum(len(batch.bad) for batch in micro)
    own = [
        sum(batch.num_tokens for batch in micro),
        sum(len(batch.ids) for batch in micro) + num_bad,
        num_bad,
        int(stop.is_set),
    ]
    sums = job.accelerator.reduce(torch.tensor(own, device=job.accelerator.device), "sum")
    return [int(total) for total in sums.tolist()]


def _update(job: Job, micro: Sequence[Batch], num_tokens: int) -> tuple[Tensor, float]:
    """Make one update; return this process's sums (loss, CE, KL, tokens) and the gradient's norm.

    Losses are summed over the tokens of the whole global batch and divided once: a mean of the
    micro-batches' means would weigh tokens of short batches more. Processes average their
    gradients, hence the factor. A non-finite gradient changes nothing.
    """
    accelerator = job.accelerator
    scale = accelerator.num_processes / max(num_tokens, 1)
    sums = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    for index, batch in enumerate(micro):
        features, inputs, targets = _tensors(job, batch)
        lesson = job.teach(features, inputs) if job.teach else None
        is_last = index == len(micro) - 1
        with nullcontext() if is_last else accelerator.no_sync(job.step):
            losses = job.step(features, inputs, targets, lesson)
            accelerator.backward(losses.total * scale)
        parts = [losses.total.detach(), losses.ce, losses.kl]
        sums[:3] += torch.stack(parts).double()
        sums[3] += losses.num_tokens
    norm = float(accelerator.clip_grad_norm_(job.step.parameters(), job.args.max_grad_norm))
    # With float16 the gradient scaler skips the update itself, and lowers its scale.
    if math.isfinite(norm) or accelerator.scaler is not None:
        job.optimizer.step()
    job.schedule.step()
    job.optimizer.zero_grad()
    return sums, norm


def _note_non_finite(micro: Sequence[Batch], step: int, in_a_row: int) -> None:
    ids = [row_id for batch in micro for row_id in batch.ids]
    logger.error("update %d is skipped: its gradient is not finite; rows %s", step, ids)
    if in_a_row == MAX_NON_FINITE:
        raise ValueError(
            f"{MAX_NON_FINITE} updates in a row had gradients that are not finite; the weights are "
            "as before them: look at the rows named above, or lower --learning_rate"
        )


def _name_bad(batches: Sequence[Batch]) -> None:
    for batch in batches:
        for row_id, reason in batch.bad:
            # Other processes than the main one are heard only from this level on.
            logger.error("clip %s %s", row_id, reason)


def _check_bad(progress: Progress, max_bad_fraction: float) -> None:
    if progress.num_bad > max_bad_fraction * progress.num_seen:
        raise ValueError(
            f"{progress.num_bad} of {progress.num_seen} clips could not be decoded; that is more "
            f"than --max_bad_fraction {max_bad_fraction:g} allows"
        )


# --- logs -----------------------------------------------------------------------------------------


def _log_losses(job: Job, window: Tensor, progress: Progress, norm: float, bar: tqdm) -> Tensor:
    """Log the means since the last line, if any update counted; return an empty window."""
    total, ce, kl, tokens = job.accelerator.reduce(window, "sum").tolist()
    if not tokens:  # all were skipped: a loss of 0 would be a lie
        return window
    values = {
        "loss": total / tokens,
        "ce": ce / tokens,
        "kl": kl / tokens,
        "grad_norm": norm if math.isfinite(norm) else None,  # JSON has no NaN
        "learning_rate": job.schedule.get_last_lr()[0],
        "tokens": int(tokens),
    }
    bar.set_postfix(loss=f"{values['loss']:.4f}")
    _log(job, progress.step, "train", values)
    return torch.zeros_like(window)


def _log(job: Job, step: int, kind: str, values: Mapping[str, float | None]) -> None:
    if job.accelerator.is_main_process:
        with (job.run.folder / LOSS_LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
    known = {f"{kind}/{name}": value for name, value in values.items() if value is not None}
    job.accelerator.log(known, step=step)


def _cut_log(path: Path, step: int) -> None:
    """Forget what was logged after the checkpoint that the run goes on from."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        with replacing(path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


# --- evaluation -----------------------------------------------------------------------------------


def _evaluate_and_keep_best(job: Job, progress: Progress) -> None:
    """Evaluate on all sets, and save the model where it is the best so far."""
    name = job.args.metric_for_best_model or ("cer" if job.args.predict_with_generate else "loss")
    values = []
    for eval_set in job.eval_sets:
        found = _evaluate(job, eval_set)
        if name not in found:
            raise ValueError(
                f"{eval_set.name} has no references to score: use --metric_for_best_model loss"
            )
        values.append(found[name])
        _log(job, progress.step, f"eval {eval_set.name}", found)
        logger.info("update %d, %s: %s", progress.step, eval_set.name, _rounded(found))
    mean = sum(values) / len(values)
    if math.isfinite(mean) and (progress.best is None or mean < progress.best):
        progress.best = mean
        if job.accelerator.is_main_process:
            with checkpoints.sealed_folder(job.run.folder / checkpoints.BEST) as folder:
                _save_model(job, folder)
    job.accelerator.wait_for_everyone()


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


@torch.no_grad()
def _evaluate(job: Job, eval_set: EvalSet) -> dict[str, float]:
    """Return the mean losses over a set, and error rates where transcripts are asked for."""
    accelerator = job.accelerator
    step = accelerator.unwrap_model(job.step)
    step.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    texts: list[tuple[str, str]] = []
    num_bad = torch.zeros((), dtype=torch.int64, device=accelerator.device)
    for batch in _eval_batches(job, eval_set.rows):
        _name_bad([batch])
        num_bad += len(batch.bad)
        if batch.input_features is None:
            continue
        features, inputs, targets = _tensors(job, batch)
        lesson = job.teach(features, inputs) if job.teach else None
        with accelerator.autocast():
            losses = step(features, inputs, targets, lesson)
        sums[:3] += torch.stack([losses.total, losses.ce, losses.kl]).double()
        sums[3] += losses.num_tokens
        if job.args.predict_with_generate:
            with accelerator.autocast():
                written = transcribe_windows(job.student, features, job.decoding)
            pairs = zip(batch.references, written, strict=True)
            texts += [(text, _text(job, transcript.ids)) for text, transcript in pairs]
    step.train()
    total, ce, kl, tokens = accelerator.reduce(sums, "sum").tolist()
    if not tokens:
        raise ValueError(f"{eval_set.name}: none of its clips can be decoded")
    found = {
        "loss": total / tokens,
        "ce": ce / tokens,
        "kl": kl / tokens,
        "num_bad": int(accelerator.reduce(num_bad, "sum")),
    }
    return {**found, **_error_rates(gather_object(texts), job.normalizer)}


def _eval_batches(job: Job, rows: TrainingRows) -> Iterator[Batch]:
    size = job.args.per_device_eval_batch_size
    starts = range(0, sum(rows.sizes), size)
    mine = starts[job.accelerator.process_index :: job.accelerator.num_processes]
    keys = [[(i, 0) for i in range(start, min(start + size, sum(rows.sizes)))] for start in mine]
    return iter(
        DataLoader(
            rows,
            batch_sampler=keys,
            collate_fn=job.collate,
            num_workers=job.run_args.dataloader_num_workers,
            worker_init_fn=_outlive_one_sigterm,
        )
    )


def _text(job: Job, ids: Sequence[int]) -> str:
    return plain_text(ids, job.student.tokens, job.student.tokenizer)


def _error_rates(pairs: list[tuple[str, str]], normalizer: Normalizer) -> dict[str, float]:
    """Return WER and CER in percent after normalisation; empty where nothing was transcribed."""
    texts = [(normalizer(reference), normalizer(text)) for reference, text in pairs]
    known = [(reference, text) for reference, text in texts if reference]
    if not known:
        return {}
    references, predictions = (list(side) for side in zip(*known, strict=True))
    return error_rates(references, predictions)


# --- saving and resuming --------------------------------------------------------------------------


def _save_model(job: Job, folder: Path) -> None:
    model = job.accelerator.unwrap_model(job.step).student
    if job.student.tokens.is_multilingual:
        # Whoever runs the model without naming a language gets the one it was trained on.
        model.generation_config.language = language_code(str(job.decoding.language))
        model.generation_config.task = job.decoding.task
    checkpoint.save(model, job.student.tokenizer, job.student.feature_extractor, folder)


def _save_checkpoint(job: Job, progress: Progress, window: Tensor) -> Tensor:
    """Save all that a resumed run needs; return the window as that run will have it."""
    accelerator = job.accelerator
    window = accelerator.reduce(window, "sum")
    progress.window = window.tolist()
    if accelerator.is_main_process:
        path = checkpoints.checkpoint_path(job.run.folder, progress.step)
        with checkpoints.sealed_folder(path) as folder:
            _save_model(job, folder)
            state = {
                "optimizer": job.optimizer.state_dict(),
                "schedule": job.schedule.state_dict(),
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
            }
            torch.save(state, folder / checkpoints.OPTIMIZER)
            write_json(folder / checkpoints.PROGRESS, asdict(progress))
        checkpoints.rotate(job.run.folder, progress.step, job.args.save_total_limit)
    else:
        window.zero_()
    accelerator.wait_for_everyone()
    return window


def _resume(
    folder: Path, optimizer: torch.optim.Optimizer, schedule: LRScheduler, accelerator: Accelerator
) -> Progress:
    """Load optimiser, schedule and progress of the newest checkpoint; the weights are loaded."""
    newest = checkpoints.newest_checkpoint(folder)
    if newest is None:
        if accelerator.is_main_process:
            _cut_log(folder / LOSS_LOG, 0)  # of a run that was killed before its first checkpoint
        return Progress()
    state = torch.load(newest / checkpoints.OPTIMIZER, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])
    progress = Progress(**read_json(newest / checkpoints.PROGRESS))
    if accelerator.is_main_process:
        _cut_log(folder / LOSS_LOG, progress.step)
    logger.info("going on from %s", newest)
    return progress


def _card(job: Job) -> str:
    flags = job.run.arguments
    teacher = flags.get("teacher_model_name_or_path")
    return (
        f"Made by `{job.run.stage}` from `{flags['model_name_or_path']}`"
        + (f", following `{teacher}`" if teacher else "")
        + f", on `{flags['train_dataset_name']}`. `{RUN_RECORD}` holds every flag and version."
    )


def _conclude(job: Job, progress: Progress, ledger: Ledger | None) -> None:
    """Save the trained model, or evaluate the given one, and complete the record."""
    if not job.args.do_train:
        for eval_set in job.eval_sets:
            found = _evaluate(job, eval_set)
            _log(job, progress.step, f"eval {eval_set.name}", found)
            logger.info("%s: %s", eval_set.name, _rounded(found))
    elif job.accelerator.is_main_process:
        _save_model(job, job.run.folder)
        checkpoint.write_card(job.run.folder, _card(job))
        results = {"updates": progress.step, "best": progress.best, "num_bad": progress.num_bad}
        job.run.finish(**results, ledger=ledger.to_dict() if ledger else None)
