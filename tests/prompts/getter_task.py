"""A small real task: the statement that returns an attribute, for the one that sets it.

The names are those of Python code that the demo model was not trained on. Each output holds the name of its own input, so an output
of another item is wrong.
"""

from __future__ import annotations

import json
import keyword
import random
import re
from pathlib import Path

from hasten.prompts.task import PromptTask, read_prompt_task
from hasten.quality.documents import HELD_OUT, read_texts


def names(number: int) -> list[str]:
    found = {name for text in read_texts(HELD_OUT) for name in re.findall(r"\b[a-z][a-z_0-9]{2,}\b", text)}
    return random.Random(0).sample(sorted(found - set(keyword.kwlist)), number)


def getter_task(file: Path, number: int, *, are_shuffled: bool = False) -> PromptTask:
    """Write the task to ``file``; ``are_shuffled``: each input has the output of another one."""
    inputs = names(number)
    outputs = inputs[1:] + inputs[:1] if are_shuffled else inputs
    lines = [json.dumps({"input": f"self.{a} = {a}", "output": f"return self.{b}"}) for a, b in zip(inputs, outputs, strict=True)]
    file.write_text("\n".join(lines))
    return read_prompt_task(file)
