"""The fields of ``TaskOptions`` as command options."""

from __future__ import annotations

from hasten.cli.options import OptionGroup
from hasten.entrypoints.task_options import TaskOptions

HELP = {
    "max_tokens": "Maximum tokens of a generated answer.",
    "stop": "Text that ends a generated answer; a line break if left out, and '' for none.",
    "ignore_case": "Compare generated answers without case.",
    "delimiter": "Text between prompt and choice where neither has white space; a space if left out, and nothing with --chat.",
    "chat": "Give each prompt as a user's message, rendered by the chat template.",
}
TASK = OptionGroup("task_options", "Task", TaskOptions, HELP)
