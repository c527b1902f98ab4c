"""The Noto Color Emoji font as a captioned colour dataset for TFDS: real pictures, no download.

Unicode names every emoji ("woman golfing: medium skin tone", "flag: Ghana"), and the font, under
the SIL Open Font License, draws them: some 3,650 pictures whose captions are made of parts.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import tensorflow_datasets as tfds

if TYPE_CHECKING:
    from PIL import Image, ImageFont

PathLike = str | os.PathLike[str]

FONT = "Noto Color Emoji"
STRIKE = 109  # The one size in pixels for which the font has pictures, of 136 x 128.
_HOW = (
    "On Debian and Ubuntu: apt install fonts-noto-color-emoji unicode-data unicode-cldr-core. Or "
    'pass them: tfds.builder("emoji", font="NotoColorEmoji.ttf", unicode="DIR"), where DIR has '
    "emoji-test.txt and CLDR's annotations/en.xml and annotationsDerived/en.xml."
)
_FONT_URL = "https://github.com/googlefonts/noto-emoji/raw/v2.042/fonts/NotoColorEmoji.ttf"
_CLDR = "https://raw.githubusercontent.com/unicode-org/cldr/release-42/common/"
# Where Debian and Fedora put them, and where they come from.
_UNICODE = {
    "emoji-test.txt": ("emoji", "https://unicode.org/Public/emoji/15.0/emoji-test.txt"),
    "annotations/en.xml": ("cldr/common", _CLDR + "annotations/en.xml"),
    "annotationsDerived/en.xml": ("cldr/common", _CLDR + "annotationsDerived/en.xml"),
}
_INSTALLED = "/usr/share/unicode"

TONES = ("none", "light", "medium-light", "medium", "medium-dark", "dark", "two")
GENDERS = ("none", "woman", "man", "person")
HAIR = ("none", "red", "curly", "white", "bald", "blond")
KINDS = ("person", "flag", "clock", "keycap", "thing")

# Pairs that the split "composed" holds whole, while train has each part with others: a skin tone
# with a hair or a gesture, who with what they do, a colour with a shape, an hour with its half.
HELD_OUT_PAIRS = (
    *(("dark", "red hair"), ("light", "bald")),
    *(("medium-light", "curly hair"), ("medium-dark", "white hair")),
    *(("dark", "thumbs up"), ("light", "clapping hands")),
    *(("medium", "waving hand"), ("medium-dark", "flexed biceps")),
    *(("woman", "firefighter"), ("man", "teacher"), ("woman", "mechanic"), ("man", "singer")),
    *(("woman", "golfing"), ("man", "surfing"), ("woman", "climbing"), ("man", "cartwheeling")),
    *(("blue", "heart"), ("purple", "circle"), ("green", "square"), ("seven", "thirty")),
)
SELECT, REPORT = 110, 150  # Bases, with all their variants,
VARIANTS = 12  # of which couples of two tones, with their 26, would be most.

_DESCRIPTION = """\
The pictures of the Noto Color Emoji font on white, with their Unicode names as captions, the
keywords of Unicode's annotations, and what the names say: skin tone, gender, hair, kind.
"""
_CITATION = """\
@misc{noto-emoji,
  author = {Google},
  title = {Noto Emoji},
  howpublished = {https://github.com/googlefonts/noto-emoji},
  note = {SIL Open Font License 1.1},
}
"""


@dataclasses.dataclass(frozen=True)
class Name:
    """An emoji as Unicode's emoji-test.txt lists it.

    Attributes:
      text: the emoji itself, a string of code points.
      caption: its name, "woman golfing: medium skin tone".
      group: "People & Body", one of nine.
      subgroup: "person-sport", one of some hundred.
    """

    text: str
    caption: str
    group: str
    subgroup: str

    @property
    def base(self) -> str:
        """The caption without skin tones: what an emoji and its variants share."""
        head, _, rest = self.caption.partition(": ")
        parts = [p for p in rest.split(", ") if p and not p.endswith("skin tone")]
        if parts == ["person", "person"]:  # Said of two people where their tones differ.
            parts = []
        return ": ".join([head, ", ".join(parts)]) if parts else head

    @property
    def words(self) -> frozenset[str]:
        """The words of the caption, in lower case; those of a compound each for itself."""
        return frozenset(words(self.caption))

    @property
    def attributes(self) -> dict[str, str]:
        """What the caption says: "tone", "gender", "hair", "kind"; "none" where it doesn't."""
        tones = re.findall(r"([a-z-]+) skin tone", self.caption)
        people = {w for w in self.words if w in GENDERS}
        hair = re.search(r"(red|curly|white|blond) hair|\b(bald)\b", self.caption)
        kind = "person" if self.group == "People & Body" else "thing"
        if self.group == "Flags":
            kind = "flag"
        elif "o’clock" in self.words or "thirty" in self.words:
            kind = "clock"
        elif self.subgroup == "keycap":
            kind = "keycap"
        return {
            "tone": "none" if not tones else "two" if len(tones) > 1 else tones[0],
            "gender": people.pop() if len(people) == 1 else "none",
            "hair": next(filter(None, hair.groups())) if hair else "none",
            "kind": kind,
        }

    @property
    def pair(self) -> str:
        """The pair of `HELD_OUT_PAIRS` that the caption holds, "dark, red hair"; or ""."""
        tone, base = self.attributes["tone"], self.base
        for first, second in HELD_OUT_PAIRS:
            if first in TONES:
                held = first == tone and second in base.split(": ")
            else:
                held = base.replace("-", " ") == f"{first} {second}"
            if held:
                return f"{first}, {second}"
        return ""


def words(caption: str) -> list[str]:
    """The words of a caption, in lower case and in order; of compounds, tones alone stay whole.

    Example:
      >>> words("woman: medium-light skin tone, red hair")
      ['woman', 'medium-light', 'skin', 'tone', 'red', 'hair']
      >>> words("seven-thirty"), words("keycap: #"), words("one o’clock")
      (['seven', 'thirty'], ['keycap', '#'], ['one', 'o’clock'])
    """
    return re.findall(r"medium-(?:light|dark)|[^\W_]+(?:[’'][^\W_]+)*|[#*]", caption.lower())


def read_names(path: PathLike) -> tuple[list[Name], str]:
    """The fully qualified emoji of Unicode's emoji-test.txt, in its order, and its version.

    Raises:
      ValueError: the file is not what it should be.

    Example:
      >>> names, version = read_names("/usr/share/unicode/emoji/emoji-test.txt")  # doctest: +SKIP
      >>> names[0].caption, version  # doctest: +SKIP
      ('grinning face', '15.0')
    """
    names, said, version = [], {"group": "", "subgroup": ""}, ""
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"# (group|subgroup|Version): ?(.*)", line):
            what, value = heading.groups()
            if what == "Version":
                version = value.strip()
            else:
                said[what] = value.strip()
        elif entry := re.match(r"([0-9A-F ]+?) *; fully-qualified *# \S+ E[\d.]+ (.+)", line):
            text = "".join(chr(int(code, 16)) for code in entry[1].split())
            names.append(Name(text, entry[2].strip(), **said))
    if not names or not version:
        raise ValueError(f"{os.fspath(path)}: no emoji in it; expected Unicode's emoji-test.txt.")
    return names, version


