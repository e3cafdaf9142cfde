"""What one kind of fault gave."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """How often what happened, and everything that should not have."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    most: float = 0.0  # the most memory of one load, in units of the file's size

    def saw(self, event: str) -> None:
        """One more of what is allowed."""
        self.counts[event] += 1

    def wrong(self, event: str, kind: str = "WRONG") -> None:
        """One that is not, counted under its kind."""
        self.counts[kind] += 1
        self.bad.append(event)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {event}" for event, count in sorted(self.counts.items()))
        memory = f"; at most {self.most:.2f} times the file's size in memory" if self.most else ""
        return f"{self.name}: {sum(self.counts.values())}: {counts}{memory}"
