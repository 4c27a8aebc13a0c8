"""Evaluation of a model while it is trained, which a request to stop cuts off."""

import logging
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from distillery.data.collators import Batch
from distillery.storage.checkpoints import BEST, sealed_folder
from distillery.storage.outputs import Outputs
from distillery.storage.stops import StopRequest
from distillery.text.error_rates import character_errors, word_errors
from distillery.text.labels import plain_texts
from distillery.text.tokens import Prompt
from distillery.training.disk import enough_disk
from distillery.training.loop import Progress, log_bad_clips
from distillery.training.losses import SUMS, LossSums, means_of
from distillery.training.monitor import log_values
from distillery.training.rows import BatchLoader, EvalSet
from distillery.training.settings import Evaluation
from distillery.training.sharding import autocast, whole_learner
from distillery.training.step import Learner
from distillery.whisper import checkpoint
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.memory import enough_memory
from distillery.whisper.sampling import seed_of
from distillery.whisper.windows import Decoding, transcribe_windows

logger = logging.getLogger(__name__)

_LOSSES = {"ce": "CE", "kl": "KL", "mse": "MSE"}  # by their names in the log


NUM_EXAMPLES = 8  # transcripts that the trackers show


@dataclass(frozen=True)
class EvalScores:
    """What a model is worth on one set.

    Attributes:
        losses: mean loss, CE and KL of a token, and MSE where hidden states are compared.
        num_bad: clips that cannot be used.
        error_rates: `wer` and `cer` in percent; empty where nothing was transcribed.
        num_scored: clips with a reference, which these are over.
        examples: reference and transcript of the first clips.
    """

    losses: Mapping[str, float]
    num_bad: int
    error_rates: Mapping[str, float]
    num_scored: int
    examples: Sequence[tuple[str, str]] = ()

    def values(self) -> dict[str, float]:
        """Return all figures of the log by name."""
        return {**self.losses, "num_bad": self.num_bad, **self.error_rates}

    def __str__(self) -> str:
        losses = self.losses.items()
        parts = [", ".join(f"{_LOSSES.get(name, name)} {value:.4f}" for name, value in losses)]
        if self.error_rates:
            wer, cer = self.error_rates["wer"], self.error_rates["cer"]
            parts.insert(0, f"WER {wer:.1f} %, CER {cer:.1f} % over {self.num_scored} clips")
        if self.num_bad:
            parts.append(f"{self.num_bad} clips cannot be used")
        return "; ".join(parts)


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a learner on some datasets, and keeps the best model.

    Attributes:
        accelerator: of this launch.
        learner: as it is trained.
        sets: what to evaluate on; none evaluates nothing.
        settings: when, and with what.
        loader: makes batches.
        folder: of the run.
        reported: what was logged of clips that cannot be used: no clip is named twice.
    """

    accelerator: Accelerator
    learner: Learner
    sets: Sequence[EvalSet]
    settings: Evaluation
    loader: BatchLoader
    folder: Path
    reported: set[str] = field(default_factory=set)

    def is_due(self, progress: Progress, num_updates: int) -> bool:
        """Tell whether the last update is to be evaluated, and was not.

        Args:
            progress: of the run.
            num_updates: of the whole run; the last one is always evaluated.
        """
        step, every = progress.step, self.settings.every
        is_wanted = step == num_updates or (every is not None and step % every == 0)
        return bool(self.sets) and is_wanted and step > progress.evaluated

    def keep_best(self, progress: Progress, num_updates: int, stop: StopRequest) -> None:
        """Evaluate where that is due, and save the model where it is the best so far.

        A request to stop, of any process, ends it: it is due again then.
        """
        if not self.is_due(progress, num_updates):
            return
        whole = replace(self, learner=whole_learner(self.learner))
        scores = whole.scores(progress.step, stop)
        if scores is None:
            return
        mean = self._mean(scores)
        is_better = math.isfinite(mean) and (progress.best is None or mean < progress.best)
        progress.stale = 0 if is_better else progress.stale + 1
        progress.is_over = progress.stale == self.settings.patience
        if is_better:
            progress.best = mean
            if self.accelerator.is_main_process:
                with (
                    enough_disk(self.folder),
                    sealed_folder(self.folder / BEST, Outputs(self.folder)) as folder,
                ):
                    whole.learner.student.save(folder)
        progress.evaluated = progress.step
        if progress.is_over:
            logger.info("no better model in %d evaluations: training ends", progress.stale)
        self.accelerator.wait_for_everyone()

    def result(self, progress: Progress, last: Whisper) -> Whisper:
        """Return the model that a run leaves: the last one, or on request the best."""
        if not self.settings.ends_with_best or progress.best is None:
            return last
        return checkpoint.load(str(self.folder / BEST))

    def scores(self, step: int, stop: StopRequest) -> dict[str, EvalScores] | None:
        """Evaluate on every set, and log it; return what came out by the sets' names.

        Args:
            step: updates done.
            stop: a request of any process ends it; None is returned then.

        Raises:
            ValueError: no clip of a set can be decoded.
        """
        scores_by_name = {}
        for eval_set in self.sets:
            scores = evaluate(self, eval_set, stop)
            if scores is None:
                logger.info("told to stop in the evaluation of update %d", step)
                return None
            scores_by_name[eval_set.name] = scores
            kind = f"eval {eval_set.name}"
            examples = {"examples": table_of(scores.examples)} if scores.examples else {}
            log_values(self.accelerator, self.folder, step, kind, scores.values(), examples)
            logger.info("update %d, %s: %s", step, eval_set.name, scores)
        return scores_by_name

    def step(self, *inputs: Any) -> LossSums:
        """Run the learner's step in the launch's dtype, though no update wraps it."""
        with autocast(self.accelerator):
            losses: LossSums = self.learner.step(*inputs)
        return losses

    def _mean(self, scores: Mapping[str, EvalScores]) -> float:
        """Return the metric over all sets, each with its weight."""
        values = [self._metric(name, each) for name, each in scores.items()]
        weights = [eval_set.weight for eval_set in self.sets]
        weighted = zip(weights, values, strict=True)
        return sum(weight * value for weight, value in weighted) / sum(weights)

    def _metric(self, name: str, scores: EvalScores) -> float:
        metric = self.settings.metric
        if metric not in scores.values():
            raise ValueError(f"{name} has no references to score: use --metric_for_best_model loss")
        return scores.values()[metric]


@dataclass
class _Part:
    """What one process found out about a set: sums of the losses, bad clips, and transcripts.

    `pairs` are references and transcripts, and `prompts` what was asked for.
    """

    sums: Tensor
    bad: list[str] = field(default_factory=list)
    pairs: list[tuple[str, str]] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)


@torch.no_grad()
def evaluate(evaluator: Evaluator, eval_set: EvalSet, stop: StopRequest) -> EvalScores | None:
    """Evaluate on one set; all processes share its rows, and return the same.

    Returns:
        The scores, or None if a process was told to stop.

    Raises:
        ValueError: none of its clips can be decoded.
    """
    accelerator, learner = evaluator.accelerator, evaluator.learner
    part = _Part(torch.zeros(len(SUMS), dtype=torch.float64, device=accelerator.device))
    with (
        learner.step.stacks.run_as_they_are(),
        _interruptible(learner, stop),
        closing(_batches(evaluator, eval_set)) as batches,
    ):
        for batch in batches:
            with suppress(_Interrupted):
                _evaluate_batch(evaluator, batch, part)
            if _any_is_told(accelerator, stop):
                return None
    num_bad = _report_bad_clips(evaluator, part.bad)
    losses = means_of(accelerator.reduce(part.sums, "sum").tolist())
    if losses is None:
        raise ValueError(f"{eval_set.name}: none of its clips can be decoded")
    pairs, prompts = gather_object(part.pairs), gather_object(part.prompts)
    error_rates, num_scored = error_rates_of(*_texts_to_compare(pairs, prompts, learner.student))
    return EvalScores(losses, num_bad, error_rates, num_scored, pairs[:NUM_EXAMPLES])


def table_of(examples: Sequence[tuple[str, str]]) -> str:
    """Return references and transcripts as a table in Markdown, which TensorBoard shows."""
    # A row of the table is one line.
    cells = [[" ".join(text.split()).replace("|", "\\|") for text in pair] for pair in examples]
    return "\n".join(
        f"| {' | '.join(row)} |" for row in [["Reference", "Written"], ["---"] * 2, *cells]
    )


class _Interrupted(Exception):
    """The process was told to stop while its model ran."""


@contextmanager
def _interruptible(learner: Learner, stop: StopRequest) -> Iterator[None]:
    """Let a learner evaluate, and give up at its decoder's next token when it is told to stop."""

    def give_up(*_: Any) -> None:
        if stop.is_set:
            raise _Interrupted

    handle = learner.student.model.model.decoder.embed_tokens.register_forward_pre_hook(give_up)
    learner.step.eval()
    try:
        yield
    finally:
        learner.step.train()
        handle.remove()


