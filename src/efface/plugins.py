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
from typing import Generic, TypeVar, cast, get_origin

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
            self._found = self._ours()  # what other packages see of it while they are imported
            for complaint in self._join(self._found):
                warnings.warn(complaint, stacklevel=2)
        return self._found

    def _join(self, found: dict[str, type[T]]) -> list[str]:
        """Add what other packages bring; gives what is wrong with the rest, a line each."""
        homes, wrong = dict.fromkeys(found, "efface"), []
        for point in sorted(entry_points(group=f"efface.{self.kind}"), key=_home):
            name, home = point.name, _home(point)
            if name in homes:
                wrong.append(
                    f"{self.kind}: {name!r} is in {homes[name]} and in {home}; the one of "
                    f"{homes[name]} is used: rename the other, or uninstall its package."
                )
                continue
            made = self._opened(point)
            if isinstance(made, str):
                wrong.append(f"{self.kind}: {name!r} of {home} is left out ({made}).")
            else:
                found[name], homes[name] = made, home
        return wrong

    def _ours(self) -> dict[str, type[T]]:
        found = {}
        for info in iter_modules(import_module(self.package).__path__):
            module = import_module(f"{self.package}.{info.name}")
            for thing in vars(module).values():
                mine = is_a(thing, self.of) and not isabstract(thing)
                if mine and thing.__module__ == module.__name__ and hasattr(thing, "name"):
                    found[thing.name] = thing
        order = getattr(import_module(self.package), "ORDER", ())
        rank = {name: i for i, name in enumerate(order)}
        return dict(sorted(found.items(), key=lambda x: (rank.get(x[0], len(rank)), x[0])))

    def _opened(self, point: EntryPoint) -> type[T] | str:
        """What an entry point brings, or why it cannot be used."""
        try:
            made = point.load()
        except (Exception, SystemExit) as e:  # noqa: BLE001 (whatever another package's import raises)
            return f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
        if not is_a(made, self.of):
            return f"{point.value} is no {self.of.__name__}"
        if isabstract(made):
            missing = ", ".join(sorted(getattr(made, "__abstractmethods__", ())))
            return f"{made.__name__} lacks {missing}"
        unsaid = [n for n in said_by_class(self.of) if not hasattr(made, n)]
        if unsaid:
            return f"{made.__name__} does not say its {', '.join(unsaid)}"
        own = getattr(made, "name", None)
        if own != point.name:
            return f"its entry point is called {point.name!r}, its class {own!r}"
        return cast(type[T], made)

    def __getitem__(self, name: str) -> type[T]:
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def said_by_class(of: type) -> list[str]:
    """What each class of a kind has to say: the class variables that have no default."""
    return [
        n
        for n, hint in of.__annotations__.items()
        if str(hint).startswith("ClassVar") and not hasattr(of, n)
    ]


def is_a(thing: object, of: type) -> bool:
    """Whether something is a class of a kind; Python 3.10 takes ``dict[str, int]`` for a class."""
    return isclass(thing) and get_origin(thing) is None and issubclass(thing, of)


def _home(point: EntryPoint) -> str:
    """The package that an entry point belongs to."""
    return (point.dist and point.dist.name) or point.value
