"""Protocols and prompt files: read right, or refused in one line that names the place."""

import json
import zipfile

import pytest

from efface.errors import UserError
from efface.evaluation.evaluate import brought_protocol, judge_for, own_protocol
from efface.evaluation.judges import JUDGES, named
from efface.evaluation.judges.emoji import EmojiJudge, JudgeConfig
from efface.evaluation.protocols import PROTOCOLS, Protocol, load

GOOD = {"splits": {"1": ["church"]}, "steps": 2}


def refused(call, *args):
    """The message, which is one line and no traceback."""
    with pytest.raises(UserError) as e:
        call(*args)
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.fixture
def file(tmp_path):
    def make(raw):
        path = tmp_path / "mine.json"
        path.write_bytes(raw if isinstance(raw, bytes) else json.dumps(raw).encode())
        return str(path)

    return make


def test_the_shipped_ones_are_what_old_results_say():
    assert load("emoji-objects").digest == "912de1225012"
    assert load("emoji-styles").digest == "edf76d1a7b54"
    for name in PROTOCOLS:
        assert load(name).name == name


def test_cells_of_different_seeds_have_different_pictures():
    p = Protocol("x", pictures={"erased": 3, "preserved": 2})
    assert list(p.seeds("erased", 0)) == [0, 1, 2]
    assert list(p.seeds("erased", 2)) == [6, 7, 8]
    assert list(p.seeds("preserved", 1)) == [2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["ers"]}, "unknown metric 'ers'; did you mean 'esr'?"),
        ({"metrics": []}, "metrics is empty"),
        ({"metrics": "esr"}, "metrics is 'esr'; a list of a text each"),
        ({"metric": ["esr"]}, "'metric'; did you mean 'metrics'?"),
        ({"template": "a house"}, "template is 'a house'; it needs {} for the concept, once"),
        ({"template": "{} and {}"}, "it needs {} for the concept, once"),
        ({"template": "{"}, "template is '{': "),
        ({"template": "{} by {artist}"}, "it may hold {} for the concept"),
        ({"template": "{:>10}"}, "it may hold {}"),
        ({"template": "{!r}"}, "it may hold {}"),
        ({"template": "{0}"}, "it may hold {}"),
        ({"template": "{}, {subject}"}, "it may hold {}"),
        ({"template": "{}", "subjects": ["dog"]}, "it needs {} for the concept and {subject}"),
        ({"template": 3}, "template is 3; a text is needed"),
        ({"steps": 0}, "steps is 0; at least 1"),
        ({"steps": -3}, "steps is -3; at least 1"),
        ({"steps": 2.5}, "steps is 2.5; a whole number or null is needed"),
        ({"steps": "20"}, "steps is '20'; a whole number or null"),
        ({"guidance": -1}, "guidance is -1; at least 0"),
        ({"guidance": "7"}, "guidance is '7'; a finite number or null"),
        ({"pictures": {"erased": 0, "preserved": 1}}, "0 pictures of erased concepts"),
        ({"pictures": {"erased": 10**12, "preserved": 1}}, "1 to 100,000 are possible"),
        ({"pictures": {"erased": 1}}, "0 pictures of preserved concepts"),
        ({"pictures": {"erased": 1, "preserved": 1, "kept": 1}}, "unknown kind of pictures 'kept'"),
        ({"pictures": {"erased": 1.5, "preserved": 1}}, "pictures.erased is 1.5; a whole number"),
        ({"pictures": 3}, "pictures is 3; an object"),
        ({"splits": {"1": "church"}}, "splits.1 is 'church'; a list"),
        ({"splits": {"1": ["church", "church"]}}, "split '1' holds 'church' twice"),
        ({"splits": {"1": [" "]}}, "split '1' holds an empty name"),
        ({"splits": ["church"]}, "splits is ['church']; an object"),
        ({"preserved": [3]}, "preserved[0] is 3; a text"),
        ({"neighbours": {"church": "castle"}}, "neighbours.church is 'castle'; a list"),
        ({"kind": "stile"}, "unknown kind of concept 'stile'; did you mean 'style'?"),
        ({"head": "styles"}, "unknown head of the judge 'styles'; did you mean 'style'?"),
        ({"judge": None}, "judge is None; a text"),
        ({"labels": {"church": 497}}, "labels.church is 497; a text"),
        ({"source": {"file": "a.csv"}}, "source has no 'prompt'"),
        ({"source": {"fil": "a.csv"}}, "unknown key of source 'fil'; did you mean 'file'?"),
        ({"name": 3}, "name is 3; a text"),
    ],
)
def test_what_cannot_be_is_refused_at_load(file, change, message):
    path = file({**GOOD, **change})
    said = refused(load, path)
    assert message in said
    assert path in said


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"guidance": NaN}', "guidance is nan; a finite number"),
        (b'{"guidance": -Infinity}', "guidance is -inf"),
        (b'{"steps": 1e400}', "steps is inf; a whole number"),
        (b"[1]", "is [1]; an object"),
        (b'{\n"steps": 3\n"seed": 4}', "broken JSON in line 3"),
        (b'{\n"about": "\xff"}', "in line 2"),
        (b"", "broken JSON in line 1"),
    ],
)
def test_broken_files_are_one_line(file, raw, message):
    path = file(raw)
    assert message in (said := refused(load, path))
    assert path in said


