"""What a model is worth while it is trained; whole runs are in tests/stages."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model_folder, tone_manifest

from distillery.data.collators import SpeechCollator
from distillery.data.specs import DatasetSpec
from distillery.storage.outputs import JOURNALS
from distillery.storage.stops import StopRequest
from distillery.training import validation
from distillery.training.loop import Progress
from distillery.training.losses import LossWeights
from distillery.training.rows import BatchLoader, eval_sets
from distillery.training.settings import Evaluation, LabelSettings
from distillery.training.step import Learner, StudentStep
from distillery.training.validation import EvalScores, Evaluator, error_rates_of, evaluate
from distillery.whisper import checkpoint


def test_error_rates_are_percent():
    pairs = [("ねこ", "ねこ"), ("いぬとさかな", "いぬとさかに"), ("", "うるさい")]
    raw = [("ねこ。", "ねこ"), ("いぬとさかな", "いぬとさかに"), ("。", "うるさい")]
    rates, num_scored = error_rates_of(pairs, raw)
    assert rates == {
        "wer": pytest.approx(50),
        "cer": pytest.approx(100 / 8),
        "wer_ortho": pytest.approx(100),
    }
    assert num_scored == 2
    assert error_rates_of([], []) == ({}, 0)
    assert error_rates_of([("", "x")], [("。", "x")]) == ({}, 0)


LOSSES = {"loss": 1.25, "ce": 1.5, "kl": 0.125}


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        (
            EvalScores(LOSSES, 0, {"wer": 14.549, "cer": 11.983471074380166}, 200),
            "WER 14.5 %, CER 12.0 % over 200 clips; loss 1.2500, CE 1.5000, KL 0.1250",
        ),
        (EvalScores(LOSSES, 0, {}, 0), "loss 1.2500, CE 1.5000, KL 0.1250"),
        (
            EvalScores(LOSSES, 3, {}, 0),
            "loss 1.2500, CE 1.5000, KL 0.1250; 3 clips cannot be used",
        ),
    ],
)
def test_scores_in_words(scores, wanted):
    assert str(scores) == wanted


# --- a request to stop ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return a student that writes as long as it may, and a set of five clips."""
    folder = tmp_path_factory.mktemp("validation")
    tiny_model_folder(folder / "model", encoder_layers=1, decoder_layers=1, window_s=1)
    rows = tone_manifest(folder / "rows.jsonl", 5)
    student = checkpoint.load(str(folder / "model"))
    settings = LabelSettings(0.2, 0.2, 96, None, seed=0)
    return student, eval_sets([DatasetSpec(str(rows), language="ja")], student, settings)


@pytest.fixture
def evaluator(parts, tmp_path):
    student, sets = parts
    return Evaluator(
        Accelerator(cpu=True),
        Learner(student, StudentStep(student.model, LossWeights()).train(), None),
        sets,
        Evaluation(3, 2, "loss", True, timestamps=False, num_beams=1, max_length=40),
        BatchLoader(SpeechCollator(student.log_mel, student.tokens), 0, pin_memory=False),
        tmp_path,
    )


@pytest.fixture
def stopped_at(parts):
    """Set a request at a call of the decoder; return the list that grows with every call."""
    calls, handles = [], []

    def stopped_at(stop, call):
        def count(*_):
            calls.append(1)
            stop.is_set = len(calls) == call or stop.is_set

        embedding = parts[0].model.model.decoder.embed_tokens
        handles.append(embedding.register_forward_hook(count))
        return calls

    yield stopped_at
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("call", [1, 2, 7, 45, 60])
def test_a_stop_is_heard_at_the_decoders_next_token(evaluator, stopped_at, call):
    stop = StopRequest()
    calls = stopped_at(stop, call)
    assert evaluate(evaluator, evaluator.sets[0], stop) is None
    assert len(calls) == call
    assert evaluator.learner.step.training
    stop.is_set = False
    assert evaluate(evaluator, evaluator.sets[0], stop) is not None
    assert len(calls) > 100  # nothing listens any more


def test_what_is_drawn_does_not_depend_on_the_batch(evaluator, monkeypatch):
    """Random weights are never sure, so that with the fallback all transcripts are drawn."""
    drawn = []
    monkeypatch.setattr(
        validation, "error_rates_of", lambda pairs, _: drawn.append(pairs) or ({}, 0)
    )
    for more in (
        {},
        {"temperature_fallback": True},
        {"temperature_fallback": True, "batch_size": 5},
    ):
        settings = replace(evaluator.settings, **more)
        evaluate(replace(evaluator, settings=settings), evaluator.sets[0], StopRequest())
    greedy, pairs, more_at_once = map(sorted, drawn)
    assert pairs == more_at_once
    assert [text for _, text in pairs] != [text for _, text in greedy]
    assert len({text for _, text in pairs}) == len(pairs) == 5


