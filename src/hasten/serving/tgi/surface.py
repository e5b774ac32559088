"""``tgi_surface``: the routes of Text Generation Inference as the server mounts them."""

from __future__ import annotations

from hasten.serving.surface import Surface
from hasten.serving.tgi.errors import STATUS_OF, write_error
from hasten.serving.tgi.routes import router


def tgi_surface() -> Surface:
    """Return generate, generate_stream, ``/`` and info, as huggingface_hub's client calls them."""
    return Surface("tgi", router, ("/generate", "/info"), write_error, status_of=STATUS_OF, paths=frozenset({"/"}))
