"""The forecast of what an erasure will harm, by which preserved words are drawn."""

import pytest
import torch
from conftest import job_of

from efface.concepts import Concept
from efface.errors import UserError
from efface.methods.ap import AP
from efface.seeds import generator
from efface.training import Bank
from efface.training.closed_form import text_vectors
from efface.training.search import Forecast, Setting, pools
from efface.vocabulary import Vocabulary

CHURCH = Concept("church", pool=("moon",))
SMALL = Bank(ddim_steps=3, trajectories=2)


def test_words_are_drawn_as_often_as_a_closed_form_would_harm_them(tiny):
    pool = ("moon", "small river", "blue sun", "big cow", "red house")
    concept = Concept("church", anchor="house", pool=pool)
    search = Forecast(any=0.2, erase_scale=10.0, ridge=0.5)
    job = job_of(tiny, [concept], AP(preserve_batch=3, batch=2, search=search, latents=SMALL))
    before = tiny.counter.copy()
    c, a = (text_vectors(tiny, [w]) for w in ("church", "house"))
    rows = text_vectors(tiny, pool)
    b = 0.5 * torch.eye(rows.shape[1]).double() + 10 * c.T @ c + rows.T @ rows
    y = 10 * torch.linalg.inv(b) @ c.T  # ΔW = W (a - c) yᵀ
    maps = [tiny.parameters()[n].double() for n in tiny.text_maps()]
    far = [sum(float((w @ (a - c).T @ (y.T @ p)[None]).square().sum()) for w in maps) for p in rows]
    size = [sum(float((w @ p).square().sum()) for w in maps) for p in rows]
    harm = torch.tensor(far) / torch.tensor(size)
    at_work = search.start(Setting(job, pools(job, [Vocabulary(pool, "")]), None, None))
    assert tiny.counter == before  # for nothing
    odds = 0.8 * harm / harm.mean() + 0.2
    torch.testing.assert_close(at_work.odds, odds, rtol=1e-3, atol=1e-5)
    drawn = at_work.draw(torch.zeros(4000, dtype=torch.long), 4000, generator(2)).chosen.bincount()
    torch.testing.assert_close(drawn / 4000, odds / odds.sum(), rtol=0, atol=0.03)


def test_a_forecast_needs_weights_that_read_text(tiny, monkeypatch):
    job = job_of(tiny, [CHURCH])
    found = pools(job, [Vocabulary(("moon", "sun"), "")])
    monkeypatch.setattr(type(tiny), "text_maps", lambda self: [])
    with pytest.raises(UserError, match=r"by which search:forecast ranks words: choose"):
        Forecast().start(Setting(job, found, None, None))
