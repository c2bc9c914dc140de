"""Edits that are put into folders, taken out, added up and compared."""

import json
import shutil
import warnings
from functools import partial

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, quick, same_weights, shaken
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from efface.cli.main import main
from efface.cli.runfolder import scores_of
from efface.concepts import Concept
from efface.edits import in_place
from efface.edits.combine import changes, combine, diff, overlap, overlaps
from efface.edits.edit import Edit
from efface.edits.in_place import apply, remove
from efface.edits.ledger import Ledger
from efface.errors import UserError
from efface.methods import METHODS
from efface.methods.speed import SPEED
from efface.methods.spm import SPM
from efface.methods.uce import UCE
from efface.models import load
from efface.training import Run
from efface.training.joint import jointly

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def moved(model, seed, group="xattn", concepts=()):
    meta = {
        "base": model.base,
        "model": model.name,
        "method": "esd",
        "concepts": [c.to_json() for c in concepts],
    }
    return Edit(shaken(model, group, seed=seed), meta)


# -- apply and remove --------------------------------------------------------------------------


def test_an_edit_goes_into_a_folder_and_comes_out_bit_for_bit(tiny, folder):
    before = (folder / UNET).read_bytes()
    names = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    edit = moved(tiny, 0, concepts=[CHURCH])
    apply(folder, edit, {"edited": {}})
    stock = StableDiffusionPipeline.from_pretrained(folder)
    own = dict(stock.unet.named_parameters())
    assert all(torch.allclose(own[k], w, atol=1e-6) for k, w in edit.weights.items())
    found = Ledger.read(folder)
    (entry,) = found.erasures
    assert (entry.edit, entry.concepts, entry.method) == (edit.digest, ("church",), "esd")
    assert entry.scores == {"edited": {}}
    assert (found.base, found.now) == (tiny.base, load(folder, device="cpu").base)
    assert found.now != found.base
    remove(folder)
    assert (folder / UNET).read_bytes() == before
    assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == names


def test_two_edits_add_up_and_come_out_in_any_order(tiny, folder):
    own = {k: p.clone() for k, p in tiny.parameters().items()}
    one, two = moved(tiny, 0, "xattn"), moved(tiny, 1, "kv")
    apply(folder, one)
    first = load_file(folder / UNET)
    apply(folder, two)
    both = load_file(folder / UNET)
    for k, w in both.items():
        added = sum((e.weights[k] - own[k] for e in (one, two) if k in e.weights), own[k])
        torch.testing.assert_close(w, added, rtol=1e-5, atol=1e-6)
    remove(folder, two.digest[:6])
    assert same_weights(load_file(folder / UNET), first)
    apply(folder, two)
    remove(folder, one.digest)
    for k, w in load_file(folder / UNET).items():
        torch.testing.assert_close(w, two.weights.get(k, own[k]), rtol=1e-5, atol=1e-6)
    assert [e.edit for e in Ledger.read(folder).erasures] == [two.digest]
    remove(folder)
    assert same_weights(load_file(folder / UNET), own)


def test_a_change_that_was_killed_is_finished_by_the_next_command(tiny, folder, monkeypatch):
    one, two = moved(tiny, 0, "kv"), moved(tiny, 1, "kv")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(in_place, "settle", killed)
        with pytest.raises(KeyboardInterrupt):
            apply(folder, one)
    assert Ledger.read(folder).now == ""
    apply(folder, two)
    assert [e.edit for e in Ledger.read(folder).erasures] == [one.digest, two.digest]
    remove(folder)
    assert same_weights(load_file(folder / UNET), tiny.parameters())


def test_what_cannot_be_applied_is_refused_and_changes_nothing(tiny, folder, other_folder):
    before = (folder / UNET).read_bytes()
    name = next(iter(shaken(tiny, "kv")))
    base = {"base": tiny.base}
    wrong = {
        "was made for": Edit(shaken(tiny), {"base": load(other_folder, device="cpu").base}),
        "no weight 'nothing'": Edit({"nothing": torch.zeros(2)}, base),
        "another architecture": Edit({name: torch.zeros(2)}, base),
        "holds NaN": Edit({name: torch.full_like(tiny.parameters()[name], torch.inf)}, base),
        "no changed weights": Edit({}, base),
    }
    for why, edit in wrong.items():
        with pytest.raises(UserError, match=why):
            apply(folder, edit)
    assert (folder / UNET).read_bytes() == before
    assert Ledger.read(folder) is None
    assert not (folder / "erasures").exists()
    done = apply(folder, moved(tiny, 0))
    assert apply(folder, moved(tiny, 0)) == done
    with pytest.raises(UserError, match=r"no edit in .* is called 'zz'"):
        remove(folder, "zz")
    remove(folder)
    assert remove(folder).erasures == ()
    with pytest.raises(UserError, match="no diffusers model folder"):
        remove(folder / "unet")


