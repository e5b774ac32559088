"""What guessing costs by the number of lines, as it was measured the last times."""

from __future__ import annotations

from dataclasses import dataclass, field

FOLLOWED = 0.2  # share of a new measurement in what is believed


@dataclass(slots=True)
class Pace:
    """Numbers of lines that lie between the same powers of two are alike."""

    _seconds: dict[int, float] = field(default_factory=dict)
    _assumed: set[int] = field(default_factory=set)  # of these, what was never measured
    _reading: float | None = None  # seconds per token
    _reached: dict[int, list[float]] = field(default_factory=dict)  # [number of lines][i]: share of rounds that went on to call i

    def note(self, num_lines: int, seconds: float) -> None:
        bits = num_lines.bit_length()
        if bits in self._seconds and bits not in self._assumed:
            seconds = self._seconds[bits] + FOLLOWED * (seconds - self._seconds[bits])
        self._seconds[bits] = seconds
        self._assumed.discard(bits)

    def assume(self, num_lines: int, seconds: float) -> None:
        """What a call may take, as long as none was measured."""
        if self.seconds(num_lines) is None:
            self._seconds[num_lines.bit_length()] = seconds
            self._assumed.add(num_lines.bit_length())

    def note_round(self, num_lines: int, asked: int, made: int) -> None:
        """A round that might have made ``asked`` calls ended after ``made``: its guesses had become too doubtful."""
        reached = self._reached.setdefault(num_lines.bit_length(), [])
        reached += reached[-1:] * (asked - len(reached)) or [1.0] * (asked - len(reached))
        for i in range(asked):
            reached[i] += FOLLOWED * ((i < made) - reached[i])

    def calls(self, num_lines: int, asked: int) -> float:
        """How many of so many calls a round makes."""
        reached = self._reached.get(num_lines.bit_length()) or [1.0]
        return sum(reached[:asked]) + reached[-1] * max(0, asked - len(reached))

    def note_reading(self, num_tokens: int, seconds: float) -> None:
        """So many tokens were read at once, before any was guessed."""
        each = seconds / num_tokens
        self._reading = each if self._reading is None else self._reading + FOLLOWED * (each - self._reading)

    def reading(self, num_tokens: int) -> float:
        """Seconds for that; 0 as long as nothing is known."""
        return (self._reading or 0.0) * num_tokens

    def cost(self, num_lines: int, asked: int, sure: int = 0) -> float | None:
        """Seconds of a round of up to so many calls, beside ``sure`` ones; None if no call was made yet for so few lines."""
        seconds = self.seconds(num_lines)
        return None if seconds is None else seconds * (sure + self.calls(num_lines, asked))

    def seconds(self, num_lines: int) -> float | None:
        """Of a call for so many lines, or else for the most below that; None if it was never made for so few."""
        known = [bits for bits in self._seconds if bits <= num_lines.bit_length()]
        return self._seconds[max(known)] if known else None
