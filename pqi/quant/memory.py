"""What lowerings of the same network have in common: fits of weights, which take most of their time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

T = TypeVar("T")

ENTRIES = 512


class Memory:
    """Results by key, the least recently used ones forgotten first. For one network: keys do not name it."""

    def __init__(self, entries: int = ENTRIES) -> None:
        self.entries = entries
        self._kept: OrderedDict[Hashable, object] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result kept under the key, or a new one."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return cast(T, self._kept[key])
        made = self._kept[key] = make()
        while len(self._kept) > self.entries:
            self._kept.popitem(last=False)
        return made
