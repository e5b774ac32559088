"""What the limits of chat templates cost: a conversation rendered in the process that can be killed, and in place.

``python benchmarks/chat_template.py --out benchmarks/results/chat_template.json``
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hasten.bench.provenance import provenance
from hasten.text.template_process import TemplateProcess
from hasten.text.template_renderer import TemplateRenderer

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
REPEATS, CALLS = 15, 100


def milliseconds(call: Callable[[], object]) -> float:
    """Return the time per call in the fastest repeat; the machine may be shared."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - start) / CALLS * 1e3)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    process, renderer = TemplateProcess(), TemplateRenderer()
    result = dict(provenance("chat_template"))
    start = time.perf_counter()
    process.render("", {}, 0)
    result["start_ms"] = round((time.perf_counter() - start) * 1e3, 1)
    for num_messages in (2, 20, 200):
        messages = [{"role": ("user", "assistant")[i % 2], "content": "one two three " * 13} for i in range(num_messages)]
        variables = {"messages": messages, "add_generation_prompt": True}
        request = {"template": TEMPLATE, "variables": variables, "max_length": 1 << 20}
        result[f"messages_{num_messages}"] = {
            "in_process_ms": round(milliseconds(partial(process.render, TEMPLATE, variables, 1 << 20)), 3),
            "in_place_ms": round(milliseconds(partial(renderer.answer, request)), 3),
        }
    process.close()
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