def read_keywords(paths: Sequence[PathLike]) -> dict[str, tuple[str, ...]]:
    """The keywords of each emoji, by its code points less U+FE0F, of CLDR's annotation files.

    Raises:
      ValueError: a file is not what it should be.
    """
    found: dict[str, tuple[str, ...]] = {}
    for path in paths:
        try:
            entries = ElementTree.parse(path).iter("annotation")
            found |= {
                entry.attrib["cp"]: tuple(word.strip() for word in (entry.text or "").split("|"))
                for entry in entries
                if entry.get("type") != "tts"
            }
        except (ElementTree.ParseError, KeyError) as error:
            raise ValueError(
                f"{os.fspath(path)}: {error}; expected annotations of Unicode's CLDR."
            ) from error
    return found


class Font:
    """Noto Color Emoji, to draw with.

    Attributes:
      version: of the font, "2.042".
      sha256: of its file.

    Raises:
      ValueError: the file is no font, or has no size of 109 pixels.
      ImportError: Pillow lacks Raqm, which joins the parts of an emoji (its wheels have it).

    Example:
      >>> Font(find_font()).draw("🌙", 32).shape  # doctest: +SKIP
      (32, 32, 3)
    """

    def __init__(self, path: PathLike):
        from PIL import ImageFont, features

        if not features.check("raqm"):
            raise ImportError(
                "this Pillow has no Raqm, without which emoji fall to pieces; install Pillow's "
                "wheel, or build it with libraqm."
            )
        data = pathlib.Path(path).read_bytes()
        try:
            self._font: ImageFont.FreeTypeFont = ImageFont.truetype(os.fspath(path), STRIKE)
        except OSError as error:
            raise ValueError(
                f"{os.fspath(path)}: {error}; expected NotoColorEmoji.ttf with its pictures as "
                "bitmaps (CBDT), as Debian has it."
            ) from error
        self.version, self.sha256 = _revision(data), hashlib.sha256(data).hexdigest()
        # What it draws for code points that are no character.
        self._width = self._font.getlength("😀")
        self._missing = self._layer("\U0010fffe").tobytes()

    def picture(self, text: str) -> Image.Image | None:
        """The picture of an emoji on white, 136 x 136; None where the font has none."""
        from PIL import Image

        layer = self._layer(text)
        one = abs(self._font.getlength(text) - self._width) < 1  # And not its parts side by side.
        if not one or layer.getbbox() is None or layer.tobytes() == self._missing:
            return None
        found = Image.new("RGBA", layer.size, "white")
        found.alpha_composite(layer)
        return found.convert("RGB")

    def draw(self, text: str, size: int) -> np.ndarray | None:
        """The picture as (size, size, 3), uint8; None where the font has none."""
        from PIL import Image

        found = self.picture(text)
        if found is None:
            return None
        return np.asarray(found.resize((size, size), Image.Resampling.LANCZOS))

    def _layer(self, text: str) -> Image.Image:
        from PIL import Image, ImageDraw

        layer = Image.new("RGBA", (136, 136), (0, 0, 0, 0))
        ImageDraw.Draw(layer).text((0, 4), text, font=self._font, embedded_color=True)
        return layer


