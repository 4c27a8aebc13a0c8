import copy

import pytest
import torch
from tiny import tiny_model_folder
from transformers import AutoTokenizer, GenerationConfig, WhisperProcessor

from distillery.whisper import checkpoint
from distillery.whisper.student import make_student, spaced_layers, student_generation_config

HEADS = [[0, 1], [1, 2], [2, 0], [3, 3]]
SETTINGS = (
    "lang_to_id",
    "task_to_id",
    "no_timestamps_token_id",
    "is_multilingual",
    "suppress_tokens",
    "begin_suppress_tokens",
    "max_initial_timestamp_index",
    "prev_sot_token_id",
    "decoder_start_token_id",
    "max_length",
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    teacher = checkpoint.load(str(tiny_model_folder(folder, encoder_layers=3, decoder_layers=4)))
    teacher.model.generation_config.alignment_heads = copy.deepcopy(HEADS)
    return teacher


@pytest.fixture(scope="module")
def student(teacher):
    return make_student(teacher.model, [0, 2], [0, 3])


@pytest.fixture(scope="module")
def folder(teacher, student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    checkpoint.save(student, teacher.tokenizer, teacher.feature_extractor, folder)
    return folder


@pytest.mark.parametrize(
    ("num_teacher", "num_student", "layers"),
    [
        (32, 2, [0, 31]),
        (32, 1, [31]),
        (4, 1, [3]),
        (1, 1, [0]),
        (4, 2, [0, 3]),
        (4, 3, [0, 1, 3]),
        (12, 3, [0, 5, 11]),
        (32, 4, [0, 10, 20, 31]),
        (32, 32, list(range(32))),
    ],
)
def test_spaced_layers(num_teacher, num_student, layers):
    assert spaced_layers(num_teacher, num_student) == layers


def test_no_layer_is_ever_copied_twice():
    for num_teacher in range(1, 49):
        for num_student in range(1, num_teacher + 1):
            layers = spaced_layers(num_teacher, num_student)
            assert len(set(layers)) == num_student
            assert layers == sorted(layers)
            assert layers[-1] == num_teacher - 1
            assert num_student == 1 or layers[0] == 0


@pytest.mark.parametrize("num_student", [0, -1, 5])
def test_wrong_number_of_layers(num_student):
    with pytest.raises(ValueError, match=rf"student of {num_student} layers .* ask for 1 to 4"):
        spaced_layers(4, num_student)


def layer_weights(model, stack, index):
    return getattr(model.model, stack).layers[index].state_dict()


@pytest.mark.parametrize(
    ("stack", "new", "old"),
    [("encoder", 0, 0), ("encoder", 1, 2), ("decoder", 0, 0), ("decoder", 1, 3)],
)
def test_layers_are_the_teachers_bit_for_bit(teacher, student, stack, new, old):
    copied = layer_weights(student, stack, new)
    original = layer_weights(teacher.model, stack, old)
    assert copied.keys() == original.keys()
    assert all(torch.equal(copied[key], original[key]) for key in copied)


def test_everything_but_the_layers_is_copied_whole(teacher, student):
    ours = {k: v for k, v in student.state_dict().items() if ".layers." not in k}
    theirs = {k: v for k, v in teacher.model.state_dict().items() if ".layers." not in k}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert student.num_parameters() < teacher.model.num_parameters()


def test_student_is_its_own_model(teacher, student):
    assert student.config.encoder_layers == len(student.model.encoder.layers) == 2
    assert student.config.decoder_layers == len(student.model.decoder.layers) == 2
    assert student.config.num_hidden_layers == 2
    assert teacher.model.config.decoder_layers == len(teacher.model.model.decoder.layers) == 4
    assert teacher.model.generation_config.alignment_heads == HEADS
    pointers = {p.data_ptr() for p in teacher.model.parameters()}
    assert pointers.isdisjoint(p.data_ptr() for p in student.parameters())


def test_a_student_with_all_layers_is_its_teacher(teacher):
    twin = make_student(teacher.model, [0, 1, 2], [0, 1, 2, 3]).eval()
    features = torch.randn(1, 80, 400, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[301, 309, 402, 406]])
    with torch.no_grad():
        one = twin(features, decoder_input_ids=ids).logits
        other = teacher.model(features, decoder_input_ids=ids).logits
    assert torch.equal(one, other)


def test_dtype_is_the_teachers(teacher):
    model = copy.deepcopy(teacher.model).to(torch.bfloat16)
    student = make_student(model, [0], [3])
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}


