from exported import clips_of, original_texts
from stage_runs import talkative_model_folder
from tiny import SENTENCES, load_script

from distillery.whisper import checkpoint


def test_a_model_in_whispers_vocabulary_writes_the_same(tmp_path):
    folder = talkative_model_folder(tmp_path / "model", seed=5, decoder_layers=2)
    load_script("scripts/demo/whisper_sized.py").main(
        ["--model", str(folder), "--output_dir", str(tmp_path / "sized")]
    )
    model, sized = checkpoint.load(str(folder)), checkpoint.load(str(tmp_path / "sized"))
    config = sized.model.config
    assert (config.vocab_size, config.decoder_ffn_dim) == (51865, 4 * config.d_model)
    assert sized.tokens.end_of_text == 50257

    for sentence in SENTENCES:
        ids = model.tokenizer.encode(sentence, add_special_tokens=False)
        assert sized.tokenizer.encode(sentence, add_special_tokens=False) == ids
    # It bars special ids, which the new one leaves to the improbability of what nobody speaks.
    sized.model.generation_config.suppress_tokens = [
        *range(sized.tokens.start_of_transcript, sized.tokens.no_timestamps),
        *range(model.tokens.end_of_text, 50257),
    ]
    texts = original_texts(model, clips_of(4))
    assert len(set(texts)) > 1
    assert original_texts(sized, clips_of(4)) == texts
