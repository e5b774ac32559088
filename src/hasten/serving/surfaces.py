"""``all_surfaces``: the APIs of a server."""

from __future__ import annotations

from hasten.serving.anthropic.surface import anthropic_surface
from hasten.serving.metrics.surface import metrics_surface
from hasten.serving.native.surface import native_surface
from hasten.serving.openai.surface import openai_surface
from hasten.serving.surface import Surface
from hasten.serving.tgi.surface import tgi_surface


def all_surfaces() -> list[Surface]:
    """Return the surfaces, in the order in which their paths are looked up.

    The last one is OpenAI's, whose errors are those of paths that belong to none.
    """
    return [anthropic_surface(), tgi_surface(), native_surface(), metrics_surface(), openai_surface()]
