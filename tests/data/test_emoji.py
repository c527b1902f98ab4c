"""The emoji: their names, what is drawn of them, and who sees what."""

import collections
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from guidejax import data
from guidejax.data import emoji

COPY = pathlib.Path(__file__).parents[2] / "experiments" / "emoji" / "data"
LISTED = """\
# Version: 15.0
# group: Smileys & Emotion
# subgroup: face-smiling
1FAE0                              ; fully-qualified     # x E14.0 melting face
263A                               ; unqualified         # x E0.6 smiling face
# group: People & Body
# subgroup: person-sport
1F3CC 1F3FD 200D 2640 FE0F         ; fully-qualified     # x E4.0 woman golfing: medium skin tone
"""
ANNOTATIONS = """<?xml version="1.0" encoding="UTF-8"?>
<ldml><annotations>
<annotation cp="😀">face | grin</annotation>
<annotation cp="😀" type="tts">grinning face</annotation>
</annotations></ldml>"""


def name(caption, group="People & Body", subgroup="person"):
    return emoji.Name("?", caption, group, subgroup)


@pytest.fixture(scope="module")
def splits():
    """Every example of the copy in the repository, by split."""
    builder = tfds.builder_from_directory(COPY / "emoji" / "32" / "1.0.0")
    found = {}
    for split in ("train", "composed", "select", "report"):
        found[split] = []
        for example in builder.as_data_source(split):
            text = {k: v.decode() for k, v in example.items() if isinstance(v, bytes)}
            found[split].append({**example, **text})
    return found


@pytest.mark.parametrize(
    ("caption", "base", "tone", "gender", "hair"),
    [
        ("woman: light skin tone, red hair", "woman: red hair", "light", "woman", "red"),
        ("man: bald", "man: bald", "none", "man", "bald"),
        ("firefighter: dark skin tone", "firefighter", "dark", "none", "none"),
        ("kiss: person, person, light skin tone, dark skin tone", "kiss", "two", "person", "none"),
        ("kiss: light skin tone", "kiss", "light", "none", "none"),
        ("woman and man holding hands", "woman and man holding hands", "none", "none", "none"),
        ("family: man, woman, boy", "family: man, woman, boy", "none", "none", "none"),
    ],
)  # fmt: skip
def test_what_a_caption_says(caption, base, tone, gender, hair):
    found = name(caption)
    assert found.base == base
    assert found.attributes == {"tone": tone, "gender": gender, "hair": hair, "kind": "person"}


def test_kinds():
    kind = lambda *args: name(*args).attributes["kind"]
    assert kind("flag: Ghana", "Flags", "country-flag") == "flag"
    assert kind("one-thirty", "Travel & Places", "time") == "clock"
    assert kind("twelve o’clock", "Travel & Places", "time") == "clock"
    assert kind("keycap: #", "Symbols", "keycap") == "keycap"
    assert kind("crescent moon", "Travel & Places", "sky & weather") == "thing"


@pytest.mark.parametrize(
    ("caption", "pair"),
    [
        ("woman: dark skin tone, red hair", "dark, red hair"),
        ("woman: medium-dark skin tone, red hair", ""),
        ("woman firefighter: light skin tone", "woman, firefighter"),
        ("firefighter", ""),
        ("thumbs up: dark skin tone", "dark, thumbs up"),
        ("blue heart", "blue, heart"),
        ("light blue heart", ""),
        ("seven-thirty", "seven, thirty"),
        ("seven o’clock", ""),
    ],
)
def test_pairs(caption, pair):
    assert name(caption).pair == pair


def test_unicode_s_files_are_read(tmp_path):
    (tmp_path / "emoji-test.txt").write_text(LISTED, encoding="utf-8")
    (tmp_path / "en.xml").write_text(ANNOTATIONS, encoding="utf-8")
    names, version = emoji.read_names(tmp_path / "emoji-test.txt")
    assert version == "15.0"
    assert [n.caption for n in names] == ["melting face", "woman golfing: medium skin tone"]
    assert names[1].text == "\U0001f3cc\U0001f3fd\u200d\u2640\ufe0f"
    assert (names[1].group, names[1].subgroup) == ("People & Body", "person-sport")
    assert emoji.read_keywords([tmp_path / "en.xml"]) == {"😀": ("face", "grin")}
    (tmp_path / "bad").write_text("<annotation")
    with pytest.raises(ValueError, match=r"bad: .*expected annotations"):
        emoji.read_keywords([tmp_path / "bad"])
    with pytest.raises(ValueError, match=r"expected Unicode's emoji-test\.txt"):
        emoji.read_names(tmp_path / "bad")


def test_every_emoji_is_in_one_split(splits):
    indices = [example["index"] for rows in splits.values() for example in rows]
    assert sorted(indices) == list(range(3655))
    sizes = {split: len(rows) for split, rows in splits.items()}
    assert sizes == {"train": 2851, "composed": 68, "select": 275, "report": 461}


def test_held_out_captions_use_words_of_train(splits):
    bases = collections.defaultdict(set)
    for example in splits["train"]:
        for word in emoji.words(example["caption"]):
            bases[word].add(example["base"])
    for split in ("select", "report", "composed"):
        for example in splits[split]:
            for word in emoji.words(example["caption"]):
                assert len(bases[word]) >= (1 if split == "composed" else 2), (word, split)


