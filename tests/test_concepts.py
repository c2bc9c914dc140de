"""Names: when two are the same, what contradicts, and the files that list them."""

import codecs
import json
import random
import re
import unicodedata
import warnings

import pytest
import torch
from conftest import CHURCH, QUIET

from efface.concepts import Concept, check, listed, parse, read, same, slug
from efface.errors import UserError
from efface.methods.uce import UCE
from efface.names import clean, key, normal, visible, words
from efface.vocabularies import load as vocabulary

HOSTILE = [
    "ordinary",
    "beer mug",
    "a/b\\c",
    "..",
    ".",
    "-rf",
    "__",
    "CON",
    "🐶" * 60,
    "👨\u200d👩\u200d👧",
    "كنيسة",
    "\u202egnp.exe",
    "<script>alert(1)</script>",
    "x" * 300,
    "é" * 80,
    "\udcff",
    "\n",
    "",
    '"; rm -rf ~"',
    "%s{0}",
]


def one_line(error):
    assert str(error).isprintable()  # no line breaks, no marks of writing direction
    assert len(str(error)) < 400


# -- one normal form -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("church", "Church"),
        ("beer mug", "Beer-Mug"),
        ("beer mug", " beer  mug "),
        ("beer_mug", "beer\u2013mug"),
        ("beer mug", "beer\u00a0mug"),
        ("crêpe", "cre\u0302pe"),
        ("straße", "STRASSE"),
        ("woman’s hat", "woman's hat"),
        ("church", "chu\u200brch"),
        ("church", "\u202echurch\u202c"),
        ("church", "\ufeffchurch"),
        ("❤", "❤\ufe0f"),
    ],
)
def test_spellings_of_one_name_are_the_same(a, b):
    assert same(a, b)


@pytest.mark.parametrize(
    ("a", "b"), [("church", "churches"), ("crêpe", "crepe"), ("beermug", "beer mug")]
)
def test_other_names_are_not(a, b):
    assert not same(a, b)


KINDS = ((0x20, 0x7E), (0, 0x2FF), (0x590, 0x6FF), (0x2000, 0x206F), (0x3040, 0x3200))
"""Blocks of characters: ASCII, Latin, right-to-left, invisible, East Asian."""


def anything(g, n):
    """A random text of all kinds of characters."""
    kinds = (*KINDS, (0xFE00, 0xFEFF), (0x1F300, 0x1FAFF))
    return "".join(chr(g.randint(*g.choice(kinds))) for _ in range(n))


def test_the_forms_of_a_name_are_fixed_points():
    g = random.Random(0)
    for _ in range(2000):
        text = anything(g, g.randint(0, 12))
        assert normal(normal(text)) == normal(text)
        assert visible(visible(text)) == visible(text)
        assert normal(unicodedata.normalize("NFD", text)) == normal(text)
        assert same(text.upper(), text.upper().lower())


def test_with_a_tokenizer_names_are_their_tokens(tokenizer):
    assert key("church", tokenizer) == key(" CHURCH", tokenizer)
    assert key("church", tokenizer) != key("chapel", tokenizer)
    assert key("mug beer", tokenizer) != key("beer mug", tokenizer)  # the same, in another order
    assert key("", tokenizer) == key("") == ""


class Blind:
    """A tokenizer that knows three words, as a T5 knows no Chinese."""

    known = ("church", "dog", "castle")

    def __call__(self, text, add_special_tokens=True):
        ids = [self.known.index(w) if w in self.known else 9 for w in text.split()]
        return type("Encoded", (), {"input_ids": ids})


# -- Concept -------------------------------------------------------------------------------------


def test_a_concept_keeps_its_name_as_it_is_written():
    c = Concept(" Cre\u0302pe ", "Pain-Cake", synonyms=["galette", "galette", "Crêpe"])
    assert (c.name, c.anchor, c.synonyms) == ("Crêpe", "Pain-Cake", ("galette",))
    assert c.names == ("Crêpe", "galette")


