"""Tables of methods, metrics, attacks, judges and families: ours, and those of other packages.

A kind is one folder here, one file a thing, and one entry-point group in other packages.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract, isclass
from pkgutil import iter_modules
from typing import Generic, TypeVar

T = TypeVar("T")


class Table(Mapping[str, type[T]], Generic[T]):
    """Classes by their ``name``, looked for when one is first asked for.

    Ours are the concrete subclasses of ``of`` that the modules of ``package`` define; another
    package announces its own by an entry point of the group ``efface.KIND``::

        [project.entry-points."efface.methods"]
        mine = "my_package.mine:Mine"

    A package that fails to import, that brings something else, or whose name is taken is left out
    with a warning of one line; the others work.
    """

    def __init__(self, kind: str, package: str, of: type[T]) -> None:
        self.kind, self.package, self.of = kind, package, of
        self._found: dict[str, type[T]] | None = None

    @property
    def known(self) -> dict[str, type[T]]:
        """All of them by name: ours, then those of other packages."""
        if self._found is None:
            self._found = found = self._ours()
            homes = dict.fromkeys(found, "efface")
            for point in sorted(entry_points(group=f"efface.{self.kind}"), key=_home):
                made = self._opened(point)
                if made is None:
                    continue
                if point.name in homes:
                    warnings.warn(
                        f"{self.kind}: {point.name!r} is in {homes[point.name]} and in "
                        f"{_home(point)}; the one of {homes[point.name]} is used: rename the other "
                        "or uninstall its package.",
                        stacklevel=2,
                    )
                    continue
                found[point.name], homes[point.name] = made, _home(point)
        return self._found

    def _ours(self) -> dict[str, type[T]]:
        found = {}
        for info in iter_modules(import_module(self.package).__path__):
            module = import_module(f"{self.package}.{info.name}")
            for thing in vars(module).values():
                mine = isclass(thing) and issubclass(thing, self.of) and not isabstract(thing)
                if mine and thing.__module__ == module.__name__ and hasattr(thing, "name"):
                    found[thing.name] = thing
        order = getattr(import_module(self.package), "ORDER", ())
        rank = {name: i for i, name in enumerate(order)}
        return dict(sorted(found.items(), key=lambda x: (rank.get(x[0], len(rank)), x[0])))

    def _opened(self, point: EntryPoint) -> type[T] | None:
        try:
            made = point.load()
        except Exception as e:  # noqa: BLE001 (whatever another package's import raises)
            why = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
        else:
            if isclass(made) and issubclass(made, self.of) and not isabstract(made):
                own = getattr(made, "name", None)
                if own == point.name:
                    return made
                why = f"its entry point is called {point.name!r}, its class {own!r}"
            else:
                why = f"{point.value} is no {self.of.__name__}"
        warnings.warn(
            f"{self.kind}: {point.name!r} of {_home(point)} is left out ({why}).", stacklevel=2
        )
        return None

    def __getitem__(self, name: str) -> type[T]:
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def _home(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