def test_an_edit_of_an_edited_folder_is_refused_for_what_it_is(tiny, folder):
    apply(folder, moved(tiny, 0))
    later = moved(load(folder, device="cpu"), 1)
    with pytest.raises(UserError, match=r"with what is erased there already.*efface merge"):
        apply(folder, later)
    remove(folder)
    with pytest.raises(UserError, match="apply it to the model it was made for"):
        apply(folder, later)


def test_weights_that_something_else_changed_are_noticed(tiny, folder):
    apply(folder, moved(tiny, 0))
    path = folder / UNET
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for act in (lambda: remove(folder), lambda: apply(folder, moved(tiny, 1))):
        with pytest.raises(UserError, match=r"were changed since erasures\.json was written"):
            act()


def test_gated_edits_are_not_stored(tiny, folder, words):
    method = quick(SPM(anchors=1, gated=True), words)
    with pytest.raises(UserError, match="has gates"):
        apply(folder, method.erase(tiny, [CHURCH], QUIET))


def test_a_merged_folder_says_what_is_erased(tiny, folder, tmp_path, capsys):
    edit = moved(load(folder, device="cpu"), 0, concepts=[CHURCH, DOG])
    edit.save(tmp_path / "edit.safetensors")
    out = tmp_path / "merged"
    assert main(["merge", str(tmp_path / "edit.safetensors"), str(out)]) == 0
    found = Ledger.read(out)
    assert found.erasures[0].concepts == ("church", "dog")
    assert found.now == load(out, device="cpu").base
    with pytest.raises(UserError, match="without the base model's values"):
        remove(out)
    with pytest.raises(UserError, match="without the base model's values"):
        apply(out, moved(tiny, 1))


def test_a_folder_merged_from_an_edited_one_still_says_what_was_erased_before(
    tiny, folder, tmp_path, capsys
):
    apply(folder, moved(tiny, 0, concepts=[CHURCH]))
    moved(load(folder, device="cpu"), 1, concepts=[DOG]).save(tmp_path / "edit.safetensors")
    out = tmp_path / "merged"
    assert main(["merge", str(tmp_path / "edit.safetensors"), str(out)]) == 0
    found = Ledger.read(out)
    assert [e.concepts for e in found.erasures] == [("church",), ("dog",)]
    assert found.base == tiny.base
    assert not (out / "erasures").exists()