def _any_is_told(accelerator: Accelerator, stop: StopRequest) -> bool:
    """Tell whether any process is told to stop; all must ask."""
    told = torch.tensor(int(stop.is_set), device=accelerator.device)
    return bool(accelerator.reduce(told, "sum"))


def _batches(evaluator: Evaluator, eval_set: EvalSet) -> Generator[Batch | None, None, None]:
    """Yield this process's batches; where another has one more, None is the last."""
    process, num_processes = (
        evaluator.accelerator.process_index,
        evaluator.accelerator.num_processes,
    )
    batch_size = evaluator.settings.batch_size
    keys = eval_set.keys(batch_size, process, num_processes)
    yield from evaluator.loader.batches(eval_set.rows, keys)
    if len(keys) < len(eval_set.keys(batch_size, 0, num_processes)):
        yield None


def _evaluate_batch(evaluator: Evaluator, batch: Batch | None, part: _Part) -> None:
    """Add to a process's part what one batch says."""
    if batch is None:
        return
    part.bad += [f"{row_id} {reason}" for row_id, reason in batch.bad]
    if not batch.ids:
        return
    work = f"the evaluation of {len(batch.ids)} rows at once"
    with enough_memory(work, "lower --per_device_eval_batch_size"):
        batch = evaluator.learner.with_features(batch)
        part.sums += evaluator.learner.losses(batch, evaluator.step).to_tensor()
        if evaluator.settings.transcribe:
            assert batch.decoder_input_ids is not None
            tokens = evaluator.learner.student.tokens
            prompts = [tokens.asked(ids) for ids in batch.decoder_input_ids.tolist()]
            transcripts = _transcribe(evaluator, batch, prompts)
            part.pairs += zip(batch.references, transcripts, strict=True)
            part.prompts += prompts


