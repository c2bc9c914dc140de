"""Word lists: how they are read, and what of them asks for an erased concept."""

import codecs
import json
import random
import warnings

import pytest
from conftest import CHURCH

from efface.concepts import Concept, normal
from efface.errors import UserError
from efface.names import key, keys
from efface.vocabularies import brought, from_file
from efface.vocabularies import load as load_vocabulary
from efface.vocabulary import Vocabulary, stems_of

MUG = Concept("beer mug", synonyms=("stein",))


def left(words, concepts, tokenizer, **more):
    return list(Vocabulary(tuple(words), "some").without(concepts, tokenizer, **more).words)


# -- what asks for an erased concept -------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        "beer mug",
        "Beer-Mug",
        "BEER  MUG",
        "beer_mug",
        "beer mugs",
        "Beer-Mug's",
        "beer mug’s",
        "stein",
        "steins",
        "beer\u200b mug",
    ],
)
def test_spellings_plurals_and_synonyms_are_dropped(tokenizer, word):
    assert left(["", word, "moon"], [MUG], tokenizer) == ["", "moon"]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("church", "churches"),
        ("churches", "church"),
        ("churches", "church's"),
        ("lady", "ladies"),
        ("ladies", "lady's"),
        ("box", "boxes"),
        ("tomato", "tomatoes"),
        ("horse", "horses"),
        ("horse", "horses'"),
        ("glass", "glasses"),
        ("tie", "ties"),
        ("bus", "buses"),
        ("ox", "ox's"),
    ],
)
def test_regular_plurals_and_possessives_are_the_same(tokenizer, name, word):
    for a, b in ((name, word), (word, name)):
        assert left([b, "moon"], [Concept(a)], tokenizer) == ["moon"]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("garbage truck", "truck"),
        ("garbage truck", "garbage"),
        ("beer mug", "mug"),
        ("beer mug", "mug beer"),
        ("beer mug", "beer mug cake"),
        ("dog", "dog face"),
        ("dog face", "dog"),
        ("princess", "princes"),
        ("car", "care"),
        ("car", "cares"),
        ("class", "clas"),
        ("us", "u"),
        ("wolf", "wolves"),  # irregular: a synonym to be given
        ("cat", ""),
    ],
)
def test_parts_and_other_words_stay(tokenizer, name, word):
    for a, b in ((name, word), (word, name)):
        if a:
            assert left([b, "moon"], [Concept(a)], tokenizer) == [b, "moon"]


def test_parts_go_where_it_is_asked(tokenizer):
    words = ["", "mug", "beer", "mug beer", "Mug", "mugs", "mug cake", "stein", "moon"]
    assert left(words, [MUG], tokenizer, parts=True) == ["", "mugs", "mug cake", "moon"]
    assert left(words, [MUG], tokenizer) == [w for w in words if w != "stein"]


def test_parts_of_two_names_are_no_part_of_one(tokenizer):
    concepts = [Concept("beer mug"), Concept("garbage truck")]
    words = ["beer truck", "garbage mug"]
    assert left(words, concepts, tokenizer, parts=True) == words


class Blind:
    """A tokenizer that knows three words, as a T5 knows no Chinese."""

    known = ("church", "dog", "castle")

    def __call__(self, texts, add_special_tokens=True):
        found = [
            [self.known.index(w) if w in self.known else 9 for w in text.split()] for text in texts
        ]
        return type("Encoded", (), {"input_ids": found})


def test_words_of_the_same_tokens_are_dropped():
    assert left(["犬", "Church", "castle", ""], [Concept("猫")], Blind()) == [
        "Church",
        "castle",
        "",
    ]


def test_many_keys_are_those_of_each(tokenizer):
    words = ["", "Beer-Mug", "beer mug", "犬", "crêpe", "x" * 50]
    assert keys(words, tokenizer) == [key(w, tokenizer) for w in words]
    assert keys([], tokenizer) == []


