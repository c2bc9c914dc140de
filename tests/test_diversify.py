"""Several prompts for each erased name: which, how often, and what they change."""

import dataclasses

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, job_of, quick

from efface.concepts import MOST, SUBJECTS, TEMPLATES, Concept, normal, templates
from efface.errors import UserError
from efface.evaluation.protocols import load as load_protocol
from efface.methods import METHODS
from efface.methods.ap import AP
from efface.methods.ca import CA
from efface.methods.esd import ESD
from efface.methods.mace import refinement_rows, span_of
from efface.methods.uce import UCE
from efface.training import Bank, Rollout, Tuning
from efface.training.batches import encode
from efface.training.closed_form import erased_rows, solve, text_vectors
from efface.vocabularies import told

BOTH = [CHURCH, DOG]
HAVING = [n for n, m in METHODS.items() if hasattr(m(), "diversify")]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_there_are_as_many_different_prompts_as_may_be_asked_for(kind):
    some = templates(kind, MOST)
    assert len(set(some)) == MOST
    assert some[0] == "{}"
    assert all(t.count("{}") == 1 for t in some)
    assert templates(kind, 3) == some[:3]
    assert templates(kind, 0) == TEMPLATES[kind]


def test_pairs_are_prompts_beside_the_same_with_the_anchor():
    assert [tuple(p)[:3] for p in DOG.pairs(2)] == [
        ("dog", "dog", "cat"),
        ("dog", "a picture of dog", "a picture of cat"),
        ("hound", "hound", "cat"),
        ("hound", "a picture of hound", "a picture of cat"),
    ]
    assert [p.instead for p in CHURCH.pairs(3)] == [""] * 3  # no anchor: the null prompt
    assert [tuple(p)[:3] for p in DOG.pairs()] == [("dog", "dog", "cat"), ("hound", "hound", "cat")]
    ends = [tuple(p)[3:] for p in DOG.pairs(len(TEMPLATES["object"]))]
    assert all(a.endswith(("dog", "hound")) and b.endswith("cat") for a, b in ends)


def test_a_style_is_erased_from_things_that_stay():
    style = Concept("cubism", kind="style")
    bare, other, *_ = style.pairs(2)
    assert tuple(bare) == ("cubism", "cubism", "", "cubism", "")
    assert tuple(other) == ("cubism", "cat, cubism", "cat", "cat, cubism", "")
    becomes = dataclasses.replace(style, anchor="fauvism").pairs(2)[1]
    assert becomes.instead == becomes.instead_subject == "cat, fauvism"
    assert style.pairs(MOST)[-1].instead == "art"
    names = {normal(s) for s in load_protocol("emoji-styles").subjects}
    assert not names & {normal(s) for s in SUBJECTS}  # the benchmark's are seen by no method