def test_the_commands(tiny, folder, tmp_path, capsys):
    edit = moved(tiny, 0, concepts=[CHURCH])
    edit.save(tmp_path / "edit.safetensors")
    assert main(["apply", str(tmp_path / "edit.safetensors"), str(folder)]) == 0
    assert "church" in capsys.readouterr().out
    assert main(["remove", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["erasures"] == []
    assert main(["remove", str(folder)]) == 0
    assert "nothing is erased" in capsys.readouterr().out


def test_a_folder_takes_no_edit_twice_through_a_combined_one(tiny, folder, tmp_path):
    model = load(folder, device="cpu")
    one, two, three = (moved(model, i, concepts=[Concept(n)]) for i, n in enumerate("abc"))
    both = combine(model, [one, two])
    apply(folder, one)
    before = (folder / UNET).read_bytes()
    for edit in (
        both,
        combine(model, [both, three]),
        combine(model, [one.scaled(0.5, model), three]),
    ):
        with pytest.raises(UserError, match=f"{one.digest} would be in .* twice") as e:
            apply(folder, edit)
        assert f"remove {folder} {one.digest}" in str(e.value)
    assert (folder / UNET).read_bytes() == before
    apply(folder, combine(model, [two, three]))


def test_a_folder_takes_no_edit_that_contradicts_what_is_erased_there(tiny, folder):
    model = load(folder, device="cpu")
    there = moved(model, 0, concepts=[Concept("church", anchor="dog")])
    apply(folder, there)
    before = (folder / UNET).read_bytes()
    for concept, why in (
        (Concept("Dog"), "the anchor 'dog'"),
        (Concept("church", anchor="castle"), "erased twice"),
        (Concept("cat", anchor="church"), "the anchor 'church'"),
    ):
        with pytest.raises(UserError, match=why):
            apply(folder, moved(model, 1, concepts=[concept]))
    assert (folder / UNET).read_bytes() == before
    remove(folder, there.digest)
    apply(folder, moved(model, 1, concepts=[Concept("dog")]))


def test_narrower_scores_count_where_there_are_no_whole_ones(tiny, tmp_path):
    edit = moved(tiny, 0, concepts=[CHURCH])
    edit.save(tmp_path / "edit.safetensors")
    score = {"value": 1.0, "low": 0.0, "high": 2.0, "n": 3}

    def keep(name, pictures, **more):
        hits = {"church": {"edited": [[0] * pictures] * 2}}
        told = {"protocol": name, "edit": edit.digest, "edited": {"ESR-1": score}, "concepts": hits}
        (tmp_path / f"{name}.json").write_text(json.dumps({**told, **more}))

    keep("scores-few", 2)
    keep("scores-many", 4)
    keep("scores-others", 9, edit="another")
    keep("scores-prompts", 9, edited={}, scores={"ESR-1": score})
    assert scores_of(tmp_path, edit)["protocol"] == "scores-many"
    keep("scores", 1)
    assert scores_of(tmp_path, edit)["protocol"] == "scores"


def test_scores_are_of_the_edit_that_was_scored(tiny, tmp_path):
    one, two = moved(tiny, 0, concepts=[CHURCH]), moved(tiny, 1, concepts=[DOG])
    one.save(tmp_path / "edit.safetensors")
    score = {"value": 1.0, "low": 0.0, "high": 2.0, "n": 3}
    said = {"protocol": "mine", "edited": {"ESR-1": score}, "edit": one.digest}
    (tmp_path / "scores.json").write_text(json.dumps(said))
    assert scores_of(tmp_path, one)["edited"]
    assert scores_of(tmp_path / "edit.safetensors", one)["edited"]
    assert scores_of(tmp_path, one.scaled(0.5, tiny))["edited"]  # of its own folder by strength
    assert scores_of(tmp_path, two) is None
    both = combine(tiny, [one, two])
    both.save(tmp_path / "both.safetensors")
    assert scores_of(tmp_path / "both.safetensors", both) is None
    del said["edit"]  # before it was noted
    (tmp_path / "scores.json").write_text(json.dumps(said))
    assert scores_of(tmp_path, one)["edited"]


@pytest.mark.slow
def test_gates_that_a_file_leaves_open_are_told(tiny, folder, tmp_path, words, capsys):
    method = quick(SPM(anchors=1, gated=True), words)
    edit = method.erase(load(folder, device="cpu"), [CHURCH], Run(tmp_path / "run", progress=False))
    (tmp_path / "run").mkdir(exist_ok=True)
    edit.save(tmp_path / "run" / "edit.safetensors")
    score = {"value": 1.0, "low": 0.0, "high": 2.0, "n": 3}
    said = {"protocol": "mine", "edited": {"ESR-1": score}, "edit": edit.digest}
    (tmp_path / "run" / "scores.json").write_text(json.dumps(said))
    out = tmp_path / "merged"
    for args in ([out], [tmp_path / "one.safetensors"], [tmp_path / "l.safetensors", "--rank", 64]):
        command = "lora" if len(args) > 1 else "merge"
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert main([command, str(tmp_path / "run"), *map(str, args)]) == 0
        assert "are open for every prompt" in capsys.readouterr().err
    assert Ledger.read(out).erasures[0].scores is None
    card = (out / "README.md").read_text()
    assert "open for every prompt in these files" in card
    assert "ESR-1" not in card


# -- combine -----------------------------------------------------------------------------------


def test_a_combined_edit_is_the_sum_of_the_changes(tiny):
    one, two = moved(tiny, 0, "xattn", [CHURCH]), moved(tiny, 1, "selfattn", [DOG])
    made, own = combine(tiny, [one, two]), tiny.parameters()
    assert made.weights.keys() == one.weights.keys() | two.weights.keys()
    for k, w in made.weights.items():
        only = (one if k in one.weights else two).weights[k]
        torch.testing.assert_close(w, only, rtol=1e-5, atol=1e-6)
    assert [c["name"] for c in made.meta["concepts"]] == ["church", "dog"]
    assert [c["digest"] for c in made.meta["combined"]] == [one.digest, two.digest]
    three = moved(tiny, 2, "kv")
    added = combine(tiny, [one, three])
    for k, w in three.weights.items():
        slow = own[k] + (one.weights[k] - own[k]) + (w - own[k])
        torch.testing.assert_close(added.weights[k], slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", [UCE(), SPEED(null=1.0)], ids=["uce", "speed"])
def test_closed_forms_solved_together_are_those_of_all_concepts_at_once(tiny, words, method):
    method = quick(method, words)
    one, two = (method.erase(tiny, [c], QUIET) for c in (CHURCH, DOG))
    both = jointly(tiny, [one, two], METHODS)
    assert same_weights(both.weights, method.erase(tiny, [CHURCH, DOG], QUIET).weights)
    assert both.meta["method"] == "combine"


def test_combined_gates_still_open_for_their_concepts(tiny, words):
    method = quick(SPM(anchors=1, gated=True), words)
    edits = [method.erase(tiny, [c], QUIET) for c in (CHURCH, Concept("cow"))]
    made = combine(tiny, edits)
    assert [g.names for g in made.gates] == [("church",), ("cow",)]
    name = next(iter(made.weights))
    own = tiny.parameters()[name]
    shut = made.on(tiny, "church")[name] - own
    alone = edits[0].on(tiny, "church")[name] - own
    far = edits[1].on(tiny, "church")[name] - own
    torch.testing.assert_close(shut, alone + far, rtol=1e-3, atol=1e-5)


def test_what_cannot_be_combined_is_refused(tiny, other_folder, words):
    one, two = moved(tiny, 0), moved(tiny, 1)
    other = moved(load(other_folder, device="cpu"), 0)
    for edits, why in (
        ([one], "got 1 edits"),
        ([one, one], "given twice"),
        ([one, other], "different base models"),
        ([combine(tiny, [one, two]), one], f"{one.digest} is in .* would count twice"),
    ):
        for how in (combine, partial(jointly, methods=METHODS)):
            with pytest.raises(UserError, match=why):
                how(tiny, edits)
    with pytest.raises(UserError, match="edits by esd cannot be solved together"):
        jointly(tiny, [one, moved(tiny, 1)], METHODS)
    a = quick(UCE(), words).erase(tiny, [CHURCH], QUIET)
    b = quick(UCE(ridge=0.1), words).erase(tiny, [DOG], QUIET)
    with pytest.raises(UserError, match="different settings"):
        jointly(tiny, [a, b], METHODS)
    goes = [UCE().erase(tiny, [c], QUIET) for c in ("cat", "church -> moon")]
    for edits, why in (([b, goes[0]], "'cat' of 'dog' is erased"), ([a, goes[1]], "erased twice")):
        with pytest.raises(UserError, match=why):
            combine(tiny, edits)


def test_overlap_is_the_squared_cosine_of_single_directions():
    g = torch.Generator().manual_seed(0)
    up = torch.randn(2, 5, generator=g)
    for angle in (0.0, 0.5, torch.pi / 2):
        x = torch.tensor([1.0, 0.0, 0.0])
        y = torch.tensor([torch.tensor(angle).cos(), torch.tensor(angle).sin(), 0.0])
        one, two = {"w": torch.outer(up[0], x)}, {"w": torch.outer(up[1], y)}
        assert overlap(one, two) == pytest.approx(float(torch.tensor(angle).cos() ** 2), abs=1e-6)
    assert overlap({"a": torch.eye(2)}, {"b": torch.eye(2)}) == 0
    assert overlap({"b": torch.ones(2)}, {"b": torch.ones(2)}) == 0  # a bias reads nothing


def test_edits_of_the_same_concept_overlap_more_than_of_others(tiny, words):
    near = Concept("church house")
    edits = [quick(UCE(), words).erase(tiny, [c], QUIET) for c in (CHURCH, near, DOG)]
    found = {(o.one, o.two): o.share for o in overlaps(tiny, edits)}
    assert len(found) == 3
    assert all(0 <= x <= 1 + 1e-9 for x in found.values())
    one = changes(tiny, edits[0])
    assert overlap(one, one) == pytest.approx(1)


@pytest.mark.filterwarnings("default")
def test_the_command_warns_where_edits_meet(tiny, tiny_folder, words, tmp_path, capsys):
    method, paths = quick(UCE(), words), []
    model = load(tiny_folder, device="cpu")
    for name in ("church", "Church house"):
        path = tmp_path / f"{name}.safetensors"
        method.erase(model, [Concept(name)], Run(progress=False)).save(path)
        paths.append(str(path))
    out = tmp_path / "both.safetensors"
    assert main(["combine", *paths, "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert "church and Church house touch the same directions" in said.err
    told = json.loads(said.out)
    assert told["overlaps"][0]["share"] > 0.5
    assert Edit.load(out).digest == told["digest"]
    assert main(["combine", *paths, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


# -- diff --------------------------------------------------------------------------------------


def test_the_difference_of_two_models_is_the_edit_between_them(tiny, folder, tmp_path, capsys):
    edit = moved(tiny, 0, "kv")
    apply(folder, edit)
    found, back = diff(tiny, load(folder, device="cpu"))
    assert same_weights(dict(back.weights), load_changed(folder, edit))
    told = {d.group: d for d in found}
    assert told["kv"].changed == told["kv"].tensors == told["full"].changed
    assert told["selfattn"].changed == 0 == told["selfattn"].relative
    far = sum(float((w - tiny.parameters()[k]).square().sum()) for k, w in edit.weights.items())
    size = sum(float(tiny.parameters()[k].square().sum()) for k in tiny.group("kv"))
    assert told["kv"].relative == pytest.approx((far / size) ** 0.5, rel=1e-3)
    assert 1 < told["kv"].rank <= 16
    out = tmp_path / "between.safetensors"
    assert main(["diff", tiny.name, str(folder), "--out", str(out)]) == 0
    assert "effective rank" in capsys.readouterr().out
    Edit.load(out).check(tiny)


def test_what_else_differs_is_said_and_nothing_is_written_of_it(tiny, folder, tmp_path, capsys):
    path = folder / "text_encoder" / "model.safetensors"
    save_file({k: w + 1 for k, w in load_file(path).items()}, path, {"format": "pt"})
    out = tmp_path / "between.safetensors"
    assert main(["diff", tiny.name, str(folder)]) == 0
    said = capsys.readouterr()
    assert "effective rank" in said.out
    assert "also differ in text_encoder, which no edit holds" in said.err
    assert main(["diff", tiny.name, str(folder), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "effective rank" in said.out
    assert "the denoisers are the same" in said.err
    assert not out.exists()
    assert main(["diff", tiny.name, tiny.name]) == 0
    assert "also differ" not in capsys.readouterr().err


def load_changed(folder, edit):
    return {k: w for k, w in load_file(folder / UNET).items() if k in edit.weights}


def test_models_of_different_architectures_have_no_difference(tiny, emoji):
    with pytest.raises(UserError, match="different architectures"):
        diff(tiny, emoji)


def test_a_combined_edit_is_a_safetensors_file_in_a_folder_that_is_made(tiny, tmp_path, capsys):
    names = [str(tmp_path / f"{i}.safetensors") for i in (0, 1)]
    for i in (0, 1):
        moved(tiny, i, "kv").save(tmp_path / f"{i}.safetensors")
    for bad in ("x", "x.json"):
        assert main(["combine", *names, "--out", str(tmp_path / bad)]) == 2
        assert "must end in .safetensors" in capsys.readouterr().err
    out = tmp_path / "a" / "b" / "both.safetensors"
    assert main(["combine", *names, "--out", str(out)]) == 0
    assert Edit.load(out).meta["combined"]
    assert main(["lora", names[0], str(tmp_path / "c" / "l.safetensors"), "--rank", "64"]) == 0
    assert (tmp_path / "c" / "l.safetensors").is_file()
