"""Types of settings that have a range: ``Annotated`` numbers, checked wherever a config is resolved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from ldm.errors import UserError

LARGEST = 2**31 - 1
#: layers of a part of a model, and items of a list among its settings
MAX_LAYERS = 100


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; ``above`` and ``below`` leave these two out."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __str__(self) -> str:
        if self == Range():
            return "a number"
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"above {self.low:g}" if self.above else f"of at least {self.low:g}")
        if self.high < LARGEST:
            bounds.append(f"below {self.high:g}" if self.below else f"of at most {self.high:.10g}")
        return "a number " + " and ".join(bounds)

    def check(self, value: float, where: str) -> None:
        """Raise :class:`UserError` for a number out of the range, or one that is not finite."""
        inside = self.low <= value <= self.high
        inside &= not (self.above and value == self.low) and not (self.below and value == self.high)
        if not inside or not math.isfinite(value):
            raise UserError(f"{where} is {value}; give {self}")


Count = Annotated[int, Range(0, LARGEST)]
"""0, 1, 2 ..."""
Positive = Annotated[int, Range(1, LARGEST)]
"""1, 2, 3 ..."""
Batch = Annotated[int, Range(1, 2**16)]
"""Pictures at once."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""What every generator of random numbers takes."""
Share = Annotated[float, Range(0, 1)]
"""0 to 1, both included."""
Amount = Annotated[float, Range(0)]
"""0 or more."""
Factor = Annotated[float, Range(0, above=True)]
"""More than 0."""
