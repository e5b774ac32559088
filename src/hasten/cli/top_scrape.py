"""``Scrape``: the metrics of a server at one moment, and ``fetch``, which asks for them."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.core.errors import HastenError, InvalidOption, show

if TYPE_CHECKING:
    from http.client import HTTPResponse

MAX_BYTES = 1 << 24  # of an answer
TIMEOUT = 5.0  # seconds; a server gives each engine two
EXTRA = 'Run pip install "hasten[serve]"'
Labels = dict[str, str]


@dataclass(frozen=True, slots=True)
class Scrape:
    """``samples``: name of a series -> its label sets and values."""

    time: float  # seconds of ``time.monotonic``
    samples: dict[str, list[tuple[Labels, float]]]

    @classmethod
    def parse(cls, text: str, now: float) -> Scrape:
        """Raises ``ValueError`` for a text that is not in Prometheus's format."""
        from prometheus_client.parser import text_string_to_metric_families

        samples: dict[str, list[tuple[Labels, float]]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name].append((sample.labels, sample.value))
        return cls(now, dict(samples))

    def values(self, name: str, **labels: str) -> list[tuple[Labels, float]]:
        """Return the samples of a series that have these labels."""
        return [(own, value) for own, value in self.samples.get(name, []) if labels.items() <= own.items()]

    def total(self, name: str, **labels: str) -> float | None:
        """Return the sum of a series; None if the server has none."""
        found = self.values(name, **labels)
        return sum(value for _, value in found) if found else None

    def buckets(self, name: str, **labels: str) -> list[tuple[float, float]]:
        """Return the upper bounds of a histogram, rising, each with the number of observations up to it."""
        totals: dict[float, float] = defaultdict(float)
        for own, value in self.values(f"{name}_bucket", **labels):
            totals[float(own["le"])] += value
        return sorted(totals.items())

    @property
    def models(self) -> list[str]:
        """The loaded models of the server, by name."""
        return sorted({labels["model_name"] for labels, _ in self.values("hasten_engine_up") if "model_name" in labels})


def metrics_url(server: str) -> str:
    """Return the address of a server's metrics. Raises ``InvalidOption`` for what is no URL of a server."""
    from urllib.parse import urlsplit

    url = server if "://" in server else f"http://{server}"
    try:
        parts = urlsplit(url)
        is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_server = False
    if not is_server or parts.username is not None or any(character.isspace() or not character.isprintable() for character in url):
        raise InvalidOption("the URL is not one of a server", got=show(server), allowed="such as http://127.0.0.1:8000")
    path = parts.path.rstrip("/").removesuffix("/metrics")
    return f"{parts.scheme}://{parts.netloc}{path}/metrics"


def fetch(url: str, api_key: str | None) -> Scrape:
    """Return the metrics at an address. Raises ``HastenError`` if no hasten server gives them."""
    import urllib.error
    import urllib.request

    headers = {"accept": "text/plain; version=0.0.4", "user-agent": "hasten-top"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    opener = urllib.request.build_opener(_no_redirects())
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
            text = _read(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(url, error.code, has_key=api_key is not None) from None
    except (OSError, ValueError) as error:  # ``URLError`` is one; ``ValueError``: an answer that is no HTTP
        reason = getattr(error, "reason", None) or error
        raise HastenError(f"no server answers at {url}", got=show(str(reason)), remedy="Start one with hasten serve") from None
    return _parse(url, text)


def _no_redirects() -> type:
    from urllib.request import HTTPRedirectHandler

    class NoRedirects(HTTPRedirectHandler):
        """Follows none: the API key is for one server alone."""

        def redirect_request(self, *_: object) -> None:
            return None

    return NoRedirects


def _read(answer: HTTPResponse) -> str:
    from http.client import HTTPException

    try:
        text = answer.read(MAX_BYTES + 1)
    except HTTPException as error:
        raise OSError(str(error)) from None
    if len(text) > MAX_BYTES:
        raise ValueError(f"the answer is longer than {MAX_BYTES:,} bytes")
    return text.decode("utf-8", "replace")


def _refusal(url: str, status: int, *, has_key: bool) -> HastenError:
    if status in (401, 403):
        what = f"the server at {url} refuses the API key" if has_key else f"the server at {url} asks for an API key"
        return HastenError(what, remedy="Set HASTEN_API_KEY, or give a file with --api-key-file")
    if status in (404, 405, 406) or 300 <= status < 400:
        return _stranger(url)
    return HastenError(f"the server at {url} does not give its metrics", got=f"status {status}")


def _stranger(url: str) -> HastenError:
    return HastenError(f"no hasten server answers at {url}", remedy="Give the address that hasten serve prints")


def _parse(url: str, text: str) -> Scrape:
    try:
        scrape = Scrape.parse(text, time.monotonic())
    except ImportError:
        raise HastenError("the package prometheus_client is not installed", remedy=EXTRA) from None
    except Exception:  # the parser raises many kinds for other texts, such as a web page
        raise _stranger(url) from None
    if not scrape.values("hasten_build_info"):
        raise _stranger(url)
    return scrape
