"""Every conversation of a campaign follows from a seed and a number."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.fuzz_acts import Exchange, Said, commands, datasets, negotiation, pdus
from tests.faults.fuzz_data import Maker
from tests.faults.fuzz_services import commitment, http


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One connection. Without an opening every exchange has a connection of its own."""

    number: int
    layer: str
    exchanges: tuple[Exchange, ...]
    opening: bytes | None = None


LAYERS: dict[Callable[[Maker, random.Random], Said], int] = {
    negotiation: 30, pdus: 100, commands: 16, datasets: 22, commitment: 8, http: 8,
}  # fmt: skip


class Script:
    """Every conversation of a campaign, by number."""

    def __init__(self, seed: int) -> None:
        """Make what is always the same: templates, and structures that hypothesis finds."""
        self.seed = seed
        self.maker = Maker(seed)

    def conversation(self, at: int) -> Conversation:
        """Return the conversation of this number; the same for the same seed."""
        rng = random.Random(f"{self.seed}:{at}")
        layer = rng.choices(list(LAYERS), weights=list(LAYERS.values()))[0]
        exchanges, opening = layer(self.maker, rng)
        return Conversation(
            number=at, layer=layer.__name__, exchanges=tuple(exchanges), opening=opening
        )