def test_every_method_has_it():
    assert set(METHODS) >= set(HAVING)
    ours = {n for n, m in METHODS.items() if m.__module__.startswith("efface.methods")}
    assert ours <= set(HAVING)
    with pytest.raises(UserError, match="got 51 for diversify; 0 to 50 is needed"):
        ESD(diversify=MOST + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", HAVING)
def test_it_changes_the_edit_of_every_method(tiny, words, name):
    method = quick(METHODS[name](), words)
    if name == "speed":
        method = dataclasses.replace(method, null=1.0)
    several = dataclasses.replace(method, diversify=3)
    plain, edit = (m.erase(tiny, BOTH, QUIET) for m in (method, several))
    assert edit.digest != plain.digest
    assert all(torch.isfinite(w).all() for w in edit.weights.values())


def test_latents_are_of_all_prompts_concepts_and_names_equally(tiny):
    job = job_of(tiny, BOTH, quick(ESD(diversify=2), ""))
    prompts = [p for c in BOTH for p in c.pairs(2)]
    states = tiny.embed([p.prompt for p in prompts]).states.flatten(1)
    for latents in (Bank(ddim_steps=2, trajectories=1), Rollout(ddim_steps=2)):
        source = latents.open(job)
        if isinstance(latents, Bank):
            seen = source.draw(seeded(1), 3000).concept.states.flatten(1)
            rows = torch.cdist(seen, states).argmin(1)
        else:
            rows = source.begin(seeded(1), 3000)[0]
        share = rows.bincount(minlength=6) / 3000
        goal = torch.tensor([1 / 4] * 2 + [1 / 8] * 4)  # church; dog and hound share theirs
        torch.testing.assert_close(share, goal, rtol=0, atol=0.03)


def test_a_prompt_goes_with_its_own_replacement(tiny):
    rows = encode(tiny, BOTH, 3)
    for i, pair in enumerate(p for c in BOTH for p in c.pairs(3)):
        for side, text in ((rows.concept, pair.prompt), (rows.anchor, pair.instead)):
            assert torch.equal(side.states[i], tiny.embed([text], null=True).states[0])
    assert rows.of.tolist() == [0] * 3 + [1] * 6


def test_the_trajectories_of_a_name_are_shared_by_its_prompts(tiny):
    def count(n, trajectories):
        method = ESD(diversify=n, latents=Bank(ddim_steps=2, trajectories=trajectories))
        return len(method.latents.open(job_of(tiny, [CHURCH], method)).z)

    assert count(0, 8) == count(1, 8) == count(4, 8) == 8
    assert count(5, 8) == 5
    assert count(3, 1) == 3


def test_rows_of_closed_forms_weigh_concepts_alike_however_many_prompts(tiny):
    bare = erased_rows(job_of(tiny, BOTH, UCE()))
    assert bare.names == ("church", "dog", "hound")
    torch.testing.assert_close(bare.c[:1], text_vectors(tiny, ["church"]), rtol=1e-4, atol=1e-5)
    found = erased_rows(job_of(tiny, BOTH, UCE()), diversify=4)
    assert found.names == ("church",) * 4 + ("dog",) * 4 + ("hound",) * 4
    prompts = [p.subject for c in BOTH for p in c.pairs(4)]
    share = torch.tensor([1 / 4] * 4 + [1 / 8] * 8, dtype=torch.float64).sqrt()[:, None]
    torch.testing.assert_close(found.c, share * text_vectors(tiny, prompts))
    edit = UCE(diversify=4).erase(tiny, BOTH, QUIET)
    q = solve(found.c, found.a, None, 1.0, 1.0, 0.5)
    for name, w in edit.weights.items():
        torch.testing.assert_close(w, (tiny.parameters()[name].double() @ q).float())


def test_the_row_of_a_filled_template_is_the_names_wherever_it_stands(tiny):
    found = erased_rows(job_of(tiny, [Concept("church", "cow house")], UCE()), diversify=20)
    some = templates("object", 20)
    assert any(not t.endswith("{}") for t in some)
    for row, name in ((found.c, "church"), (found.a, "cow house")):
        for i, t in enumerate(some):
            at = span_of(tiny, t, name).stop - 1
            slow = tiny.embed([t.format(name)]).states[0, at].double() / 20**0.5
            torch.testing.assert_close(row[i], slow, rtol=1e-4, atol=1e-5)


def test_methods_with_templates_of_their_own_take_these_instead(tiny, words):
    assert (
        refinement_rows(tiny, [CHURCH], 7)[0].shape[0] > refinement_rows(tiny, [CHURCH])[0].shape[0]
    )
    plain = refinement_rows(tiny, BOTH)
    for one, two in zip(refinement_rows(tiny, BOTH, len(TEMPLATES["object"])), plain, strict=True):
        assert torch.equal(one, two)
    own, same = (
        quick(CA(diversify=n), words).erase(tiny, BOTH, QUIET)
        for n in (0, len(TEMPLATES["object"]))
    )
    assert all(torch.equal(w, same.weights[k]) for k, w in own.weights.items())


def test_a_style_is_erased_in_pictures_of_things_where_nothing_else_is_said(tiny, words):
    style, thing = Concept("cubism", "fauvism", kind="style"), Concept("dog", "cat")

    def rows(method, *concepts):
        job = job_of(tiny, concepts, method)
        return len(method.latents.open(job).encoded.of)

    short = Bank(ddim_steps=2, trajectories=1)
    for kind in (AP, METHODS["twofold"]):
        ours = kind(latents=short, styled=5)
        assert rows(ours, thing) == 1
        assert rows(ours, style) == 5
        assert rows(ours, style, thing) == 10
        assert rows(kind(latents=short, styled=0), style) == 1
        assert rows(kind(latents=short, styled=5, diversify=2), style) == 2
    assert AP().styled > 1
    assert not any(AP.presets()[n].styled for n in ("paper", "official"))  # as published


def test_the_goal_without_an_anchor_is_what_the_model_predicts_for_the_thing_alone(tiny):
    style = Concept("cubism", kind="style")
    bank = AP(styled=3, latents=Bank(ddim_steps=2, trajectories=1)).latents.open(
        job_of(tiny, [style], AP(styled=3))
    )
    assert bank.encoded.bare == (True, False, False)
    for path, instead in enumerate(p.instead for p in style.pairs(3)):
        cond = tiny.embed([instead], null=True)
        z, t = bank.z[path], bank.t
        with torch.no_grad():
            goal = tiny.predict(z, t, cond.repeat(len(z)))
        torch.testing.assert_close(bank.e_anchor[path], goal, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["Monet", "pixel art", "noto style"])
def test_a_name_tells_that_it_is_a_styles(emoji, name):
    (found,) = told(emoji, [Concept(name)])
    assert found == Concept(name, kind="style")
    assert told(emoji, [CHURCH, DOG]) == (CHURCH, DOG)
    made = UCE(anchor="").erase(emoji, [name], QUIET).meta["concepts"]
    assert [c["kind"] for c in made] == ["style"]


def test_a_style_is_shown_by_a_thing_in_it():
    assert Concept("cubism", "fauvism", kind="style").shown[1:3] == ("cat, cubism", "cat, fauvism")
    assert DOG.shown[1:3] == ("dog", "cat")
    assert CHURCH.shown.prompt == "church"


def test_a_killed_training_of_other_prompts_is_another_run(tiny, words, tmp_path):
    method = quick(METHODS["esd"](diversify=2), words, updates=4)
    assert isinstance(method, Tuning)
    assert method.erase(tiny, [CHURCH], QUIET).meta["config"]["diversify"] == 2