def _revision(data: bytes) -> str:
    """`fontRevision` of the table "head", a number of 16 bits before the point and 16 after."""
    for start in range(12, 12 + 16 * int.from_bytes(data[4:6], "big"), 16):
        if data[start : start + 4] == b"head":
            head = int.from_bytes(data[start + 8 : start + 12], "big")
            return f"{int.from_bytes(data[head + 4 : head + 8], 'big') / 2**16:.3f}"
    return "unknown"


def find_font() -> str | None:
    """Where Noto Color Emoji is installed, as fontconfig says; None where it isn't."""
    try:
        listed = subprocess.run(
            ["fc-list", f":family={FONT}", "file"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        listed = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf:"
    files = sorted(line.rsplit(":", 1)[0].strip() for line in listed.splitlines() if line.strip())
    return next((file for file in files if os.path.exists(file)), None)


def split_emoji(names: Sequence[Name], pictures: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Which emoji each split holds, as sorted indices: fixed for a list of names and pictures.

    * composed: the pairs of `HELD_OUT_PAIRS`, whole.
    * report and select: 150 and 110 bases with all their variants, 12 at most, drawn by
      `RandomState(0)` among those each of whose words is left in two bases of train or more, and
      which have no red hair, firefighter or other such part of a pair. What looks the same, as the
      flags of Norway and of Bouvet Island do, lies on one side.
    * train: the others.

    Args:
      names: of the emoji.
      pictures: anything that is equal for pictures that are.

    Returns:
      {"train", "composed", "select", "report"}, together every index once.
    """
    composed = np.array([i for i, name in enumerate(names) if name.pair], int)
    # Bases, and bases that share a picture, are one group: the first base of it names it.
    leader: dict[str, str] = {}
    first: dict[bytes, str] = {}

    def lead(base: str) -> str:
        while leader.setdefault(base, base) != base:
            base = leader[base]
        return base

    for i in np.setdiff1d(np.arange(len(names)), composed):
        leader[lead(names[i].base)] = lead(first.setdefault(pictures[i], names[i].base))
    groups: dict[str, list[int]] = collections.defaultdict(list)
    for i in np.setdiff1d(np.arange(len(names)), composed).tolist():
        groups[lead(names[i].base)].append(i)
    spoken = {base: {w for i in rows for w in names[i].words} for base, rows in groups.items()}
    left = collections.Counter(word for said in spoken.values() for word in said)
    parts = [set(words(second)) for _, second in HELD_OUT_PAIRS]
    held: list[str] = []
    bases = list(groups)
    for place in np.random.RandomState(0).permutation(len(bases)).tolist():
        base = bases[place]
        if len(held) == SELECT + REPORT or len(groups[base]) > VARIANTS:
            continue
        if any(part <= spoken[base] for part in parts):  # Of what "composed" puts together.
            continue
        if all(left[word] > 2 for word in spoken[base]):
            held.append(base)
            left.subtract(spoken[base])
    rows = lambda chosen: np.sort(np.array([i for base in chosen for i in groups[base]], int))  # noqa: E731
    train = [base for base in bases if base not in set(held)]
    return {
        "train": rows(train), "composed": composed,
        "select": rows(held[REPORT:]), "report": rows(held[:REPORT]),
    }  # fmt: skip


@dataclasses.dataclass
class EmojiConfig(tfds.core.BuilderConfig):
    """How large the pictures are."""

    size: int = 32


class Emoji(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the emoji: `tfds.builder("emoji")` once this module is imported.

    With Noto Color Emoji 2.042 and Unicode 15.0:

    ========  ========  ================================================================
    split     pictures  for
    ========  ========  ================================================================
    train     2,851     training denoisers and towers, learning ω
    composed  68        pairs of attributes never seen together, each seen with others
    select    275       selection: tuning constants, intervals, early stopping
    report    461       reporting, once
    ========  ========  ================================================================

    Configurations "32", "64" and "128": pixels a side. Features: "image", uint8 (size, size, 3);
    "caption"; "keywords"; "group" and "subgroup", Unicode's; "tone", "gender", "hair" and "kind",
    classes of what the caption says; "base", the caption without skin tones; "pair", what the
    split composed holds it for; "text", the emoji itself; "index", its place in emoji-test.txt.
    `builder.info.metadata` has the versions of the font and of Unicode.

    The font is found by fontconfig, the names where distributions install them; what is missing
    is fetched from its public home.

    Example:
      >>> builder = Emoji(data_dir="data", file_format="array_record")  # doctest: +SKIP
      >>> builder.download_and_prepare()  # doctest: +SKIP
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Splits train, composed, select and report."}  # noqa: RUF012
    BUILDER_CONFIGS = [  # noqa: RUF012
        EmojiConfig(name=str(size), description=f"{size} x {size} pixels.", size=size)
        for size in (32, 64, 128)
    ]

    def __init__(
        self, *, font: PathLike | None = None, unicode: PathLike | None = None, **options: Any
    ):
        """Takes the paths of the font and of Unicode's files, where they aren't to be found."""
        self._font, self._unicode = font, unicode
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        size, text = self.builder_config.size, tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            citation=_CITATION,
            homepage="https://github.com/googlefonts/noto-emoji",
            license="SIL Open Font License 1.1; names and keywords: Unicode License V3",
            supervised_keys=("caption", "image"),
            metadata=tfds.core.MetadataDict(),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), dtype=np.uint8),
                    "caption": text(),
                    "keywords": tfds.features.Sequence(text()),
                    "group": text(),
                    "subgroup": text(),
                    "tone": tfds.features.ClassLabel(names=TONES),
                    "gender": tfds.features.ClassLabel(names=GENDERS),
                    "hair": tfds.features.ClassLabel(names=HAIR),
                    "kind": tfds.features.ClassLabel(names=KINDS),
                    "base": text(),
                    "pair": text(),
                    "text": text(),
                    "index": np.int64,
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
        files = self._files(dl_manager)
        names, version = read_names(files.pop("emoji-test.txt"))
        path = files.pop("font")
        font = Font(path)
        keywords = read_keywords(list(files.values()))
        digests = {}
        for i, name in enumerate(names):
            picture = font.picture(name.text)
            if picture is not None:
                digests[i] = hashlib.sha256(picture.tobytes()).digest()
        known = list(digests)
        if len(known) < len(names) / 2:  # An outline font, or Noto's of another format (COLR).
            raise ValueError(
                f"{os.fspath(path)} draws {len(known)} of {len(names)} emoji; expected {FONT} with "
                f"its pictures as bitmaps. {_HOW}"
            )
        self.info.metadata.update(
            font=FONT, font_version=font.version, font_sha256=font.sha256,
            unicode_version=version, not_in_font=len(names) - len(known),
        )  # fmt: skip
        splits = split_emoji([names[i] for i in known], list(digests.values()))
        return {
            split: self._generate_examples(names, font, keywords, [known[i] for i in rows])
            for split, rows in splits.items()
        }

    def _files(self, dl_manager: Any) -> dict[str, Any]:
        """What is read, by name: given, installed, or fetched."""
        found: dict[str, Any] = {"font": self._font or find_font()}
        for name, (folder, _) in _UNICODE.items():
            places = (
                [pathlib.Path(self._unicode, name)]
                if self._unicode
                else [pathlib.Path(_INSTALLED, folder, name)]
            )
            found[name] = next((place for place in places if place.exists()), None)
        missing = {
            name: _FONT_URL if name == "font" else _UNICODE[name][1]
            for name, path in found.items()
            if path is None
        }
        if missing:
            try:
                found |= dl_manager.download(missing)
            except Exception as error:
                raise FileNotFoundError(
                    f"{', '.join(missing)}: not installed here, and could not be fetched ({error})."
                    f" {_HOW}"
                ) from error
        return found

    def _generate_examples(
        self,
        names: Sequence[Name],
        font: Font,
        keywords: Mapping[str, tuple[str, ...]],
        rows: Sequence[int],
    ) -> Iterator[tuple[int, Any]]:
        from PIL import Image

        for row in rows:
            name = names[row]
            drawn = font.draw(name.text, self.builder_config.size)
            assert drawn is not None
            example = {
                # A PIL image is encoded by PIL; of an array TFDS makes a PNG with TensorFlow.
                "image": Image.fromarray(drawn),
                "caption": name.caption,
                "keywords": list(keywords.get(name.text.replace("\ufe0f", ""), ())),
                "group": name.group,
                "subgroup": name.subgroup,
                "base": name.base,
                "pair": name.pair,
                "text": name.text,
                "index": row,
            }
            yield row, example | name.attributes