def test_output_embedding_stays_tied(student, folder):
    assert student.proj_out.weight is student.model.decoder.embed_tokens.weight
    model = checkpoint.load(str(folder)).model
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


@pytest.mark.parametrize(
    ("layers", "heads"),
    [
        ([0, 3], [[0, 1], [1, 3]]),
        ([3], [[0, 3]]),
        ([0, 1, 2, 3], HEADS),
        ([1, 2], [[0, 2], [1, 0]]),
    ],
)
def test_alignment_heads_follow_their_layers(teacher, layers, heads):
    config = student_generation_config(teacher.model.generation_config, layers)
    assert config.alignment_heads == heads


def test_alignment_heads_go_where_none_is_left(teacher, tmp_path):
    given = copy.deepcopy(teacher.model.generation_config)
    given.alignment_heads = [[1, 0], [2, 3]]
    config = student_generation_config(given, [0, 3])
    assert not hasattr(config, "alignment_heads")
    config.save_pretrained(tmp_path)
    assert getattr(GenerationConfig.from_pretrained(tmp_path), "alignment_heads", None) is None


def test_a_teacher_without_alignment_heads(teacher):
    given = copy.deepcopy(teacher.model.generation_config)
    del given.alignment_heads
    assert not hasattr(student_generation_config(given, [3]), "alignment_heads")


def test_generation_settings_survive_saving(teacher, folder):
    config = checkpoint.load(str(folder)).model.generation_config
    for name in SETTINGS:
        assert getattr(config, name) == getattr(teacher.model.generation_config, name), name
    assert config.alignment_heads == [[0, 1], [1, 3]]
    assert len(config.lang_to_id) == 99


def test_generation_settings_survive_where_they_came_from_the_model_config(teacher, tmp_path):
    model = copy.deepcopy(teacher.model)
    model.generation_config._from_model_config = True
    student = make_student(model, [0], [3])
    assert not student.generation_config._from_model_config
    checkpoint.save(student, teacher.tokenizer, teacher.feature_extractor, tmp_path)
    reloaded = GenerationConfig.from_pretrained(tmp_path)
    assert reloaded.lang_to_id == teacher.model.generation_config.lang_to_id
    assert reloaded.alignment_heads == [[0, 3]]


def test_every_file_is_there(folder):
    assert {path.name for path in folder.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "normalizer.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }


def test_transformers_own_classes_load_the_folder(teacher, folder):
    processor = WhisperProcessor.from_pretrained(folder)
    assert processor.feature_extractor.nb_max_frames == 400
    for tokenizer in (processor.tokenizer, AutoTokenizer.from_pretrained(folder)):
        assert tokenizer.get_vocab() == teacher.tokenizer.get_vocab()
        assert tokenizer.normalize("Mr. Smith's two dogs") == "mister smith is 2 dogs"


def test_word_timestamps_of_a_reloaded_student(folder):
    """Heads of layers that are not there raise IndexError, or crash other programs."""
    model = checkpoint.load(str(folder), attention="eager").model
    features = torch.randn(1, 80, 400, generator=torch.Generator().manual_seed(0))
    found = model.generate(
        features, language="ja", return_timestamps=True, return_token_timestamps=True,
        max_new_tokens=6,
    )  # fmt: skip
    sequences = found["sequences"] if isinstance(found, dict) else found.sequences
    assert found["token_timestamps"].shape == sequences.shape
