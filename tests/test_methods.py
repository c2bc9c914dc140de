"""What holds for every method there will ever be, and for every preset."""

import dataclasses
import json
from functools import cache
from typing import NamedTuple

import pytest
import torch
from conftest import CHURCH, DOG, QUIET, mostly_slow, quick, same_weights
from safetensors.torch import save_file

from efface.concepts import Concept
from efface.edits.edit import Edit
from efface.errors import UserError
from efface.evaluation.attacks import ATTACKS
from efface.methods import METHODS
from efface.methods.ap import AP
from efface.methods.esd import ESD
from efface.methods.mace import MACE
from efface.methods.stereo import STEREO
from efface.methods.twofold import Twofold
from efface.models import Counter, load, memory
from efface.models.families.stable_diffusion import StableDiffusion
from efface.models.memory import bytes_of
from efface.settings import from_json, ranges, to_json
from efface.training import EDIT, Bank, Pictures, Rollout, Run, Tuning
from efface.training.checkpoints import Checkpoint, adam_of
from efface.training.closed_form import text_vectors
from efface.training.forecast import memory_plan
from efface.training.recall import Recall
from efface.training.search import Exact, Forecast, Gumbel, Online, Random

CASES = {name: (name, method()) for name, method in METHODS.items()} | {
    f"{name} {preset}": (name, config)
    for name, method in METHODS.items()
    for preset, config in method.presets().items()
    if config != METHODS[name]()
}
PLAIN = [c if c in METHODS else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
"""The same; a preset, which is a method with other numbers, is a slow test."""
TRAINED = [p for p, (_, m) in zip(PLAIN, CASES.values(), strict=True) if isinstance(m, Tuning)]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Made(NamedTuple):
    """An erasure, and the model that it was made of."""

    name: str
    method: object
    model: object
    before: dict
    edit: Edit


@pytest.fixture(scope="module")
def making(tiny_folder, words):
    """Erases with a case, once; all from one model, which they must leave alone."""
    model = load(tiny_folder, device="cpu")
    model.lr, model.steps = 1e-3, 4
    before = {k: p.clone() for k, p in model.parameters().items()}

    @cache
    def make(case):
        name, method = CASES[case]
        method = quick(method, words)
        return Made(name, method, model, before, method.erase(model, [CHURCH, DOG], QUIET))

    return make


@pytest.fixture(scope="module", params=CASES)
def made(request, making):
    """Of every method and preset: for what costs no second erasure, or must hold for all."""
    return making(request.param)


@pytest.fixture(scope="module", params=PLAIN)
def plain(request, making):
    """Of every method; of the presets as well among the slow tests."""
    return making(request.param)


OTHER_DRAWS = ("ap paper", "esd lora", "oce released")
"""Presets that go another way through the code than their method; the others have other numbers."""


@pytest.mark.parametrize("case", mostly_slow(CASES, {*METHODS, *OTHER_DRAWS}))
def test_the_same_seed_gives_the_same_weights_whatever_the_global_one(making, case):
    made = making(case)
    torch.manual_seed(123)
    again = made.method.erase(made.model, [CHURCH, DOG], QUIET)
    assert same_weights(dict(made.edit.weights), dict(again.weights))
    for what in ("forward", "backward"):
        assert made.edit.meta["cost"][what] == again.meta["cost"][what]


def test_another_seed_gives_other_weights(plain):
    if not isinstance(plain.method, Tuning):
        pytest.skip("a closed form draws nothing")
    other = dataclasses.replace(plain.method, seed=1).erase(plain.model, [CHURCH, DOG], QUIET)
    assert plain.edit.digest != other.digest


def test_the_base_model_is_left_alone(made):
    own = made.model.parameters()
    assert same_weights(own, made.before)
    assert not any(p.requires_grad or p.grad is not None for p in own.values())
    assert not made.model.denoiser.training


def chosen(method, denoiser):
    """The weights that a method says it changes."""
    names = StableDiffusion.group(denoiser, getattr(method, "group", "kv"))
    if getattr(method, "rank", 0):
        own = dict(denoiser.named_parameters())
        return {n for n in names if own[n].ndim >= 2}
    if getattr(method, "maps", "kv") == "v":
        return {n for n in names if ".to_v." in n}
    return set(names)


def test_only_the_chosen_weights_are_in_the_edit_and_all_of_them_move(made):
    assert set(made.edit.weights) == chosen(made.method, made.model.denoiser)
    assert all(not torch.equal(w, made.before[k]) for k, w in made.edit.weights.items())
    with made.edit.applied(made.model) as model:
        own = model.parameters()
        moved = {k for k, p in own.items() if not torch.equal(p, made.before[k])}
    assert moved == set(made.edit.weights)


def test_weights_are_fp32_finite_and_detached(made):
    for w in made.edit.weights.values():
        assert (w.dtype, w.device.type, w.requires_grad) == (torch.float32, "cpu", False)
        assert torch.isfinite(w).all()


def test_save_then_load_is_exact(made, tmp_path):
    made.edit.save(tmp_path / "edit.safetensors")
    back = Edit.load(tmp_path / "edit.safetensors")
    assert same_weights(dict(back.weights), dict(made.edit.weights))
    assert back.digest == made.edit.digest
    back.check(made.model)


def test_the_config_comes_back_from_the_meta_of_a_file(made, tmp_path):
    made.edit.save(tmp_path / "edit.safetensors")
    meta = Edit.load(tmp_path / "edit.safetensors").meta
    assert meta["method"] == made.name
    assert from_json(METHODS[meta["method"]], meta["config"]) == made.method
    church, dog = (Concept(**c) for c in meta["concepts"])
    searched = church.anchor if made.method.anchor == "auto" else ""
    assert (church, dog) == (dataclasses.replace(CHURCH, anchor=searched), DOG)
    assert (meta["model"], meta["base"]) == (made.model.name, made.model.base)


NO_TOKENS = {
    "stereo without rounds": STEREO(rounds=0),
    "twofold without tokens": Twofold(recall=Recall(tokens=False)),
}
"""Methods that read token vectors, with settings under which they ask no text encoder."""


@pytest.mark.parametrize("case", [*TRAINED, *NO_TOKENS])
def test_what_is_in_memory_while_it_trains_is_what_was_planned(tiny, words, monkeypatch, case):
    """Whoever asks a text encoder during an update says so, or this finds it opened again."""
    method = NO_TOKENS[case] if case in NO_TOKENS else CASES[case][1]
    method = quick(method, words, 4)
    monkeypatch.setattr(memory, "WORTH", 0)
    monkeypatch.setattr(tiny, "parts", tiny.parts)  # brought back afterwards
    planned, there = memory_plan(method, tiny, 0, False), set()

    def see(*_):
        if torch.is_grad_enabled():  # an update, or a search in one
            there.add(tuple(k for k, p in tiny.parts.items() if isinstance(p, torch.nn.Module)))

    hook = tiny.denoiser.register_forward_hook(see)
    try:
        method.erase(tiny, [Concept("church", anchor="sky"), DOG], QUIET)
    finally:
        hook.remove()
    (parts,) = there
    assert ("text_encoder" in parts) == method.reads_tokens
    assert sum(bytes_of(tiny.parts[k]) for k in parts) == planned.frozen


def test_every_concept_counts(plain):
    one = plain.method.erase(plain.model, [CHURCH], QUIET)
    assert set(one.weights) == set(plain.edit.weights)
    assert one.digest != plain.edit.digest


def test_the_anchor_counts(plain):
    others = [dataclasses.replace(c, anchor="moon") for c in (CHURCH, DOG)]  # few are drawn
    assert plain.method.erase(plain.model, others, QUIET).digest != plain.edit.digest


def test_a_keep_list_is_taken(plain):
    method = dataclasses.replace(plain.method, keep=("moon", ""))
    kept = method.erase(plain.model, [CHURCH, DOG], QUIET)
    assert kept.digest != plain.edit.digest
    assert kept.meta["config"]["keep"] == ["moon", ""]


@pytest.mark.parametrize("word", ["Church", "hound"])
def test_a_keep_list_with_an_erased_concept_is_refused(made, word):
    method = dataclasses.replace(made.method, keep=("moon", word))
    with pytest.raises(UserError, match=f"'{word}' is on the keep list and among the erased"):
        method.erase(made.model, [CHURCH, DOG], QUIET)


@pytest.mark.parametrize("name", METHODS)
def test_defaults_survive_json(name):
    for method in (METHODS[name](), *METHODS[name].presets().values()):
        assert from_json(METHODS[name], json.loads(json.dumps(to_json(method)))) == method


@pytest.mark.parametrize("group", StableDiffusion.groups)
def test_every_weight_group_can_be_trained(tiny, words, group):
    method = quick(METHODS["esd"](), words, updates=2)
    method = dataclasses.replace(method, group=group)
    edit = method.erase(tiny, [CHURCH], QUIET)
    assert set(edit.weights) == set(tiny.group(group))


# -- killed and started again ------------------------------------------------------------------


class Killed(Exception):
    """As good as SIGKILL: nothing of the run is heard again."""


FINE_TUNED = {n: m for n, m in METHODS.items() if issubclass(m, Tuning)}
RESUMED = {n: m() for n, m in FINE_TUNED.items() if not m.apart} | {
    "stereo": METHODS["stereo"](share=0.0),  # its last stage; test_race.py kills the others
    "ap paper": AP.presets()["paper"],
    "ap official": AP.presets()["official"],
    "esd lora": ESD.presets()["lora"],
    "advunlearn": METHODS["advunlearn"](start="last"),
}
"""Every method that is one training, and presets that train otherwise."""


@pytest.mark.parametrize("case", mostly_slow(RESUMED, ("ap",)))
def test_killed_at_every_update_and_started_again_it_ends_with_the_same_bits(
    tiny, words, tmp_path, case
):
    method = quick(RESUMED[case], words, updates=5)
    whole = method.erase(tiny, [CHURCH, DOG], QUIET)
    seen = []

    def killed_at(last):
        def on_update(update, losses, edit):
            seen.append(update)
            if update == last:
                raise Killed

        return Run(tmp_path, on_update, progress=False)

    for update in range(1, 6):
        with pytest.raises(Killed):
            method.erase(tiny, [CHURCH, DOG], killed_at(update))
    edit = method.erase(tiny, [CHURCH, DOG], Run(tmp_path, progress=False))
    # a checkpoint every 2: what was done before the last one is never done again
    assert seen == [1, 1, 2, 1, 2, 3, 3, 4, 3, 4, 5]
    assert same_weights(dict(edit.weights), dict(whole.weights))
    for what in ("forward", "backward"):
        assert edit.meta["cost"][what] == whole.meta["cost"][what]
    assert [p.name for p in tmp_path.iterdir()] == [EDIT]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n, m in FINE_TUNED.items() if m.apart])