def test_a_vocabulary_stays_in_order(tokenizer):
    words = [f"word{i}" for i in range(50)]
    assert left(words, [CHURCH], tokenizer) == words
    assert left(["church", *words, "Church"], [CHURCH], tokenizer) == words


def test_stems_hold_the_word_itself():
    for word in ("church", "s", "'s", "ies", "es", "glass", "ladies", ""):
        assert stems_of(word) >= {normal(word)} - {""}
    assert "" not in stems_of("'s") | stems_of("s") | stems_of("")


# -- word list files -----------------------------------------------------------------------------

TEXT = "# words\nmoon\r\ncrêpe\r\n\r\n  beer mug \n # more\rmoon\n"
FOUND = ("moon", "crêpe", "beer mug")


@pytest.mark.parametrize(
    "data",
    {
        "utf8": TEXT.encode(),
        "marked": codecs.BOM_UTF8 + TEXT.encode(),
        "utf16": TEXT.encode("utf-16"),
        "utf16 big": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        "decomposed": TEXT.replace("ê", "e\u0302").encode(),
    }.values(),
)
def test_a_word_list_is_read_however_it_is_written(tmp_path, data):
    path = tmp_path / "words.txt"
    path.write_bytes(data)
    assert from_file(path) == Vocabulary(FOUND, str(path))