def test_no_base_and_no_picture_lies_on_two_sides(splits):
    """But those of pairs, whose bases train has without the pair."""
    parts = ("train", "select", "report")
    for what in ("base", "picture"):
        value = lambda e: e["base"] if what == "base" else e["image"].tobytes()  # noqa: B023
        seen = {split: {value(e) for e in splits[split]} for split in parts}
        for a, b in (("train", "select"), ("train", "report"), ("select", "report")):
            assert not seen[a] & seen[b]


def test_pairs_are_held_out_whole_and_each_part_is_seen(splits):
    held = {example["pair"] for example in splits["composed"]}
    assert held == {", ".join(pair) for pair in emoji.HELD_OUT_PAIRS}
    captions = [example["caption"] for example in splits["train"]]
    assert not any(example["pair"] for example in splits["train"])
    for first, second in emoji.HELD_OUT_PAIRS:
        for part in (f"{first} skin tone" if first in emoji.TONES else first, second):
            assert any(set(emoji.words(part)) <= set(emoji.words(c)) for c in captions), part


def test_the_copy_is_of_colour_and_says_where_it_is_from(splits):
    builder = tfds.builder_from_directory(COPY / "emoji" / "32" / "1.0.0")
    assert builder.info.metadata["font_version"] == "2.042"
    assert builder.info.metadata["unicode_version"] == "15.0"
    assert "Open Font License" in builder.info.redistribution_info.license
    (heart,) = [e for e in splits["train"] if e["caption"] == "red heart"]
    red, green, blue = heart["image"][12:20, 12:20].reshape(-1, 3).mean(axis=0)
    assert red > 180 > 100 > max(green, blue)
    np.testing.assert_array_equal(heart["image"][0, 0], [255, 255, 255])
    assert list(heart["keywords"]) == [b"heart", b"red heart"]
    assert sum(f.stat().st_size for f in COPY.rglob("*") if f.is_file()) < 8e6


@pytest.mark.skipif(emoji.find_font() is None, reason="Noto Color Emoji is not installed")
def test_the_copy_is_what_the_font_draws(splits):
    font = emoji.Font(emoji.find_font())
    if font.version != "2.042":
        pytest.skip(f"the copy is of 2.042, installed is {font.version}")
    for example in splits["report"][::20]:
        drawn = font.draw(example["text"], 32)
        # Another Pillow may round otherwise.
        assert np.abs(drawn.astype(int) - example["image"]).max() <= 2
    assert font.picture("\U0010fffe") is None
    assert font.picture("👩" + "\u200d" + "🍕") is None  # No such person: two pictures.


def test_captions_become_conditions():
    batches = data.load(
        data.Images("emoji", "select", data_dir=COPY, label_key="caption", encode=tokens),
        batch_size=16, seed=1, epochs=1,
    )  # fmt: skip
    batch = next(iter(batches))
    assert batch["x0"].shape == (16, 32, 32, 3)
    assert batch["cond"].shape == (16, 12)
    assert batch["cond"].dtype == np.int16
    whole = data.Images("emoji", "select", data_dir=COPY, label_key="keywords", encode=len).arrays()
    assert whole["cond"].shape == (275,)
    assert whole["cond"].min() >= 1


def tokens(caption):
    """A token a word: something that tells words apart."""
    found = np.zeros(12, np.int16)
    ids = [sum(map(ord, word)) for word in emoji.words(caption)]
    found[: len(ids)] = ids
    return found


def test_what_encode_returns_is_checked():
    images = data.Images("emoji", "select", data_dir=COPY, label_key="caption", encode=emoji.words)
    with pytest.raises(ValueError, match=r"example 1: encode returned .* expected an array like"):
        images.arrays()
    bad = data.Images("emoji", "select", data_dir=COPY, label_key="caption", encode=int)
    with pytest.raises(ValueError, match="encode raised ValueError: invalid literal"):
        bad.arrays()
    with pytest.raises(ValueError, match="encode= needs the feature"):
        data.Images("emoji", "select", data_dir=COPY, label_key=None, encode=len).info()


def test_without_a_font_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "find_font", lambda: None)
    monkeypatch.setattr(emoji, "_INSTALLED", str(tmp_path))

    class Offline:
        def download(self, urls):
            raise OSError("no route to host")

    builder = data.Emoji(data_dir=tmp_path, file_format="array_record")
    with pytest.raises(FileNotFoundError, match=r"no route to host.*apt install fonts-noto"):
        builder._split_generators(Offline())


def test_another_font_is_refused(tmp_path):
    import matplotlib

    plain = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    (tmp_path / "emoji-test.txt").write_text(LISTED, encoding="utf-8")
    for part in ("annotations", "annotationsDerived"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "en.xml").write_text(ANNOTATIONS, encoding="utf-8")
    builder = data.Emoji(data_dir=tmp_path / "out", font=plain, unicode=tmp_path)
    with pytest.raises(ValueError, match=r"DejaVuSans\.ttf draws 0 of 2 emoji.*apt install"):
        builder._split_generators(None)


@pytest.mark.slow
@pytest.mark.skipif(emoji.find_font() is None, reason="Noto Color Emoji is not installed")
def test_drawn_anew_at_another_size(tmp_path, splits):
    data.prepare("emoji/64", data_dir=tmp_path)
    large = data.Images("emoji/64", "report", data_dir=tmp_path, label_key=None).arrays()["x0"]
    assert large.shape == (461, 64, 64, 3)
    small = np.stack([e["image"] for e in splits["report"]]).astype(float) / 127.5 - 1
    halved = large.reshape(461, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(halved - small).mean() < 0.02