def test_killed_in_the_second_concept_it_goes_on_there(tiny, words, tmp_path, name):
    method = quick(METHODS[name](), words, updates=3)
    whole = method.erase(tiny, [CHURCH, DOG], QUIET)
    seen = []

    def on_update(update, losses, edit):
        seen.append(update)
        if len(seen) == 5:
            raise Killed

    with pytest.raises(Killed):
        method.erase(tiny, [CHURCH, DOG], Run(tmp_path, on_update, progress=False))
    again = []
    listening = Run(tmp_path, lambda update, *_: again.append(update), progress=False)
    edit = method.erase(tiny, [CHURCH, DOG], listening)
    assert again == [1, 2, 3]  # the second concept's: the first one's adapter is kept
    for what in ("forward", "backward"):
        assert edit.meta["cost"][what] >= whole.meta["cost"][what] > 0
    assert same_weights(dict(edit.weights), dict(whole.weights))
    assert edit.digest == whole.digest
    assert [p.name for p in tmp_path.iterdir()] == [EDIT]


@pytest.fixture
def unfinished(tiny, words, tmp_path):
    """A method, and a folder with its checkpoint."""
    method = quick(METHODS["esd"](), words, updates=4)

    def on_update(update, losses, edit):
        if update == 3:
            raise Killed

    with pytest.raises(Killed):
        method.erase(tiny, [CHURCH], Run(tmp_path, on_update, progress=False))
    assert [p.name for p in tmp_path.iterdir()] == ["unfinished.safetensors"]
    return method, Run(tmp_path, progress=False)


