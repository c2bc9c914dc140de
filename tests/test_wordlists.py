"""The shipped lists: what is in them, who knows them, and what of them an erasure gets."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers as T
from conftest import CHURCH, DOG, job_of
from families import byte_alphabet, qwen_tokenizer

from efface.concepts import Concept
from efface.errors import UserError
from efface.methods.ap import AP
from efface.names import clean, ids_of, normal
from efface.vocabularies import MOST, from_tokenizer, load
from efface.vocabulary import Vocabulary, distances
from efface.wordlists import NUDITY, SHIPPED, called, held, kinds, known, relatives, shipped

RECIPE = Path(__file__).parents[1] / "recipes" / "words"


# -- what is in them -----------------------------------------------------------------------------


def test_there_are_thousands_of_things_and_hundreds_of_styles():
    assert len(shipped("nouns")) >= 3000
    assert len(shipped("styles")) >= 300
    assert len(shipped("people")) >= 100
    for name in SHIPPED:
        found = shipped(name)
        assert len(found) == len(set(map(normal, found)))
        assert all(clean(w, "word") == w and w for w in found)


def test_familiar_things_come_first():
    place = {w: i for i, w in enumerate(shipped("nouns"))}
    for near, far in (("dog", "narwhal"), ("house", "minaret"), ("car", "golf cart")):
        assert place[near] < place[far] / 2
    assert {"church", "garbage truck", "French horn", "golf ball", "tench"} <= set(place)
    assert not {"the", "ing", "idea", "justice", "on", "er"} & set(place)


def test_no_shipped_word_asks_for_nudity():
    assert not [w for n in SHIPPED for w in shipped(n) if NUDITY & set(normal(w).split())]


def entries(name, mark):
    lines = (RECIPE / name).read_text(encoding="utf8").splitlines()
    parts = [w.strip() for line in lines if not line.startswith("#") for w in line.split(mark)]
    return {w for w in parts if w}


def test_the_shipped_lists_are_those_of_the_recipe():
    nouns, by_hand = set(shipped("nouns")), entries("more.txt", None) | entries("phrases.txt", "|")
    assert by_hand <= nouns
    assert not nouns & (entries("left_out.txt", None) - by_hand)
    assert set(held()["styles"]) == entries("styles.txt", "|")
    assert set(held()["people"]) == entries("people.txt", "|")


@pytest.mark.slow
@pytest.mark.skipif(not (RECIPE / "node_modules").exists(), reason="the recipe's packages")
def test_the_recipe_makes_the_shipped_lists_again(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("words", RECIPE / "words.py")
    words = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(words)
    monkeypatch.setattr(words, "OUT", tmp_path / "words.json")
    words.main()
    kept = (words.ASSETS / "words.json").read_text(encoding="utf8")
    assert (tmp_path / "words.json").read_text(encoding="utf8") == kept


# -- who knows them ------------------------------------------------------------------------------

PIECES = ["cat", "dog", "castle", "tree"]


def sentencepiece(words=PIECES, letters="acdegst"):
    """A T5's: a mark before each word."""
    rows = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    rows += [(f"▁{w}", -3.0 - i) for i, w in enumerate(words)] + [(c, -20.0) for c in letters]
    return T.T5Tokenizer(vocab=rows, extra_ids=0, model_max_length=64)


def joined(word, end=""):
    """The merges of a word's letters, from the left, and what they make."""
    letters = [*word[:-1], word[-1] + end]
    made = ["".join(letters[:i]) for i in range(2, len(letters) + 1)]
    return [(("".join(letters[:i])), letters[i]) for i in range(1, len(letters))], made


def merged(words, end=""):
    """Byte-level BPE: a vocabulary and its merges."""
    pieces, merges = byte_alphabet() + [c + end for c in byte_alphabet() if end], []
    for word in words:
        pairs, made = joined(word, end)
        merges += [p for p in pairs if p not in merges]
        pieces += [m for m in made if m not in pieces]
    return {p: i for i, p in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}, merges