def test_a_string_is_one_word_never_its_letters():
    assert Concept("church", synonyms="chapel").synonyms == ("chapel",)
    assert Concept("church", pool="temple").pool == ("temple",)
    assert words("castle", "keep") == ("castle",)
    assert check([CHURCH], "castle")[1] == ("castle",)
    with pytest.raises(UserError, match="synonyms: a string is one word; give a list"):
        Concept("church", synonyms="chapel, minster")


@pytest.mark.parametrize(
    ("make", "message"),
    {
        "number": (lambda: Concept(1984), r"name: text is needed, got 1984 \(int\)"),
        "none": (lambda: Concept("a", anchor=None), "anchor: text is needed, got None"),
        "kind": (lambda: Concept("a", kind=["object"]), "kind: text is needed"),
        "unknown kind": (lambda: Concept("a", kind="objekt"), "did you mean 'object'"),
        "empty": (lambda: Concept(" "), "got an empty concept"),
        "only hidden": (lambda: Concept("\u200b\u202e"), "got an empty concept"),
        "only hyphens": (lambda: Concept("--_"), "got an empty concept"),
        "empty synonym": (lambda: Concept("a", synonyms=("b", "")), "got an empty synonym"),
        "nested": (lambda: Concept("a", synonyms=("b", ["c"])), "synonyms: text is needed"),
        "number of words": (lambda: Concept("a", pool=3), "pool: a list of words is needed, got 3"),
        "no words": (lambda: Concept("a", synonyms=None), "synonyms: a list of words is needed"),
        "a set": (lambda: Concept("a", synonyms={"b"}), "a list of words is needed"),
        "newline": (lambda: Concept("dog\ncat"), r"control character '\\n' in 'dog\\ncat'"),
        "bell": (lambda: Concept("dog\x07"), r"control character '\\x07'"),
        "half": (lambda: Concept("dog\udcff"), r"control character '\\udcff'"),
        "long": (lambda: Concept("dog " * 300), "1,199 letters, beginning with"),
        "a line": (lambda: Concept("church -> castle"), "Concept takes the name, its anchor and"),
        "a line of synonyms": (lambda: Concept("church | chapel"), "Concept takes the name"),
        "own anchor": (lambda: Concept("dog", "Dog"), "'dog' is its own anchor"),
        "synonym as anchor": (lambda: Concept("dog", "Hound", synonyms=("hound",)), "own anchor"),
    }.values(),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:dropped")
def test_what_a_concept_refuses(make, message):
    with pytest.raises(UserError, match=message) as e:
        make()
    one_line(e.value)


def test_what_cannot_be_seen_is_dropped_and_said():
    with pytest.warns(UserWarning, match=r"cannot be seen from the name 'chu\\u200brch'"):
        assert Concept("chu\u200brch").name == "church"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("👨\u200d👩\u200d👧", "نمی\u200cخواهم", "❤\ufe0f"):  # joiners that are needed
            assert Concept(name).name == name


# -- parse ---------------------------------------------------------------------------------------


def test_a_line_names_concept_anchor_and_synonyms():
    assert parse("a dog -> cat | hound, , puppy") == Concept(
        "a dog", "cat", synonyms=("hound", "puppy")
    )
    assert parse("  church ") == CHURCH


@pytest.mark.parametrize(
    "text", ["church, bomb", "church,bomb -> castle", "church，bomb", "church -> a, b"]
)
def test_a_comma_asks_whether_two_were_meant(text):
    with pytest.raises(UserError, match=r"a comma in .*did you mean 2 concepts") as e:
        parse(text)
    if text == "church, bomb":
        assert "--concept 'church' --concept 'bomb'" in str(e.value)
        assert "Concept('church, bomb') in Python or a JSON file" in str(e.value)
    assert Concept("church, bomb").name == "church, bomb"


@pytest.mark.parametrize("text", ["a -> b -> c", "a | b | c", "a | b -> c"])
def test_a_line_with_two_of_a_mark_is_refused(text):
    with pytest.raises(UserError, match="cannot read"):
        parse(text)


def test_concepts_of_a_caller_are_names_or_concepts():
    assert listed("church") == listed(["church"]) == listed([CHURCH, "church"]) == [CHURCH]
    for some in (5, None, b"church", {"church"}, [3], [None], []):
        with pytest.raises(UserError):
            listed(some)


# -- check ---------------------------------------------------------------------------------------

CONTRADICTIONS = {
    "two anchors": ("church -> castle;church -> wolf", (), "another anchor: 'castle' and 'wolf'"),
    "case and anchor": ("church;Church -> wolf", (), r"'Church' \(the same as 'church'\) is to be"),
    "two lists": ("church | chapel;church", (), "another synonyms"),
    "erased anchor": ("church -> bomb;bomb", (), "the anchor 'bomb' of 'church' is erased itself"),
    "anchor's case": ("beer mug;church -> Beer-Mug", (), "the anchor 'Beer-Mug' .*erased itself"),
    "anchor's synonym": ("church -> pint;beer mug | pint", (), "the anchor 'pint' of 'church'"),
    "synonym's name": ("church | temple;temple", (), "'temple' is a name of both"),
    "synonym twice": ("church | chapel;mosque | Chapel", (), "of both 'mosque' and 'church'"),
    "keep name": ("beer mug", ("Beer-Mug",), r"erased concepts \('beer mug'\)"),
    "keep an erasure": ("church", ("wolf -> fox",), "'wolf -> fox' on the keep list"),
    "keep synonyms": ("church", ("wolf | fox",), r"'wolf \| fox' on the keep list"),
    "keep synonym": ("church | chapel", ("chapel",), "'chapel' is on the keep list"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_refused_by_name(case, tokenizer):
    some, keep, message = CONTRADICTIONS[case]
    concepts = [parse(c) for c in some.split(";")]
    for reads in (None, tokenizer):
        for order in (concepts, concepts[::-1]):
            with pytest.raises(UserError) as e:
                check(order, keep, reads)
        with pytest.raises(UserError, match=message):
            check(concepts, keep, reads)
    one_line(e.value)


def test_what_does_not_contradict_comes_back_once():
    concepts = [Concept("church"), Concept("Church"), Concept("dog", "cat"), Concept("fox", "cat")]
    found, keep = check(concepts, ["cat", "", "CAT", "mug", ""])
    assert found == (concepts[0], *concepts[2:])
    assert keep == ("cat", "", "mug")
    assert check([CHURCH], ()) == ((CHURCH,), ())


def test_the_tokenizer_has_the_last_word():
    concepts = [Concept("教会"), Concept("犬", "castle")]
    assert len(check(concepts, ["猫"])[0]) == 2
    with pytest.raises(UserError, match=r"'犬' \(the same as '教会'\) is to be erased twice"):
        check(concepts, (), Blind())
    with pytest.raises(UserError, match=r"'猫' is on the keep list .* \('教会'\)"):
        check(concepts[:1], ["猫"], Blind())
    with pytest.raises(UserError, match=r"the anchor '猫' .* is its own concept"):
        check([Concept("犬", "猫")], (), Blind())


@pytest.mark.parametrize("name", ["two anchors", "erased anchor", "synonym twice", "keep synonym"])
def test_an_erasure_refuses_contradictions(tiny, name):
    some, keep, message = CONTRADICTIONS[name]
    with pytest.raises(UserError, match=message):
        UCE(keep=keep).erase(tiny, some.split(";"), QUIET)


def test_an_erasure_takes_each_concept_and_word_once(tiny):
    once = UCE(keep=("castle",)).erase(tiny, ["church"], QUIET)
    again = UCE(keep="castle").erase(tiny, ["church", "Church"], QUIET)
    twice = UCE(keep=("castle", "Castle")).erase(tiny, ["church"], QUIET)
    for edit in (again, twice):
        assert all(torch.equal(w, edit.weights[n]) for n, w in once.weights.items())
        assert edit.meta["config"] == once.meta["config"]
        assert edit.meta["concepts"] == once.meta["concepts"]


# -- files ---------------------------------------------------------------------------------------

LINES = "# buildings\nchurch -> castle\r\n\r\ncrêpe | galette\rchurch -> castle\n"
FOUND = [Concept("church", "castle"), Concept("crêpe", synonyms=("galette",))]
ENCODED = {
    "utf8": LINES.encode(),
    "utf8 with a mark": codecs.BOM_UTF8 + LINES.encode(),
    "utf16 little": codecs.BOM_UTF16_LE + LINES.encode("utf-16-le"),
    "utf16 big": codecs.BOM_UTF16_BE + LINES.encode("utf-16-be"),
    "utf32": LINES.encode("utf-32"),
    "decomposed": unicodedata.normalize("NFD", LINES).encode(),
}


@pytest.mark.parametrize("name", ENCODED)
def test_a_concepts_file_is_read_however_it_is_written(tmp_path, name):
    path = tmp_path / "concepts.txt"
    path.write_bytes(ENCODED[name])
    assert read(path) == FOUND


def test_a_json_file_is_read_however_it_is_written(tmp_path):
    path = tmp_path / "concepts.JSON"
    rows = ["church -> castle", {"name": "crêpe", "synonyms": "galette"}, {"name": "a, b"}]
    for text in (
        json.dumps(rows),
        json.dumps(rows, ensure_ascii=False, indent=1).replace("\n", "\r\n"),
    ):
        for encoding in ("utf8", "utf-8-sig", "utf-16"):
            path.write_bytes(text.encode(encoding))
            assert read(path) == [*FOUND, Concept("a, b")]


BAD = {
    "latin-1": ("c.txt", "church\ncr\xeape\n".encode("latin-1"), "line 2: no UTF-8 text; save"),
    "utf16 unmarked": ("c.txt", "church\n".encode("utf-16-le"), r"line 1: .*character '\\x00'"),
    "utf16 cut": ("c.txt", "ab\ncd".encode("utf-16")[:-1], "line 2: no UTF-16 text"),
    "a picture": ("c.txt", b"\x89PNG\r\n\x1a\n\0\0", "line 1: no UTF-8 text"),
    "tab": ("c.txt", b"dog\nchurch\tbomb\n", r"line 2: .*control character '\\t'"),
    "comma": ("c.txt", b"\n\nchurch, bomb\n", "line 3: a comma in 'church, bomb'"),
    "no name": ("c.txt", b"dog\n -> cat\n", "line 2: got an empty concept"),
    "json in text": ("c.txt", b'[{"name": "church"}]', r"line 1: this looks like JSON"),
    "contradiction": ("c.txt", b"church -> a\nchurch -> b\n", "c.txt': 'church' is to be erased"),
    "comments only": ("c.txt", b"# a\n", "names no concept"),
    "huge line": ("c.txt", b"dog\n" + b"x" * 5000, "line 2: name: 5,000 letters"),
    "broken": ("c.json", b'["dog",\n "church"', "line 2: broken JSON"),
    "not a list": ("c.json", b'{"name": "church"}', "is no list of concepts: got"),
    "empty": ("c.json", b"[]", "names no concept"),
    "number": ("c.json", b'["dog", 5]', r"entry 2: got 5 \(int\)"),
    "null": ("c.json", b"[null]", "entry 1: got None"),
    "nested": ("c.json", b'[["church"]]', r"entry 1: got \['church'\] \(list\)"),
    "number as name": ("c.json", b'[{"name": 1984}]', "entry 1: name: text is needed, got 1984"),
    "null as anchor": ("c.json", b'[{"name": "a", "anchor": null}]', "entry 1: anchor: text is"),
    "nested synonyms": ("c.json", b'[{"name": "a", "synonyms": [["b"]]}]', "entry 1: synonyms: "),
    "object as pool": ("c.json", b'[{"name": "a", "pool": {"b": 1}}]', "entry 1: pool: a list of"),
    "unknown field": ("c.json", b'[{"name": "a", "synonym": "b"}]', "entry 1: .*mean 'synonyms'"),
    "nameless": ("c.json", b'["dog", {"anchor": "a"}]', "entry 2: no name in"),
    "field twice": ("c.json", b'[{"name": "a", "name": "b"}]', "the field 'name' twice"),
    "deep": ("c.json", b"[" * 100_000, "is no concepts file"),
    "long number": ("c.json", b"[" + b"9" * 6000 + b"]", "is no concepts file"),
    "control": ("c.json", rb'["dog\u0000"]', r"entry 1: name: the control character '\\x00'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_concepts_file_is_one_line_with_its_place(tmp_path, name):
    file, data, message = BAD[name]
    (tmp_path / file).write_bytes(data)
    with pytest.raises(UserError, match=message) as e:
        read(tmp_path / file)
    assert str(tmp_path / file) in str(e.value)
    one_line(e.value)


def test_hidden_characters_of_a_file_are_said_with_their_line(tmp_path):
    path = tmp_path / "c.txt"
    path.write_text("dog\nchu\u200brch\n\u202acat\n", encoding="utf8")
    with pytest.warns(UserWarning, match="line 2: dropped characters that cannot be seen") as seen:
        assert [c.name for c in read(path)] == ["dog", "church", "cat"]
    assert len(seen) == 1


def test_a_file_that_is_none_is_said(tmp_path):
    for path in (tmp_path, tmp_path / "no.txt", tmp_path / "a\0b"):
        with pytest.raises(UserError, match="cannot read the concepts file"):
            read(path)


def test_random_bytes_are_concepts_or_one_line(tmp_path):
    g = random.Random(1)
    good = [
        b'[{"name": "church", "synonyms": ["chapel"]}, "dog -> cat"]',
        LINES.encode(),
        LINES.encode("utf-16"),
    ]
    for i in range(400):
        data = bytearray(g.choice(good) if i % 4 else g.randbytes(g.randint(0, 40)))
        for _ in range(g.randint(1, 4) if data else 0):
            data[g.randrange(len(data))] = g.randrange(256)
        path = tmp_path / ("c.json" if i % 2 else "c.txt")
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = read(path)
            except UserError as e:
                found, said = [], str(e)
                assert str(path) in said
                assert said.isprintable()
        for c in found:
            assert all(normal(n) and n == clean(n, "name") for n in c.names)


# -- folder names --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_slug_is_a_plain_file_name(name):
    found = slug([name])
    assert 1 <= len(found.encode()) <= 60
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", found)
    assert found == slug([name])


@pytest.mark.parametrize("text", ['"fox"', "'fox'", "“fox”", "„fox“", "«fox»", " ‘fox’ "])
def test_quotation_marks_around_a_name_are_no_part_of_it(text):
    assert Concept(text).name == "fox"
    found = parse(f"{text} -> {text.replace('fox', 'dog')} | {text.replace('fox', 'vixen')}")
    assert found == Concept("fox", "dog", synonyms=("vixen",))
    assert UCE(keep=(text,)).keep == ("fox",)


def test_quotation_marks_in_a_word_list_are_no_part_of_its_words(tiny, tmp_path):
    (tmp_path / "words.txt").write_text("\"fox\"\nsmall owl\n“cat”\nrock 'n' roll\n")
    found = vocabulary(str(tmp_path / "words.txt"), tiny)
    assert found.words == ("fox", "small owl", "cat", "rock 'n' roll")
    assert vocabulary('words: "fox", owl', tiny).words == ("fox", "owl")


@pytest.mark.parametrize("name", ["farmer's", "'n'", '"a" and "b"', "5'", "“", "rock 'n' roll"])
def test_quotation_marks_in_a_name_stay(name):
    assert Concept(name).name == ("n" if name == "'n'" else name)


def test_another_spelling_of_a_name_is_erased_as_well():
    """CLIP reads "t-shirt" and "t shirt" as other tokens."""
    found, _ = check([Concept("t-shirt"), Concept("T shirt"), Concept("T-SHIRT")], ())
    assert found == (Concept("t-shirt", synonyms=("T shirt",)),)


def test_slugs_of_ordinary_names_are_readable_and_others_differ():
    assert slug(["beer mug", "church"]) == "beer_mug-church"
    assert slug(["crêpe"]) == slug(["cre\u0302pe"]) != slug(["crpe"])
    assert slug(["crêpe"]).startswith("crpe-")
    assert len({slug([n]) for n in HOSTILE}) == len(HOSTILE)
    assert slug(["x" * 61]) != slug(["x" * 62])
    assert slug([])
    assert slug(["..", ".."]) != slug([".."])
