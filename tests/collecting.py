"""What comes out of a pipeline that runs in this very process."""

from __future__ import annotations

import collections
import uuid
from typing import Any

_items: dict[str, list[Any]] = collections.defaultdict(list)


class Basket:
    """Takes elements by `beam.Map(basket.put)`; Beam pickles it, so it is known by a name, and holds nothing itself."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex

    def put(self, item: Any) -> None:
        """Adds an element."""
        _items[self.name].append(item)

    @property
    def items(self) -> list[Any]:
        """All that came."""
        return _items[self.name]