def test_a_checkpoint_of_other_settings_is_refused(tiny, unfinished):
    method, run = unfinished
    longer = dataclasses.replace(method, updates=5)
    for other, concept in (
        (dataclasses.replace(method, eta=2.0), CHURCH),
        (longer, CHURCH),
        (method, DOG),
    ):
        with pytest.raises(UserError, match="holds an unfinished run with other settings"):
            other.erase(tiny, [concept], run)
    method.erase(tiny, [CHURCH], run)  # it was not harmed


def test_a_checkpoint_of_another_base_is_refused(unfinished, other_folder):
    method, run = unfinished
    with pytest.raises(UserError, match="other settings"):
        method.erase(load(other_folder, device="cpu"), [CHURCH], run)


def test_a_damaged_checkpoint_is_refused(tiny, unfinished):
    method, run = unfinished
    path = run.folder / "unfinished.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"checkpoint .* is damaged"):
        method.erase(tiny, [CHURCH], run)


def test_a_foreign_file_in_place_of_the_checkpoint_is_refused(tiny, unfinished):
    method, run = unfinished
    save_file({"a": torch.zeros(1)}, run.folder / "unfinished.safetensors")
    with pytest.raises(UserError):
        method.erase(tiny, [CHURCH], run)


@pytest.mark.parametrize("case", TRAINED)
def test_a_loss_that_is_not_finite_stops_and_names_the_update(tiny, words, tmp_path, case):
    method = quick(CASES[case][1], words, updates=5)
    method = dataclasses.replace(method, lr=1e30)
    first = 0 if case == "stereo" else 1  # its second stage begins with weights that are lost
    said = rf"loss of update [{first}-4] is (nan|inf).*learning rate"
    with pytest.raises(UserError, match=said):
        method.erase(tiny, [CHURCH], Run(tmp_path, progress=False))


