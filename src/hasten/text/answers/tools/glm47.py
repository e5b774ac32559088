"""GLM 4.7 writes calls as GLM 4.5 does, without line breaks."""

from __future__ import annotations

from hasten.text.answers.tools.glm45 import SYNTAX as GLM45

SYNTAX = GLM45