def _report_bad_clips(evaluator: Evaluator, bad: Sequence[str]) -> int:
    """Log the clips of all processes that were not logged before; return how many are bad."""
    reports = gather_object(list(bad))
    if evaluator.accelerator.is_main_process:
        log_bad_clips([report for report in reports if report not in evaluator.reported])
    evaluator.reported.update(reports)
    return len(reports)


def _transcribe(evaluator: Evaluator, batch: Batch, prompts: Sequence[Prompt]) -> list[str]:
    settings, student = evaluator.settings, evaluator.learner.student
    assert batch.input_features is not None
    decodings = [
        Decoding(
            *prompt,
            settings.timestamps,
            settings.num_beams,
            settings.max_length,
            settings.temperature_fallback,
        ).fitted_to(student)
        for prompt in prompts
    ]
    with autocast(evaluator.accelerator):
        seeds = [seed_of(row_id) for row_id in batch.ids]
        transcripts = transcribe_windows(student, batch.input_features, decodings, seeds=seeds)
    return plain_texts([each.ids for each in transcripts], student.tokens, student.tokenizer)


Pairs = list[tuple[str, str]]  # reference and transcript of each clip


def _texts_to_compare(
    pairs: Pairs, prompts: Sequence[Prompt], student: Whisper
) -> tuple[Pairs, Pairs]:
    """Return references and transcripts as each one's language is normalised, and without that."""
    known = {prompt: student.normalizer(*prompt) for prompt in set(prompts)}
    normalizers = [known[prompt] for prompt in prompts]
    normalized = [(n(a), n(b)) for n, (a, b) in zip(normalizers, pairs, strict=True)]
    raw = [(n.raw(a), n.raw(b)) for n, (a, b) in zip(normalizers, pairs, strict=True)]
    return normalized, raw


def error_rates_of(normalized: Pairs, raw: Pairs) -> tuple[dict[str, float], int]:
    """Return WER and CER in percent, and over how many clips they are.

    A clip without a reference does not count; where there is no other, there are no rates.

    Args:
        normalized: (reference, transcript) of each clip.
        raw: the same, as they are written, for `wer_ortho`: distil-whisper's name for the WER
            without normalisation.
    """
    places = [place for place, (reference, _) in enumerate(normalized) if reference]
    if not places:
        return {}, 0
    references, transcripts = zip(*(normalized[place] for place in places), strict=True)
    as_written = zip(*(raw[place] for place in places), strict=True)
    rates = {
        "wer": word_errors(references, transcripts).error_rate,
        "cer": character_errors(references, transcripts).error_rate,
        "wer_ortho": word_errors(*as_written).error_rate,
    }
    return rates, len(places)