@pytest.mark.parametrize("change", [{}, {"rank": 2}, {"average": 0.5}])
def test_a_training_that_moves_nothing_is_refused(tiny, words, tmp_path, change):
    method = quick(ESD(lr=1e-30, **change), words)
    with pytest.raises(UserError, match=r"the edit would change nothing.* Raise the learning rate"):
        method.erase(tiny, [CHURCH], Run(tmp_path, progress=False))
    assert not list(tmp_path.glob("*.safetensors"))
    assert dataclasses.replace(method, lr=1e-6).erase(tiny, [CHURCH], QUIET).weights


def test_a_training_that_throws_the_weights_away_is_refused_and_forgotten(tiny, words, tmp_path):
    method = quick(ESD(lr=1e7), words, updates=1)
    with pytest.raises(UserError, match="times its size, after which a model draws nothing"):
        method.erase(tiny, [CHURCH], Run(tmp_path, progress=False))
    assert not (tmp_path / EDIT).exists()
    again = dataclasses.replace(method, lr=1e-3)
    assert again.erase(tiny, [CHURCH], Run(tmp_path, progress=False)).weights


def test_an_overflow_of_fp16_names_the_update_and_the_layer(tiny_folder, words):
    model = load(tiny_folder, dtype="fp16", device="cpu")
    method = quick(ESD(eta=1e8), words, updates=3)
    with pytest.raises(UserError, match=r"update 0 is .* of '.*attn2.*' not finite.* use bf16"):
        method.erase(model, [CHURCH], QUIET)


