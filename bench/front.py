"""The README's picture: what is erased, its neighbours, and what AP hurts most, in three rows.

``docs/front.png``: unedited, ESD, AP; from the cells of split 1 and seed 0, whose edits are made
again where ``runs/bench`` does not hold them. Pictures have seeds that no score was made with.
"""

from __future__ import annotations

import json
from pathlib import Path

from efface.evaluation.bench import Cell, Opened
from efface.evaluation.samples import Wanted, draw
from efface.reporting.grid import grid

HERE = Path(__file__).parent
OUT, RESULTS, WORK = HERE.parent / "docs" / "front.png", HERE / "results", Path("runs/bench")
PROTOCOL, SPLIT, SEED = "emoji-objects-2", "1", 990_000
LINES = {"unedited": "unedited", "esd": "ESD", "ap": "AP, ours"}
NEIGHBOURS, HURT = 3, 3


def hurt(cell: Cell) -> list[str]:
    """The preserved concepts that a cell's pictures show least, and then moved most."""
    row = json.loads((RESULTS / cell.file).read_text())
    names = [c for c in row["hits"] if c not in row["erased"]]

    def harm(c: str) -> tuple[int, float]:
        return sum(row["hits"][c][0]), -sum(row["moved"][c])

    return sorted(names, key=harm)[:HURT]


def main() -> None:
    """Draw the grid."""
    cells = {name: Cell(PROTOCOL, SPLIT, name, 0) for name in LINES}
    opened = {name: Opened(cell) for name, cell in cells.items()}
    ours = opened["ap"]
    near = {c: ours.protocol.near([c]) for c in ours.erased}
    worst = hurt(cells["ap"])
    others = [next(n for n in some if n not in worst) for some in near.values()][:NEIGHBOURS]
    names = [*ours.erased, *others, *worst]
    wanted = [Wanted(c, SEED, c) for c in names]
    rows = [list(draw(o.model, o.erase(WORK), wanted, progress=False)) for o in opened.values()]
    kept = f"kept: {NEIGHBOURS} neighbours, and the {HURT} of 307 that ours hurts most"
    sheet = grid(rows, names, len(ours.erased), 1, list(LINES.values()), kept)
    sheet.quantize(256).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