def clip(words=PIECES):
    """A CLIP's: a mark behind each word."""
    vocab, merges = merged(words, "</w>")
    return T.CLIPTokenizer(vocab=vocab, merges=merges)


def bytelevel(words=PIECES):
    """A Qwen's: the blank is part of a word."""
    vocab, merges = merged([w for word in words for w in (word, f"Ġ{word}")])
    return T.Qwen2Tokenizer(vocab=vocab, merges=merges)


def wordpiece(words=PIECES):
    """A BERT's: a mark before what goes on."""
    parts = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, "c", "##a", "##t", "##tle"]
    return T.BertTokenizer(vocab={p: i for i, p in enumerate(parts)})


KINDS = {f.__name__: f for f in (clip, sentencepiece, bytelevel, wordpiece)}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_word_tokens_of_every_kind_in_order_of_their_id(kind):
    tokenizer = KINDS[kind]()
    found = from_tokenizer(tokenizer).words
    assert [w for w in found if w in PIECES] == PIECES
    assert all(len(ids_of(tokenizer, w)) == 1 for w in PIECES)


def test_tokens_that_begin_no_word_are_left_out():
    assert from_tokenizer(sentencepiece()).words == tuple(PIECES)
    assert from_tokenizer(wordpiece()).words == tuple(PIECES)
    inside = {"ca", "do", "cas", "cast", "castl", "tr", "tre"}  # of a word that begins with them
    assert set(from_tokenizer(bytelevel()).words) == {*PIECES, *inside}
    assert set(from_tokenizer(clip()).words) == {*PIECES} - inside


def test_a_tokenizer_without_marks_is_refused_in_one_line():
    with pytest.raises(UserError, match="does not mark where words begin or end: give 'nouns'"):
        from_tokenizer(qwen_tokenizer())


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_known_in_few_tokens(kind):
    tokenizer = KINDS[kind]()
    some = ["cat", "castle", "dog tree", "sat", "tagged sea", "🐱", "xylophone"]
    unknown = tokenizer.unk_token_id

    def slowly(word):
        ids = ids_of(tokenizer, word)
        return 0 < len(ids) <= 2 + len(word.split()) and unknown not in ids

    found = known(some, tokenizer)
    assert found == tuple(w for w in some if slowly(w))
    assert {"cat", "castle", "dog tree"} <= set(found)
    assert "xylophone" not in found


def test_letters_that_a_tokenizer_does_not_know_are_no_word():
    some = ["cat", "go", "", "cow"]
    assert known(some, sentencepiece()) == ("cat",)
    assert known(some, sentencepiece(letters="acdegstow")) == ("cat", "go")


# -- what an erasure gets ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("concept", "lists"),
    [
        (Concept("church"), ()),
        (Concept("wood"), ()),  # Grant Wood is a painter, too
        (Concept("anything", kind="style"), ("styles",)),
        (Concept("Monet"), ("styles",)),
        (Concept("vincent VAN GOGH"), ("styles",)),
        (Concept("van Gogh"), ("styles",)),
        (Concept("pixel-art"), ("styles",)),
        (Concept("beach", synonyms=("cubism",)), ("styles",)),
        (Concept("nudity"), ("people",)),
        (Concept("a naked person"), ("people",)),
        (Concept("skin", synonyms=("NSFW",)), ("people",)),
    ],
)
def test_relatives_of_a_kind(concept, lists):
    assert relatives([concept]) == lists
    assert relatives([CHURCH, concept, DOG]) == lists


def test_things_are_not_called_as_artists():
    assert not called() & {normal(w) for w in shipped("nouns")}
    assert {"monet", "picasso", "gogh", "van gogh", "art nouveau"} <= called()