BAD = {
    "latin-1": ("moon\ncr\xeape\n".encode("latin-1"), "line 2: no UTF-8 text; save the word list"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0", "line 1: no UTF-8 text"),
    "zeros": (b"\0" * 5000, r"line 1: word: the control character '\\x00'"),
    "utf16 unmarked": ("moon\nsun".encode("utf-16-le"), r"line 1: word: the control character"),
    "huge line": (b"moon\n" + b"sun " * 100_000, "line 2: word: 399,999 letters"),
    "two": (b"# mine\nmoon\nchurch, bomb\n", "line 3: a comma in 'church, bomb': did you mean 2 w"),
    "two in Chinese": ("\u6708\u3001\u65e5\n".encode(), "line 1: a comma in .*mean 2 words"),
    "a list of Python": (b"moon\nsun,\n", r"line 2: a comma in 'sun,': did you mean 'sun'\?"),
    "page break": (b"moon\nsu\x0cn\n", r"line 2: word: the control character '\\x0c'"),
    "empty": (b"", "is empty"),
    "comments": (b" # a\n#b\n\n", "is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_word_list_is_one_line_with_its_place(tmp_path, name):
    data, message = BAD[name]
    path = tmp_path / "words.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as e:
        from_file(path)
    assert str(path) in str(e.value)
    assert str(e.value).isprintable()
    assert len(str(e.value)) < 300


def test_a_list_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("efface.names.LARGEST", 1 << 20)
    path = tmp_path / "words.txt"
    path.write_bytes(b"a\n" * (1 << 20))
    with pytest.raises(UserError, match="is larger than 1 MB"):
        from_file(path)


def test_a_folder_is_no_word_list(tmp_path):
    with pytest.raises(UserError, match="cannot read the word list"):
        from_file(tmp_path)


def test_hidden_characters_are_said_once(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("moon\nsu\u200bn\n\u202astar\n", encoding="utf8")
    with pytest.warns(UserWarning, match="line 2: dropped characters that cannot be seen") as seen:
        assert from_file(path).words == ("moon", "sun", "star")
    assert len(seen) == 1


def test_random_bytes_are_words_or_one_line(tmp_path):
    g, path = random.Random(2), tmp_path / "words.txt"
    for i in range(300):
        data = bytearray(TEXT.encode("utf-16" if i % 2 else "utf8"))
        for _ in range(g.randint(1, 5)):
            data[g.randrange(len(data))] = g.randrange(256)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = from_file(path).words
            except UserError as e:
                found, said = (), str(e)
                assert str(path) in said
                assert said.isprintable()
        assert all(w and w == w.strip() for w in found)


# -- what a model's folder brings ----------------------------------------------------------------


def test_a_model_brings_its_names_and_tags(tmp_path):
    rows = [
        {"name": "dog", "group": "animals", "tags": ["pet", "big"]},
        {"name": "cat", "tags": "pet"},
    ]
    (tmp_path / "concepts.json").write_text(
        json.dumps({"styles": [], "concepts": rows}), "utf-8-sig"
    )
    assert brought(tmp_path, "mine", "names") == Vocabulary(("dog", "cat"), "mine names")
    assert brought(tmp_path, "mine", "tags") == Vocabulary(("pet", "big"), "mine tags")


def test_a_model_brings_its_styles(tiny, emoji):
    style = Concept("noto style", kind="style")
    own = load_vocabulary("styles", emoji)
    assert len(own) == 6
    assert "noto style" in own.words
    assert "impressionism" in load_vocabulary("styles", tiny).words
    things = load_vocabulary("auto", emoji, [CHURCH])
    assert things == load_vocabulary("names", emoji)
    both = load_vocabulary("auto", emoji, [style])
    assert both.words == own.words + things.words
    assert both.relatives == set(own.words)


BROUGHT = {
    "broken": ('{"concepts": [\n{"name": "a"}\n', "names", r"line \d: broken JSON"),
    "a list": ('["dog"]', "names", r"concepts: a list of names with tags is needed, got \['dog'\]"),
    "no concepts": ("{}", "names", "concepts: a list of names with tags is needed, got None"),
    "an object": ('{"concepts": {"name": "a"}}', "names", "concepts: a list"),
    "strings": ('{"concepts": ["dog"]}', "names", r"concepts\[0\]: a name with tags is needed"),
    "number": ('{"concepts": [{"name": "a"}, {"name": 5}]}', "names", r"concepts\[1\].name: text"),
    "no name": ('{"concepts": [{"tags": []}]}', "names", r"concepts\[0\].name: text is"),
    "empty name": ('{"concepts": [{"name": " "}]}', "names", r"concepts\[0\].name is empty"),
    "no tags": ('{"concepts": [{"name": "a"}]}', "tags", r"concepts\[0\].tags: a list of words"),
    "null tag": ('{"concepts": [{"name": "a", "tags": [null]}]}', "tags", r"concepts\[0\].tags: "),
    "no tag": ('{"concepts": [{"name": "a", "tags": []}]}', "tags", "holds no tags"),
    "none": ('{"concepts": []}', "names", "holds no names"),
    "control": ('{"concepts": [{"name": "a\\u0007b"}]}', "names", r"control character '\\x07'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROUGHT)
def test_a_bad_list_of_a_model_is_one_line_with_the_field(tmp_path, case):
    text, field, message = BROUGHT[case]
    (tmp_path / "concepts.json").write_text(text)
    with pytest.raises(UserError, match=message) as e:
        brought(tmp_path, "mine", field)
    assert "concepts.json" in str(e.value)
    assert str(e.value).isprintable()


@pytest.mark.parametrize("source", ["words:", "words: , ,", "words: \u200b"])
@pytest.mark.filterwarnings("ignore:dropped characters")
def test_words_that_are_none_are_refused(tiny, source):
    with pytest.raises(UserError, match=r"for a vocabulary, which holds no word\.$"):
        load_vocabulary(source, tiny)


def test_words_that_are_written_out_are_read_as_those_of_a_file(tiny, tmp_path):
    assert load_vocabulary("words: fox , cafe\u0301,fox", tiny).words == ("fox", "caf\u00e9")
    assert load_vocabulary("words: fox\uff0c cat", tiny).words == ("fox", "cat")
    with pytest.raises(UserError, match="the words given: word: the control character"):
        load_vocabulary("words: fox, a\x07b", tiny)
    path = tmp_path / "words.txt"
    path.write_text("fox\n\u200b\n", encoding="utf8")
    with pytest.warns(UserWarning, match="dropped characters"):
        assert load_vocabulary(str(path), tiny).words == ("fox",)
