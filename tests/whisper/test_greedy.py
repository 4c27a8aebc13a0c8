"""Our greedy search against transformers' `generate`: the same ids, whatever goes side by side."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from stage_runs import talkative_model_folder
from tiny import SHARED, load_script, tiny_model_folder
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import WhisperTokenizer

from distillery.whisper import checkpoint, decoder_batch, greedy
from distillery.whisper.greedy import GreedyDecoder, Window
from distillery.whisper.windows import Decoding, prompt_arguments

RATE = 16_000
GREEDY = Decoding("ja", "transcribe", timestamps=False, num_beams=1, max_length=24)
NUM_WINDOWS = 9
TOKENIZER = SHARED / "data/whisper_tokenizer"


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """Return a random model that writes something else for each window; some are cut."""
    return checkpoint.load(str(talkative_model_folder(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def features(whisper):
    random = np.random.default_rng(0)
    waves = [random.standard_normal((n + 1) * 4000) * 0.5**n for n in range(NUM_WINDOWS)]
    return whisper.log_mel([wave.astype(np.float32) for wave in waves])


def changed(whisper, **settings):
    """Return the same model with other settings of generation."""
    model = copy.copy(whisper.model)  # the weights are the same
    model.generation_config = copy.deepcopy(model.generation_config)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return replace(whisper, model=model)


def ours(whisper, windows, batch_size=4, steps=1):
    """Return transcripts in the order of the windows, whose keys are numbers."""
    decoder = GreedyDecoder(whisper, batch_size)
    decoder.steps_between_tests = steps
    found = list(decoder.transcribe(windows))
    assert {key for key, _ in found} == {window.key for window in windows}
    assert len(found) == len(windows)
    by_key = dict(found)
    return [by_key[window.key] for window in windows]


@torch.no_grad()
def generated(whisper, window):
    """Return the ids of one window by `generate`, prompt left out, end put on as it came."""
    tokens, how = whisper.tokens, window.decoding
    given = [*window.prompt, *tokens.prefix(how.language, how.task, how.timestamps)]
    most = min(how.max_length + len(window.prompt), whisper.max_label_length)
    ids = whisper.model.generate(
        window.features[None],
        return_timestamps=how.timestamps,
        max_new_tokens=most - len(given),
        force_unique_generate_call=True,
        **({"decoder_input_ids": torch.tensor([given])} if window.prompt else {}),
        **prompt_arguments(tokens, how),
    )[0].tolist()
    return ids[len(window.prompt) :]


def check(whisper, windows, batch_size=4, steps=1):
    """Check ids and truncation of windows against `generate`; return the transcripts."""
    found = ours(whisper, windows, batch_size, steps)
    expected = [generated(whisper, window) for window in windows]
    assert [one.ids for one in found] == expected
    assert [one.truncated for one in found] == [
        ids[-1] != whisper.tokens.end_of_text for ids in expected
    ]
    return found


def windows_of(features, decoding, prompts=()):
    return [
        Window(index, window, decoding, prompt)
        for index, (window, prompt) in enumerate(
            itertools.zip_longest(features, prompts, fillvalue=())
        )
    ]


def prompts_of(whisper, lengths):
    return [[whisper.tokens.start_of_prev, *range(40, 40 + n)] if n else [] for n in lengths]


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("prompted", [False, True])
def test_ids_are_those_of_generate(whisper, features, timestamps, prompted, steps):
    decoding = replace(GREEDY, timestamps=timestamps)
    lengths = [0, 3, 40, 1, 0, 17, 9, 30, 2] if prompted else []
    windows = windows_of(features, decoding, prompts_of(whisper, lengths))
    found = check(whisper, windows, steps=steps)
    assert len({tuple(one.ids) for one in found}) > 4
    assert timestamps or {one.truncated for one in found} == {True, False}


@pytest.mark.parametrize("max_length", [5, 6, 13, 96])
@pytest.mark.parametrize("steps", [1, 8])
def test_the_most_ids(whisper, features, max_length, steps):
    decoding = replace(GREEDY, max_length=max_length)
    prompts = prompts_of(whisper, range(0, 45, 5))
    check(whisper, windows_of(features, decoding, prompts), steps=steps)


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"suppress_tokens": None, "begin_suppress_tokens": None},
        {"suppress_tokens": list(range(50, 90)), "begin_suppress_tokens": list(range(90, 300))},
        {"max_initial_timestamp_index": None},
        {"max_initial_timestamp_index": 3},
    ],
    ids=str,
)
def test_settings_of_generation(whisper, features, settings, timestamps):
    decoding = replace(GREEDY, timestamps=timestamps)
    check(changed(whisper, **settings), windows_of(features, decoding))


def test_an_english_only_model(whisper, features):
    english = changed(whisper, is_multilingual=False)
    del english.model.generation_config.lang_to_id, english.model.generation_config.task_to_id
    english = replace(english, tokens=replace(whisper.tokens, languages={}))
    for timestamps in (False, True):
        decoding = replace(GREEDY, language=None, timestamps=timestamps)
        found = check(english, windows_of(features, decoding))
        assert {one.language for one in found} == {None}


def mixed(whisper, features):
    """Return windows of which each has a language, task, prompt and length of its own."""
    kinds = itertools.product(("ja", "English"), ("transcribe", "translate"), (False, True))
    decodings = [Decoding(*kind, 1, 10 + 3 * n) for n, kind in enumerate(kinds)]
    prompts = prompts_of(whisper, [0, 5, 1, 0, 12, 3, 0, 7])
    parts = zip(features, decodings, prompts, strict=False)
    return [Window(index, *part) for index, part in enumerate(parts)]


def test_languages_tasks_and_prompts_go_side_by_side(whisper, features):
    found = check(whisper, mixed(whisper, features))
    assert [one.language for one in found] == ["ja"] * 4 + ["en"] * 4


def drawn_windows(features, temperature=0.7):
    """Return windows of which what is written is drawn."""
    return [
        Window(f"drawn {index}", window, GREEDY, seed=1000 * index, temperature=temperature)
        for index, window in enumerate(features[:4])
    ]


def test_neither_batch_size_nor_order_nor_steps_change_anything(whisper, features):
    windows = mixed(whisper, features)
    wanted = ours(whisper, windows, batch_size=1)
    random = np.random.default_rng(0)
    for batch_size in range(1, len(windows) + 2):
        for steps in (1, 3):
            order = random.permutation(len(windows))
            found = ours(whisper, [windows[index] for index in order], batch_size, steps)
            for index, one in zip(order, found, strict=True):
                assert one.ids == wanted[index].ids
                assert one.avg_logprob == pytest.approx(wanted[index].avg_logprob, abs=1e-4)
                assert one.no_speech_prob == pytest.approx(wanted[index].no_speech_prob, abs=1e-5)


class Operations(TorchDispatchMode):
    """Stands in for a CUDA graph: records the operations of a step, and replays them as they were.

    Nothing of Python is in a replay, so whatever a step reads must lie in tensors. What would wait
    for the device, or take memory by what the tensors hold, cannot be captured.
    """

    DEPEND_ON_VALUES = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.recorded = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not any(name in str(function) for name in self.DEPEND_ON_VALUES), function
        made = function(*args, **(kwargs or {}))
        self.recorded.append((function, args, kwargs or {}, made))
        return made

    def replay(self):
        now = {}

        def current(value):
            return now.get(id(value), value)

        for function, args, kwargs, made in self.recorded:
            again = function(*tree_map(current, args), **tree_map(current, kwargs))
            leaves = zip(tree_leaves(made), tree_leaves(again), strict=True)
            now.update({id(old): new for old, new in leaves if isinstance(old, torch.Tensor)})


@pytest.fixture
def captures(monkeypatch):
    """Let steps be captured as on CUDA, in small sizes; return the shapes as they are replayed."""
    replayed = []

    def capture(step):
        operations = Operations()
        with operations:
            step()

        def replay():
            if len(done):  # the first time, the operations have just run
                operations.replay()
            done.append(len(operations.recorded))

        done = []
        replayed.append(done)
        return replay

    monkeypatch.setattr(decoder_batch, "on_cuda", lambda whisper: True)
    monkeypatch.setattr(decoder_batch, "CudaCapture", lambda: capture)
    monkeypatch.setattr(decoder_batch, "ROWS_BUCKET", 2)
    monkeypatch.setattr(decoder_batch, "LENGTH_BUCKET", 20)
    return replayed


@pytest.mark.parametrize("steps", [1, 4])
def test_captured_steps_write_the_same(whisper, features, captures, steps):
    """More rows than windows and more keys than positions, and none of Python in a step."""
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(decoder_batch, "on_cuda", lambda whisper: False)
        windows = [*mixed(whisper, features), *drawn_windows(features)]
        wanted = ours(whisper, windows, batch_size=3)
        assert not captures
    found = ours(whisper, windows, 3, steps=steps)
    assert [one.ids for one in found] == [one.ids for one in wanted]
    assert [one.avg_logprob for one in found] == pytest.approx(
        [one.avg_logprob for one in wanted], abs=1e-4
    )
    assert sum(len(times) > 1 for times in captures) > 4  # shapes that were replayed


def test_the_sizes_of_captured_steps(whisper, features, captures, monkeypatch):
    shapes = []
    run = decoder_batch._CapturedSteps.run
    monkeypatch.setattr(
        decoder_batch._CapturedSteps,
        "run",
        lambda self, shape, step: (shapes.append(shape), run(self, shape, step)),
    )
    ours(whisper, mixed(whisper, features), 3, steps=4)
    assert {shape.num_rows for shape in shapes} == {2, 4}
    assert {shape.length for shape in shapes} == {20, 40}


def test_probability_of_no_speech_is_that_behind_the_start(whisper, features):
    windows = mixed(whisper, features)
    for window, one in zip(windows, ours(whisper, windows), strict=True):
        given = torch.tensor([[*window.prompt, whisper.tokens.start_of_transcript]])
        with torch.no_grad():
            logits = whisper.model(window.features[None], decoder_input_ids=given).logits[0, -1]
        wanted = float(logits.softmax(-1)[whisper.tokens.no_speech])
        assert one.no_speech_prob == pytest.approx(wanted, abs=1e-6)
    mute = replace(whisper, tokens=replace(whisper.tokens, no_speech=None))
    assert ours(mute, windows[:1])[0].no_speech_prob is None


def test_windows_are_taken_as_there_is_room_and_leave_as_they_end(whisper, features):
    taken = []

    def source():
        for window in windows_of(features, replace(GREEDY, max_length=12)):
            taken.append(window.key)
            yield window

    stream = GreedyDecoder(whisper, 4).transcribe(source())
    next(stream)
    assert len(taken) < NUM_WINDOWS
    stream.close()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_benchmark_of_orders_counts_the_passes_of_the_decoder(
    whisper, features, monkeypatch, batch_size
):
    num_steps = []
    for name in ("begin", "step"):
        real = getattr(greedy.Batch, name)
        monkeypatch.setattr(
            greedy.Batch, name, lambda *args, real=real: (num_steps.append(1), real(*args))
        )
    found = ours(whisper, windows_of(features, GREEDY), batch_size)
    lengths = [len(one.ids) - 4 for one in found]
    counted = load_script("benchmarks/window_order.py").num_passes(lengths, batch_size)
    assert len(num_steps) == counted


def test_a_decoder_can_be_used_again_and_left(whisper, features):
    windows = windows_of(features, GREEDY)
    wanted = [one.ids for one in ours(whisper, windows)]
    decoder = GreedyDecoder(whisper, 4)
    next(decoder.transcribe(windows))  # and no more of it
    for _ in range(2):
        assert {key: one.ids for key, one in decoder.transcribe(windows)} == dict(enumerate(wanted))


OUT_OF_MEMORY = torch.OutOfMemoryError("injected"), RuntimeError("can't allocate memory: injected")


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["GPU", "CPU"])
@pytest.mark.parametrize("where", ["encode", "step"])
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    whisper, features, monkeypatch, where, error
):
    windows = windows_of(features, GREEDY)
    wanted = [one.ids for one in ours(whisper, windows)]
    sizes = []

    def encode(whisper, group):
        sizes.append(len(group))
        if where == "encode" and len(group) > 2:
            raise error
        return real_encode(whisper, group)

    def step(batch, shape):
        if where == "step" and shape.num_rows > 2:
            raise error
        real_step(batch, shape)

    real_encode, real_step = greedy.encode, greedy.Batch.step
    monkeypatch.setattr(greedy, "encode", encode)
    monkeypatch.setattr(greedy.Batch, "step", step)
    assert [one.ids for one in ours(whisper, windows, 8)] == wanted
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[3:]) <= 2


@pytest.mark.parametrize("error", [*OUT_OF_MEMORY, RuntimeError("a bug")], ids=str)
def test_out_of_memory_for_one_window_is_an_error(whisper, features, monkeypatch, error):
    sizes = []

    def encode(whisper, group):
        sizes.append(len(group))
        raise error

    monkeypatch.setattr(greedy, "encode", encode)
    with pytest.raises(RuntimeError, match=str(error)):
        ours(whisper, windows_of(features, GREEDY))
    assert sizes == ([4, 2, 1] if error in OUT_OF_MEMORY else [4])


def test_a_window_of_nan_harms_no_other(whisper, features):
    wanted = [one.ids for one in ours(whisper, windows_of(features, GREEDY))]
    poisoned = windows_of(features, GREEDY)
    poison = Window(99, torch.full_like(features[0], torch.nan), replace(GREEDY, max_length=8))
    poisoned[3:3] = [poison]
    found = ours(whisper, poisoned, 2)
    assert [one.ids for one in found[:3] + found[4:]] == wanted


def test_a_prompt_that_leaves_no_room_is_refused(whisper, features):
    window = Window("clip", features[0], GREEDY, [whisper.tokens.start_of_prev] * 92)
    with pytest.raises(ValueError, match="window clip: 96 ids of prompt and prefix leave no room"):
        list(GreedyDecoder(whisper, 2).transcribe([window]))


def test_autocast_decides_the_dtype_of_the_cache(whisper, features):
    """As where a model is evaluated while it is trained in bfloat16."""
    decoder = GreedyDecoder(whisper, 4)
    windows = windows_of(features, GREEDY)
    wanted = {key: one.ids for key, one in decoder.transcribe(windows)}
    with torch.autocast("cpu", torch.bfloat16):
        assert len(dict(decoder.transcribe(windows))) == NUM_WINDOWS
        assert decoder._batch.decoder.dtype == torch.bfloat16
    assert {key: one.ids for key, one in decoder.transcribe(windows)} == wanted


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Return a random model with Whisper's own vocabulary, which says something else each time."""
    if not TOKENIZER.is_dir():
        pytest.skip(f"{TOKENIZER} is not there: Whisper's tokenizer")
    folder = tmp_path_factory.mktemp("real")
    tokenizer = WhisperTokenizer.from_pretrained(TOKENIZER)
    tiny_model_folder(folder, tokenizer=tokenizer, d_model=64, decoder_layers=2)
    loaded = checkpoint.load(str(folder))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if weight.ndim > 1 and "embed_positions" not in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
        embeddings = loaded.model.model.decoder.embed_tokens.weight
        embeddings[loaded.tokens.end_of_text] *= 4
    return loaded


@pytest.mark.parametrize("timestamps", [False, True])
def test_whispers_own_vocabulary(real, features, timestamps):
    decoding = replace(GREEDY, timestamps=timestamps, max_length=30)
    windows = windows_of(features, decoding, prompts_of(real, [0, 4, 0, 9]))
    found = check(real, windows)
    assert len({tuple(one.ids) for one in found}) > 4
    assert all(real.tokens.is_timestamp(one.ids[3]) is timestamps for one in found)


def test_the_encoder_takes_as_many_windows_as_a_cpus_caches_hold(whisper, features, monkeypatch):
    sizes = []
    hook = whisper.model.model.encoder.register_forward_pre_hook(
        lambda module, inputs: sizes.append(len(inputs[0]))
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    states = greedy.encode(whisper, list(features))
    monkeypatch.setattr(greedy, "CACHED_NUMBERS", 1)
    few = greedy.encode(whisper, list(features))
    hook.remove()
    assert sizes == [NUM_WINDOWS, 2, 2, 2, 2, 1]
    torch.testing.assert_close(few, states)