def test_marks_and_utf16_are_read(file):
    for encoding in ("utf-8-sig", "utf-16"):
        assert load(file(json.dumps(GOOD).encode(encoding))).steps == 2


def test_unknown_names_and_missing_files():
    assert "did you mean 'emoji-objects'" in refused(load, "emoji-object")
    assert "No such file" in refused(load, "/nowhere/mine.json")


# -- prompt files --------------------------------------------------------------------------------

SOURCE = {"file": "artists.csv", "prompt": "prompt", "seed": "seed", "concept": "artist"}
HEAD = "prompt,seed,artist\n"
READS = Protocol("mine", source=SOURCE, metrics=("clip",))


@pytest.fixture
def csv(tmp_path):
    def make(raw, name="artists.csv"):
        (tmp_path / name).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        return tmp_path / name

    return make


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_prompts_are_read_whatever_wrote_them(csv, encoding, end):
    text = 'n,prompt,seed,artist\n1,"a ""dog"", by\nnight",7,Anna\n\n2,café, 8 ,\n'
    rows = READS.listed(csv(text.replace("\n", end).encode(encoding)))
    assert rows == [(f'a "dog", by{end}night', 7, "Anna"), ("café", 8, "")]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("", "has no column 'prompt'; prompt, seed, artist are read"),
        ("prompt,seed\na,1\n", "has no column 'artist'"),
        ("prompt,seed,artist,seed\na,1,b,2\n", "has two columns 'seed'"),
        (HEAD, "holds no prompt"),
        (HEAD + "a,1,b\na,1\n", "has 2 values in line 3, and 3 columns"),
        (HEAD + "a,b,1,c\n", "has 4 values in line 2, and 3 columns"),
        (HEAD + "a,x,b\n", "has the seed 'x' in line 2"),
        (HEAD + "a,,b\n", "has the seed '' in line 2"),
        (HEAD + "a,-1,b\n", "has the seed '-1' in line 2"),
        (HEAD + "a,1.0,b\n", "has the seed '1.0' in line 2"),
        (HEAD + f"a,{2**62},b\n", "from 0 to 2**62"),
        (HEAD + "a,1,b\n" + f'"{"x" * 200_000}",1,b\n', "is no CSV in line 3: field larger"),
        (HEAD + 'a,1,b\n"c,1,b\n', "is no CSV in line 3: unexpected end"),
        (HEAD + "a,1,b\nc\0,1,b\n", "holds a NUL character, in line 3"),
        (HEAD.encode() + b"a,1,b\n\xff,1,b\n", "is no UTF-8 text: invalid start byte, in line 3"),
    ],
)
def test_prompt_files_that_do_not_fit_are_one_line(csv, raw, message):
    path = csv(raw)
    assert message in (said := refused(READS.listed, path))
    assert str(path) in said


def zipped(path, raw, name="data/artists.csv", compress=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compress) as z:
        z.writestr(name, raw)
    return path