def test_a_foreign_model_gets_things_and_what_its_kind_harms(tiny):
    nouns = load("nouns", tiny).words
    assert load("auto", tiny).words == nouns
    assert load("auto", tiny, [CHURCH]).words == load("nouns", tiny, [CHURCH]).words
    styled = load("auto", tiny, [Concept("Monet")])
    assert set(styled.words) == {*nouns, *load("styles", tiny).words} - {"Claude Monet"}
    assert styled.words[0] == load("styles", tiny).words[0]
    assert "shipped nouns, " in styled.source
    people = load("auto", tiny, [Concept("nudity")])
    assert set(people.words) == {*nouns, *load("people", tiny).words}
    assert {"statue", "swimsuit", "portrait", "person"} <= people.relatives


@pytest.mark.parametrize("name", ["Monet", "claude monet", "paintings by Monet", "style of monet"])
def test_an_erased_artist_is_not_preserved_under_another_name(tiny, name):
    words = load("styles", tiny, [Concept(name)]).words
    assert "Claude Monet" not in words
    assert "Claude Monet" in load("styles", tiny, [CHURCH]).words


@pytest.mark.parametrize(
    ("name", "gone", "stay"),
    [
        ("dog", ["puppy", "beagle", "German shepherd", "guard dog", "hot dog"], ["dog", "wolf"]),
        ("Dogs", ["puppy", "beagle", "hot dog"], ["wolf", "fox"]),
        ("beagle", [], ["dog", "hound", "puppy"]),
        ("church", ["church tower", "cathedral", "abbey"], ["tower", "mosque", "castle"]),
        ("sofa", ["couch", "studio couch"], ["chair", "bed"]),
        ("garbage truck", [], ["truck", "fire truck", "garbage"]),
        ("car", ["race car", "taxi", "automobile"], ["truck", "cartoonist", "carrot"]),
        ("art", [], ["artichoke", "museum"]),
    ],
)  # fmt: skip
def test_kinds_of_what_is_erased_are_not_preserved(tiny, name, gone, stay):
    everything = set(shipped("nouns"))
    assert {*gone, *stay} <= everything
    words = set(load("auto", tiny, [Concept(name)]).words)
    assert not words & set(gone)
    assert set(stay) <= words
    assert set(stay) | set(gone) <= set(load("auto", tiny, [Concept("xylem")]).words)
    assert len(words) > 0.9 * len(everything)


def test_synonyms_take_their_kinds_along(tiny):
    words = load("auto", tiny, [Concept("canine", synonyms=("dog",))]).words
    assert "beagle" not in words
    assert "beagle" in load("auto", tiny, [Concept("canine")]).words


def test_kinds_end_where_words_are_each_others(tiny):
    assert kinds(["car"]) >= {"automobile", "taxi"}
    assert "car" not in kinds(["car"])
    assert not kinds(["nothing of this"])


def test_a_tokenizer_that_knows_none_says_so(tiny, monkeypatch):
    monkeypatch.setitem(tiny.parts, "tokenizer", sentencepiece(PIECES, letters=""))
    assert load("auto", tiny).words == tuple(w for w in shipped("nouns") if w in PIECES)
    with pytest.raises(UserError, match="knows none of the shipped people: give a word list"):
        load("people", tiny)


NAMES = [a + b for a in "abcdefghij" for b in "kmnprstvwz"]


