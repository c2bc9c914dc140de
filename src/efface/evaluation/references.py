"""What attacks are given beside the edit: pictures, prompts, words, and another concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.artefacts import Victim
from efface.evaluation.samples import load_image
from efface.evaluation.trial import Court
from efface.models import DiffusionModel
from efface.names import normal, slug
from efface.seeds import generator

SEEDS = 2_000_000
"""From here on: seeds of the pictures to attack with."""
TOGETHER = 2
"""How many of those are drawn at once."""
KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""What a picture file's name ends in."""


def erased_by(edit: Edit) -> list[Concept]:
    """The concepts on record in an edit.

    Raises:
        UserError: there are none.
    """
    found = [
        Concept(c["name"], c["anchor"], c.get("kind", "object"), tuple(c["synonyms"]))
        for c in edit.meta.get("concepts", ())
    ]
    if not found:
        raise UserError(
            "the edit does not say what it erased, as one of efface diff: a run's is needed."
        )
    return found


@dataclass
class References:
    """What attacks are given; pictures are drawn by the unedited model, or read from a folder."""

    model: DiffusionModel
    edit: Edit
    court: Court
    words: Sequence[str] = ()
    """What the model can draw."""
    folder: Path | None = None
    """Of the concept's pictures; of several concepts, a folder each, called as they are."""
    seed: int = 0
    most: int = 2
    """Prompts of a concept that are attacked."""
    kept: dict[str, Tensor] = field(default_factory=dict)

    @property
    def concepts(self) -> list[Concept]:
        """What the edit erased, by its record.

        Raises:
            UserError: it has no record.
        """
        return erased_by(self.edit)

    def sample(self, n: int) -> list[str]:
        """Names of ``n`` of the concepts, spread over how strongly the edit changed their reading.

        Of an edit that changes no weight that reads the text they are the first ones.
        """
        names = [c.name for c in self.concepts]
        if len(names) <= n:
            return names
        order = sorted(names, key=self.strength)
        return [order[round(i)] for i in torch.linspace(0, len(order) - 1, n).tolist()]

    def strength(self, name: str) -> float:
        """‖ΔW c‖ of a name's last word, over the maps that read the text."""
        maps = [n for n in self.model.text_maps() if n in self.edit.weights]
        own = self.model.parameters()
        at = self.model.last_word([name])
        states = self.model.embed([name]).states.cpu()[0, at[0]].float()
        states = self.model.family.seen(self.model.parts, states)
        return sum(float((states @ self.edit.change(n, own[n]).T).square().sum()) for n in maps)

    def prompts(self, concept: Concept) -> list[str]:
        """The protocol's prompts of a concept, a few of them, evenly."""
        found = self.court.protocol.prompts(concept.name)
        n = min(self.most, len(found))
        return [found[i * len(found) // n] for i in range(n)]

    def pictures(self, concept: Concept, n: int) -> Tensor:
        """Pictures of a concept, (n, 3, H, W) in [0, 1].

        Raises:
            UserError: the folder is missing or empty, or holds too few or unreadable ones.
        """
        had = self.kept.get(concept.name)
        if had is None or len(had) < n:
            mine = concept.name in {c.name for c in self.concepts}
            had = self.read(concept, n) if self.folder and mine else self.drawn(concept, n)
            self.kept[concept.name] = had
        return had[:n]

    def drawn(self, concept: Concept, n: int) -> Tensor:
        """By the unedited model.

        A picture differs in its last bit with what is drawn beside it: prompts take turns by
        :data:`TOGETHER`, so that no picture depends on how many are asked for.
        """
        p = self.court.protocol
        victim = Victim(self.model, None, p.steps, p.guidance)
        prompts = self.prompts(concept)
        parts = [
            victim.pictures(prompts[k % len(prompts)], range(SEEDS + i, SEEDS + i + TOGETHER))
            for k, i in enumerate(range(0, n, TOGETHER))
        ]
        return torch.cat(parts)[:n]

    def files(self, concept: Concept, n: int) -> list[Path]:
        """The picture files of a concept.

        Raises:
            UserError: as :meth:`pictures`.
        """
        assert self.folder is not None
        if not self.folder.is_dir():
            raise UserError(f"there is no folder of pictures at {str(self.folder)!r}.")
        home = next(
            (
                f
                for f in (self.folder / concept.name, self.folder / slug([concept.name]))
                if f.is_dir()
            ),
            self.folder,
        )
        if home == self.folder and len(self.concepts) > 1:
            raise UserError(
                f"{str(self.folder)!r} has no folder {slug([concept.name])!r}: pictures of several "
                "concepts need a folder each, called as they are."
            )
        try:
            found = sorted(p for p in home.iterdir() if p.suffix.lower() in KINDS)
        except OSError as e:
            raise UserError(f"cannot read the pictures in {str(home)!r}: {e.strerror}.") from None
        if len(found) < n:
            raise UserError(
                f"{str(home)!r} holds {len(found)} pictures ({', '.join(k[1:] for k in KINDS)}); "
                f"{n} of {concept.name!r} are needed."
            )
        return found[:n]

    def read(self, concept: Concept, n: int) -> Tensor:
        """From the folder, in the model's size."""
        width, height = self.model.picture_size
        found = []
        for path in self.files(concept, n):
            x = load_image(path)[None]
            if x.shape[-2:] != (height, width):
                x = interpolate(x, size=(height, width), mode="area")
            found.append(x[0])
        return torch.stack(found)

    def unrelated(self, concept: Concept) -> str:
        """A preserved concept that is no neighbour, and that the judge sees where it is asked for.

        Raises:
            UserError: there is none.
        """
        p, judge = self.court.protocol, self.court.judge
        erased = {n for c in self.concepts for n in c.names}
        known = p.others(sorted(erased), judge.concept_names if judge else self.words)
        banned = {normal(n) for n in (*erased, *p.near(sorted(erased)))}
        names = [str(n) for n in known if normal(n) not in banned]
        if not names:
            raise UserError("there is no other concept for the control: the protocol names none.")
        g = generator(self.seed, "unrelated", concept.name)
        order = [names[i] for i in torch.randperm(len(names), generator=g)[:5].tolist()]
        if judge is None:
            return str(order[0])
        best: str = max((self.seen(n), -i, n) for i, n in enumerate(order))[2]
        return best

    def seen(self, name: str) -> float:
        """How often the judge sees a concept in the unedited model's pictures, of 4."""
        pictures = self.pictures(Concept(name), 4)
        goal = self.court.label(name)
        return sum(g == goal for g in self.court.guesses(pictures)) / len(pictures)