def test_damaged_archives_are_one_line(tmp_path):
    text = HEAD + "a dog,1,b\n" * 500
    path = zipped(tmp_path / "a.whl", text)
    assert len(READS.listed(path)) == 500
    whole = path.read_bytes()
    for at in range(45, 70, 5):  # within the packed member
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        assert "damaged" in refused(READS.listed, path)
    path.write_bytes(whole[:40])
    assert "no zip file" in refused(READS.listed, path)
    locked = bytearray(whole)
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        locked[locked.index(mark) + (6 if mark.endswith(b"\x04") else 8)] |= 1
    path.write_bytes(locked)
    assert "locked" in refused(READS.listed, path)
    zipped(path, HEAD.encode() + b"\xff,1,b\n")
    assert "'artists.csv' in" in (said := refused(READS.listed, path))
    assert "in line 2" in said
    zipped(path, text, "other.csv")
    assert "holds no file 'artists.csv'" in refused(READS.listed, path)
    assert "cannot read the prompts" in refused(READS.listed, tmp_path / "none.zip")


# -- a model's own -------------------------------------------------------------------------------


def test_the_shipped_model_has_its_protocol_and_others_bring_theirs(emoji, tiny, tmp_path):
    assert own_protocol(emoji).name == "emoji-objects"
    assert brought_protocol(emoji, ["style"]).name == "emoji-styles"
    assert brought_protocol(emoji, ["style", "object"]).name == "emoji-objects"
    assert brought_protocol(tiny, ["style"]) is None
    assert "holds no protocol.json" in refused(own_protocol, tiny)
    assert "no judge ships for it" in refused(judge_for, tiny)


def test_an_unknown_judge_is_refused(emoji):
    assert isinstance(judge_for(emoji, Protocol("x")), EmojiJudge)
    assert "unknown judge 'emojy-2'; did you mean 'emoji'" in refused(
        judge_for, emoji, Protocol("x", judge="emojy-2")
    )
    assert "no judge 'emoji-3' ships; the shipped one is 'emoji-2'" in refused(
        judge_for, emoji, Protocol("x", judge="emoji-3")
    )
    assert "names no judge" in refused(judge_for, emoji, Protocol("x", judge=""))
    assert "unknown ImageNet judge 'vgg'" in refused(named, "imagenet-vgg")
    assert list(JUDGES) == ["emoji", "emoji-second", "imagenet"]


# -- a judge's files -----------------------------------------------------------------------------


@pytest.fixture
def judge(tmp_path):
    EmojiJudge(JudgeConfig(("a", "b", "c"), ("x",), (4, 4), (1, 1), "mine-1")).save(tmp_path / "j")
    return tmp_path / "j"


def test_a_judge_comes_back_and_knows_fewer_than_five(judge):
    import torch

    found = EmojiJudge.load(judge)
    assert (found.version, found.concept_names) == ("mine-1", ("a", "b", "c"))
    seen = found.classify(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert seen.concepts.shape == (2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": None}, "has the hash"),
        ({"sha256": "abc"}, "judge.json says abc"),
        ({"widths": [4, "x"]}, "widths[1] is 'x'; a whole number"),
        ({"widths": [10**9, 4]}, "each is from 1 to 4096"),
        ({"widths": []}, "a stage needs a width"),
        ({"blocks": [1]}, "a stage needs a width"),
        ({"concepts": "abc"}, "concepts is 'abc'; a list"),
        ({"concepts": []}, "concepts must be names, each once"),
        ({"concepts": ["a", "a"]}, "concepts must be names, each once"),
        ({"concepts": ["a", "b"]}, "holds no weights of this judge"),
        ({"conepts": []}, "did you mean 'concepts'"),
        ({"version": 3}, "version is 3; a text"),
    ],
)
def test_a_damaged_judge_is_one_line(judge, change, message):
    path = judge / "judge.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert message in refused(EmojiJudge.load, judge)


def test_a_judge_with_broken_files_is_one_line(judge):
    whole = (judge / "judge.json").read_text()
    for raw, message in (
        ("{", "broken JSON in line 1"),
        ("[]", "is []; an object"),
        ("", "line 1"),
    ):
        (judge / "judge.json").write_text(raw)
        assert message in refused(EmojiJudge.load, judge)
    (judge / "judge.json").write_text(whole)
    weights = judge / "judge.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    assert "has the hash" in refused(EmojiJudge.load, judge)
    weights.unlink()
    assert "it has no file judge.safetensors" in refused(EmojiJudge.load, judge)
