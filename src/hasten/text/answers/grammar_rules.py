"""``GrammarRules``: the rules of a grammar in llguidance's dialect of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping


class GrammarRules:
    """Collects rules. ``special_token_ids``: texts that stand in the grammar by their token ids."""

    def __init__(self, special_token_ids: Mapping[str, int]) -> None:
        self._ids = special_token_ids
        self._rules: dict[str, str] = {}
        special = sorted(special_token_ids, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def add(self, name: str, expression: str) -> str:
        """Add a rule, and return its name."""
        self._rules[name] = expression
        return name

    def literal(self, text: str) -> str:
        """Return the expression of a text, in which special tokens stand by their ids."""
        parts, start = [], 0
        for found in self._special.finditer(text):
            parts += [self._quoted(text[start : found.start()]), f"<[{self._ids[found.group()]}]>"]
            start = found.end()
        parts.append(self._quoted(text[start:]))
        return " ".join(part for part in parts if part)

    def free_text(self) -> str:
        """Return the rule of any text without special tokens."""
        return self.add("TEXT", r"/(.|\n)*/")

    def text_until(self, literal: str) -> str:
        """Return the rule of any text up to a literal, and the literal."""
        name = f"until_{len(self._rules)}"
        special = self._special.search(literal)
        if special is None:
            return self.add(name + "[lazy]", f"{self.free_text()} {self._quoted(literal)}").removesuffix("[lazy]")
        # Free text cannot hold a special token, so it ends before the first one of the literal.
        before = self.add(name.upper(), f"{self.free_text()} {self._quoted(literal[: special.start()])}")
        return self.add(name, f"{before} {self.literal(literal[special.start() :])}")

    def text(self, start: str) -> str:
        """Return the grammar of an expression."""
        lines = [f"start: {start}", *(f"{name}: {expression}" for name, expression in self._rules.items())]
        return "%llguidance {}\n" + "\n".join(lines) + "\n"

    @staticmethod
    def _quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False) if text else ""