def test_a_stop_of_another_process_ends_this_ones_evaluation(evaluator, stopped_at, monkeypatch):
    calls = stopped_at(StopRequest(), -1)
    monkeypatch.setattr(Accelerator, "reduce", lambda self, told, how: told + 1)
    assert evaluate(evaluator, evaluator.sets[0], StopRequest()) is None
    assert 0 < len(calls) < 60  # one batch of three


@pytest.mark.parametrize(("process", "wanted"), [(0, [2, 1]), (1, [2, None])])
def test_processes_ask_each_other_equally_often(evaluator, monkeypatch, process, wanted):
    """Five clips in batches of two: the second of two processes has one batch less."""
    monkeypatch.setattr(Accelerator, "process_index", process)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    batches = validation._batches(evaluator, evaluator.sets[0])
    assert [batch and len(batch.ids) for batch in batches] == wanted


def test_a_stopped_evaluation_is_due_again(evaluator):
    stop, progress = StopRequest(), Progress(3)
    stop.is_set = True
    evaluator.keep_best(progress, 9, stop)
    assert progress == Progress(3) and evaluator.is_due(progress, 9)
    assert not list(evaluator.folder.iterdir())
    stop.is_set = False
    evaluator.keep_best(progress, 9, stop)
    assert (progress.evaluated, progress.best) == (3, pytest.approx(7.5, abs=0.2))
    assert not evaluator.is_due(progress, 9)
    names = sorted(path.name for path in evaluator.folder.iterdir())
    assert names == [JOURNALS, "best", "train_log.jsonl"]


NAN = float("nan")


@pytest.mark.parametrize(
    ("losses", "patience", "stale", "over"),
    [
        ([3, 2, 1], 1, [0, 0, 0], None),
        ([3, 4, 2, 5, 2], 2, [0, 1, 0, 1, 2], 4),
        ([3, 4], 1, [0, 1], 1),
        ([NAN, NAN], 2, [1, 2], 1),
        ([3, 4, 5], None, [0, 1, 2], None),
    ],
)
def test_training_ends_after_evaluations_without_a_better_model(
    evaluator, monkeypatch, losses, patience, stale, over
):
    monkeypatch.setattr(Evaluator, "is_due", lambda *_: True)
    evaluator = replace(evaluator, settings=replace(evaluator.settings, patience=patience))
    progress, found = Progress(), []
    for step, loss in enumerate(losses):
        progress.step = step
        scores = {"rows": EvalScores({"loss": loss}, 0, {}, 0)}
        monkeypatch.setattr(Evaluator, "scores", lambda *_, scores=scores: scores)
        evaluator.keep_best(progress, 9, StopRequest())
        found.append(progress.stale)
        assert progress.is_over is (step == over)
    assert found == stale


def test_the_best_model_has_the_lowest_weighted_mean(evaluator, monkeypatch):
    one = evaluator.sets[0]
    sets = [replace(one, name="small", weight=1.0), replace(one, name="large", weight=3.0)]
    evaluator = replace(evaluator, sets=sets)
    monkeypatch.setattr(Evaluator, "is_due", lambda *_: True)
    progress, found = Progress(), []
    for step, losses in enumerate([(4.0, 2.0), (1.0, 2.6), (9.0, 0.2)]):
        progress.step = step
        each = zip(("small", "large"), losses, strict=True)
        scores = {name: EvalScores({"loss": loss}, 0, {}, 0) for name, loss in each}
        monkeypatch.setattr(Evaluator, "scores", lambda *_, scores=scores: scores)
        evaluator.keep_best(progress, 9, StopRequest())
        found.append((progress.best, progress.stale))
    assert found == [(2.5, 0), (pytest.approx(2.2), 0), (pytest.approx(2.2), 1)]


@pytest.mark.parametrize(
    ("step", "evaluated", "every", "wanted"),
    [
        (0, 0, 3, False),
        (2, 0, 3, False),
        (3, 0, 3, True),
        (3, 3, 3, False),
        (6, 3, 3, True),
        (8, 0, None, False),
        (9, 0, None, True),
        (9, 9, None, False),
    ],
)
def test_when_an_evaluation_is_due(step, evaluated, every, wanted):
    settings = SimpleNamespace(every=every)
    one, none = (Evaluator(None, None, sets, settings, None, None) for sets in (["a set"], []))
    progress = Progress(step, evaluated=evaluated)
    assert one.is_due(progress, 9) is wanted
    assert not none.is_due(progress, 9)


def test_an_evaluation_out_of_memory_names_rows_and_flag(evaluator, monkeypatch):
    monkeypatch.setattr(Learner, "losses", lambda *_: torch.empty(10**16))
    with pytest.raises(ValueError) as error:
        evaluate(evaluator, evaluator.sets[0], StopRequest())
    said = str(error.value)
    assert said.startswith("the evaluation of 2 rows at once needs more memory than there is: ")
    assert "--per_device_eval_batch_size" in said
    assert evaluator.learner.step.training


def test_the_examples_of_a_tracker_are_a_row_each():
    lines = validation.table_of([("one\ntwo", "a | b")]).split("\n")
    assert lines[2:] == ["| one two | a \\| b |"]
