"""The share of the shards that one process makes, among all processes of all machines."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Shards are dealt out in turn: `index` of `count` gets every `count`-th one.

    Raises:
        ValueError: `index` is not below `count`.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"share {self.index} of {self.count}: count from 0 to {self.count - 1}"
            )

    def has(self, shard: int) -> bool:
        """Tell whether this share has a shard, by its number."""
        return shard % self.count == self.index

    def split(self, index: int, count: int) -> "Share":
        """Return the part of this share that one of `count` processes of a launch takes."""
        return Share(self.index * count + index, self.count * count)

    def __str__(self) -> str:
        return f"share {self.index} of {self.count}"


WHOLE = Share()