def test_mace_cannot_do_without_the_attention(tiny, words):
    with pytest.raises(UserError, match="which checkpointing does not keep"):
        quick(MACE(), words).erase(tiny, [CHURCH], dataclasses.replace(QUIET, checkpointing=True))


def test_on_step_hears_every_update(tiny, words):
    heard = []
    method = quick(METHODS["esd"](), words, updates=3)
    method.erase(tiny, [CHURCH], Run(on_update=lambda *a: heard.append(a), progress=False))
    assert [u for u, *_ in heard] == [1, 2, 3]
    assert all(values["loss"] > 0 for _, values, _ in heard)


def test_whoever_watches_sees_the_edit_and_may_end_the_training(tiny, words, tmp_path):
    method, seen = quick(METHODS["esd"](), words, updates=5), []

    def on_update(update, losses, edit):
        seen.append(Edit({k: w.clone() for k, w in edit.weights.items()}))
        return update == 2

    edit = method.erase(tiny, [CHURCH], Run(tmp_path, on_update, progress=False))
    assert len(seen) == 2
    assert seen[0].digest != seen[1].digest
    assert same_weights(edit.weights, seen[1].weights)
    assert edit.meta["stopped_after"] == 2
    short = dataclasses.replace(method, updates=2).erase(tiny, [CHURCH], QUIET)
    assert same_weights(edit.weights, short.weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"updates": 0}, "got 0 for updates"),
        ({"batch": -1}, "got -1 for batch"),
        ({"save_every": 0}, "got 0 for save_every"),
        ({"lr": -1.0}, "got -1.0 for lr"),
        ({"lr": float("nan")}, "got nan for lr"),
    ],
)
def test_settings_of_a_training_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(METHODS["esd"](), **change)


def owners():
    """Every method and attack, and the parts that they are made of, with their numeric fields."""
    parts = {Exact, Forecast, Gumbel, Online, Random, Bank, Rollout, Pictures, Recall}
    parts |= {a for a in ATTACKS.values() if a.__module__.startswith("efface.")}
    for cls in (*METHODS.values(), *sorted(parts, key=lambda c: c.__name__)):
        names = [f.name for f in dataclasses.fields(cls) if type(f.default) in (int, float)]
        yield pytest.param(cls, names, id=cls.__name__)


@pytest.mark.parametrize(("cls", "names"), list(owners()))
def test_every_number_has_a_range_and_is_held_to_it(cls, names):
    for name in names:
        low, high, above = ranges(cls)[name]
        whole = type(getattr(cls(), name)) is int
        wrong = [float("nan"), float("inf"), -float("inf"), *([-1] if low >= 0 else [])]
        if high < float("inf"):
            wrong.append(int(high) + 1 if whole else high * (1 + 1e-9) + 1e-9)
        assert high < float("inf") or not whole  # a count without end would run for ever
        for value in [*wrong, *([low] if above else [])]:
            with pytest.raises(UserError, match=f"for {name}; .* is needed") as e:
                cls(**{name: value})
            assert str(e.value).startswith("got ")


