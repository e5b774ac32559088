"""GLM 4.7 writes calls as GLM 4.5 does, without line breaks."""

from __future__ import annotations

from dataclasses import replace

from hasten.text.answers.call_shape import CallShape, ParameterShape
from hasten.text.answers.tools.glm45 import OPENER
from hasten.text.answers.tools.glm45 import SYNTAX as GLM45

SYNTAX = replace(
    GLM45,
    shape=CallShape(
        before="<tool_call>{name}",
        after="</tool_call>",
        parameters=ParameterShape(before="<arg_key>{name}</arg_key><arg_value>", after="</arg_value>"),
        trigger=OPENER,
    ),
)