def slow_pool(far, most, relatives):
    """The obvious way: relatives, the nearest half of the room, every so-manyth of the others."""
    order = sorted(range(len(NAMES)), key=lambda i: float(far[i]))
    taken = [i for i in order if NAMES[i] in relatives]
    rest = [i for i in order if NAMES[i] not in relatives]
    room = most - len(taken)
    half = room - room // 2
    others = rest[half:]
    steps = torch.linspace(0, len(others) - 1, room // 2).round().tolist()
    chosen = {*taken, *rest[:half], *(others[int(s)] for s in steps)}
    return tuple(NAMES[i] for i in order if i in chosen)


@pytest.mark.parametrize("most", [10, 11, 40, 99])
def test_a_pool_is_the_nearest_and_spread_beside_the_relatives(tiny, most):
    far = distances(tiny, ["church"], NAMES)[0]
    farthest = [NAMES[i] for i in far.argsort(descending=True)[:4].tolist()]
    for kin in ((), farthest):
        words = Vocabulary(tuple(NAMES), "some", most, frozenset(kin))
        found = words.pool(tiny, CHURCH, 0, 0, "even").words
        assert found == slow_pool(far, most, kin)
        assert len(found) == most
        assert set(kin) <= set(found)


def test_a_pool_of_a_given_size_or_of_few_words_is_as_before(tiny):
    plain, cut = (Vocabulary(tuple(NAMES), "some", most) for most in (0, 10))
    for size, nearest, spread in ((7, 0, "nearest"), (20, 50, "kmeans"), (0, 30, "even")):
        asked = tiny, CHURCH, size, nearest, spread
        assert cut.pool(*asked).words == plain.pool(*asked).words
    assert plain.pool(tiny, CHURCH, 0, 0, "even") is plain
    whole = Vocabulary(tuple(NAMES), "some", len(NAMES))
    assert whole.pool(tiny, CHURCH, 0, 0, "even") is whole


def test_more_relatives_than_room_are_cut(tiny):
    words = Vocabulary(tuple(NAMES), "some", 5, frozenset(NAMES[:50]))
    found = words.pool(tiny, CHURCH, 0, 0, "even").words
    assert len(found) == 5
    assert set(found) <= set(NAMES[:50])


def test_distances_are_those_of_the_words_one_by_one(tiny, monkeypatch):
    monkeypatch.setattr("efface.vocabulary.PIECES", 5000)  # two or three words at a time
    found = distances(tiny, ["church", "dog"], NAMES[:7])
    for row, name in zip(found, ("church", "dog"), strict=True):
        centre = tiny.embed([name]).states[0]
        for i, word in enumerate(NAMES[:7]):
            one = float((tiny.embed([word]).states[0] - centre).norm())
            assert float(row[i]) == pytest.approx(one, rel=1e-5)


def test_distances_from_many_names_are_nearly_those_one_by_one(tiny, monkeypatch):
    exact = distances(tiny, NAMES[:7], NAMES[:20])
    monkeypatch.setattr("efface.vocabulary.FEW", 6)
    found = distances(tiny, NAMES[:7], NAMES[:20])
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=0.02)


def test_each_word_is_encoded_once_for_all_concepts(tiny, tmp_path, monkeypatch):
    path = tmp_path / "words.txt"
    path.write_text("\n".join(NAMES))
    concepts, method = [CHURCH, DOG], AP(vocabulary=str(path), pool_size=9, nearest=30)
    alone = [method.candidates(job_of(tiny, [c])).words for c in concepts]
    embed, asked = type(tiny).embed, []

    def noting(model, prompts, *more, **named):
        asked.extend(prompts)
        return embed(model, prompts, *more, **named)

    monkeypatch.setattr(type(tiny), "embed", noting)
    both = method.candidates(job_of(tiny, concepts))
    for mine, words in zip(both.of, alone, strict=True):
        assert [both.words[i] for i in mine.tolist()] == list(words)
    assert all(asked.count(w) == 1 + (w in both.words) for w in NAMES)


@pytest.mark.slow
def test_a_job_gives_each_concept_its_own_kind(tiny):
    monet = Concept("Monet")
    job = job_of(tiny, [CHURCH, monet])
    assert not job.words("auto", CHURCH).relatives
    assert job.words("auto", monet).relatives
    assert "pixel art" in job.words("auto").words
    for concept in (CHURCH, monet):
        words = set(job.words("auto", concept).words)
        assert not words & {"cathedral", "church", "church tower", "Claude Monet"}
    assert job.words("auto", CHURCH).most == MOST


def test_the_candidates_remember_their_lists(tiny, words):
    candidates = AP(vocabulary=str(words)).candidates(job_of(tiny, [CHURCH, DOG]))
    assert candidates.about["from"] == [str(words)]
    own = Concept("fox", pool=("moon",))
    mixed = AP(vocabulary=str(words)).candidates(job_of(tiny, [CHURCH, own]))
    assert mixed.about["from"] == [str(words), "pool of fox"]