@pytest.mark.parametrize(
    "name",
    [
        n if m.closed_form or n == "esd" else pytest.param(n, marks=pytest.mark.slow)
        for n, m in METHODS.items()
    ],
)
def test_kept_words_move_less_the_more_the_more_they_weigh(tiny, words, name):
    """The one meaning of ``keep``, by its effect."""
    method = quick(METHODS[name](), words, updates=15)
    if isinstance(method, Tuning):
        method = dataclasses.replace(method, lr=5e-3, batch=2)
    strong = {"keep_weight": 100.0} if hasattr(method, "keep_weight") else {}
    if name == "speed":  # in a model so small few directions are free otherwise
        method = dataclasses.replace(method, null=1.0)

    def moved(method):
        weights = method.erase(tiny, [CHURCH], QUIET).on(tiny, "moon")
        if method.closed_form:  # what the maps make of the word's own state
            own, e = tiny.parameters(), text_vectors(tiny, ["moon"])[0]
            return sum(float(((w - own[k]).double() @ e).norm()) for k, w in weights.items())
        z, cond = torch.randn(16, 4, 4, 4, generator=seeded(5)), tiny.embed(["moon"] * 16)
        t = torch.linspace(1, 999, 16).long()
        with torch.no_grad():
            change = tiny.predict(z, t, cond, weights) - tiny.predict(z, t, cond)
        return float(change.square().mean())

    free = moved(method)
    kept = moved(dataclasses.replace(method, keep="moon", **strong))
    assert free > 0
    assert kept < 0.5 * free
    if strong:
        nothing = dataclasses.replace(method, keep="moon", keep_weight=0.0)
        assert moved(nothing) == pytest.approx(free, rel=1e-5)


def test_an_unknown_weight_group_is_refused_with_a_guess(tiny, words):
    method = quick(METHODS["esd"](), words)
    method = dataclasses.replace(method, group="xatn")
    with pytest.raises(UserError, match="unknown weight group 'xatn'; did you mean 'xattn'"):
        method.erase(tiny, [CHURCH], QUIET)


def test_parts_are_made_once_and_taken_back_by_their_own_run_alone(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"w": torch.full((2,), float(len(made)))}

    run = Run(tmp_path, progress=False)
    for _ in range(2):
        assert run.part(0, {"seed": 1}, make, Counter())["w"].tolist() == [1, 1]
    with pytest.raises(UserError, match="unfinished run with other settings"):
        run.part(0, {"seed": 2}, make, Counter())
    path = tmp_path / "part-0.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="is damaged"):
        run.part(0, {"seed": 1}, make, Counter())
    run.forget()
    assert not list(tmp_path.iterdir())
    assert run.part(0, {"seed": 2}, make, Counter())["w"].tolist() == [2, 2]
    assert Run().part(0, {}, make, Counter())["w"].tolist() == [3, 3]


def test_moments_in_eight_bits_go_on_where_they_were(tmp_path):
    pytest.importorskip("bitsandbytes")

    def start():
        w = torch.randn(128, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
        return w, adam_of([w], 1e-2, True)

    def step(w, adam):
        w.square().sum().backward()
        adam.step()
        adam.zero_grad()

    w, adam = start()
    for _ in range(3):
        step(w, adam)
    assert adam.state[w]["state1"].dtype == torch.uint8
    Checkpoint(tmp_path, {"a": 1}, {"w": w}, adam, ()).save(3, Counter())
    again, other = start()
    assert Checkpoint(tmp_path, {"a": 1}, {"w": again}, other, ()).restore(Counter()) == 3
    step(w, adam)
    step(again, other)
    assert torch.equal(w, again)


def test_an_edit_made_with_eight_bit_moments_is_nearly_the_same(tiny, words):
    pytest.importorskip("bitsandbytes")
    method = quick(METHODS["esd"](), words, updates=3)
    plain = method.erase(tiny, [CHURCH], QUIET)
    small = dataclasses.replace(method, adam_8bit=True).erase(tiny, [CHURCH], QUIET)
    for k, w in plain.weights.items():
        torch.testing.assert_close(small.weights[k], w, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.takes_pools])
def test_words_of_a_concepts_own_are_refused_where_a_method_has_no_use_for_them(tiny, name):
    with pytest.raises(UserError, match=rf"to be preserved \(pool\), which {name} has no use for"):
        METHODS[name]().erase(tiny, [Concept("church", pool=("moon",))], QUIET)
