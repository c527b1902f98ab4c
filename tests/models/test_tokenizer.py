"""Tokenizers: the ids of transformers, from a checkpoint's own files."""

import json
import pathlib

import numpy as np
import pytest

from experiments.parity import clip, siglip
from guidejax.models.tokenizer import load_clip, load_siglip

from .common import close, reference


def test_clip_s_is_its_original():
    close(clip.CASES["clip-tokenizer"](*reference("clip-tokenizer")), 0)


def test_siglip_s_is_its_original():
    close(siglip.CASES["siglip-tokenizer"](*reference("siglip-tokenizer")), 0)


@pytest.fixture
def about():
    return reference("clip-tokenizer")[1]


def test_one_file_is_as_good_as_two(tmp_path, about):
    clip.write_vocabulary(tmp_path, about, "!")
    first = load_clip(tmp_path)
    first.backend.enable_padding(length=5)
    first.backend.enable_truncation(3)
    first.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.json").unlink()
    second = load_clip(tmp_path)
    first.backend.no_padding()
    first.backend.no_truncation()
    tokens = second(about["texts"])
    np.testing.assert_array_equal(tokens, first(about["texts"]))
    assert tokens.shape == (len(about["texts"]), 77)
    assert tokens.dtype == np.int32


def test_a_long_text_keeps_its_end(tmp_path, about):
    clip.write_vocabulary(tmp_path, about, "<|endoftext|>")
    encode = load_clip(tmp_path, length=6)
    end = about["vocab"]["<|endoftext|>"]
    long, short, empty = encode(["cat " * 20, "cat", ""])
    cat, begin = about["vocab"]["cat</w>"], about["vocab"]["<|startoftext|>"]
    assert long.tolist() == [begin, cat, cat, cat, cat, end]
    assert short.tolist() == [begin, cat, end, end, end, end]
    assert empty.tolist() == [begin, end, end, end, end, end]
    assert encode("cat", length=3).tolist() == [[begin, cat, end]]
    assert encode([]).shape == (0, 6)
    with pytest.raises(ValueError, match="length is 1; expected at least 2"):
        encode("cat", length=1)
    with pytest.raises(ValueError, match="3 among the texts; expected strings"):
        encode(["cat", 3])


def test_special_tokens_given_as_objects(tmp_path, about):
    clip.write_vocabulary(tmp_path, about, "!")
    (tmp_path / "special_tokens_map.json").unlink()
    settings = {"pad_token": {"content": "!", "special": True}, "model_max_length": 10**30}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    encode = load_clip(tmp_path)
    assert (encode.pad, encode.length) == (0, 77)
    without = {k: v for k, v in about["vocab"].items() if k != "<|startoftext|>"}
    (tmp_path / "vocab.json").write_text(json.dumps(without))
    with pytest.raises(ValueError, match=r"has no token '<\|startoftext\|>'"):
        load_clip(tmp_path)


def test_siglip_s_rows(tmp_path):
    about = reference("siglip-tokenizer")[1]
    (tmp_path / "tokenizer.json").write_text(about["file"], encoding="utf-8")
    encode = load_siglip(tmp_path)
    row = encode("a cat, a cat")[0]
    assert row.shape == (64,)
    assert (encode.begin, encode.end, encode.pad) == (None, 1, 0)
    assert np.array_equal(row, encode("A CAT, a Cat")[0])
    assert not np.array_equal(row, encode("a cat a cat")[0])
    assert encode("cat " * 100)[0, -1] == 1


def test_siglip_1_loses_punctuation_and_pads_by_the_end(tmp_path):
    from tokenizers import Tokenizer, models, normalizers

    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -1.0), *((c, -2.0) for c in "acott")]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.save(str(tmp_path / "tokenizer.json"))
    encode = load_siglip(tmp_path, length=8)
    assert not encode.punctuation
    rows = encode(["A  cat!", "a cat"])
    np.testing.assert_array_equal(rows[0], rows[1])
    assert rows[0, -1] == 1


def test_a_folder_without_a_vocabulary_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected vocab.json with merges.txt, or"):
        load_clip(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected tokenizer.json"):
        load_siglip(pathlib.Path(tmp_path))
