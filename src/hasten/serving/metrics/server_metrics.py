"""``ServerMetrics``: counters of the HTTP server itself. The engines count what they compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hasten.engine.histogram import Histogram

# Seconds from a request's first byte to its answer's last.
REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"  # the route of a request that reached none
# Statuses of requests that were refused, whatever API they came by.
REASONS = {
    400: "invalid_request",
    401: "authentication",
    403: "permission",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    411: "length_required",
    413: "too_large",
    415: "media_type",
    421: "host",
    422: "invalid_request",
    429: "rate_limit",
    431: "headers_too_large",
    503: "unavailable",
    529: "unavailable",
}


@dataclass(slots=True, eq=False)
class ServerMetrics:
    """Counters that the server's event loop alone writes and reads.

    Routes are templates, so clients cannot make new label values.
    """

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)  # by route, method and status
    seconds: dict[tuple[str, str], Histogram] = field(default_factory=dict)  # by route and method
    rejected: Counter[str] = field(default_factory=Counter)  # by reason
    num_in_flight: int = 0
    num_disconnects: int = 0  # requests whose client left before the end of the answer
    received_bytes: int = 0  # of bodies, as ``sent_bytes``
    sent_bytes: int = 0
    count_connections: Callable[[], int] | None = None  # of clients, now; None: the server cannot tell

    def end(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Count a request that has been answered."""
        route, method = route or UNMATCHED, method if method in METHODS else "OTHER"
        self.requests[route, method, status] += 1
        if (reason := REASONS.get(status)) is not None:
            self.rejected[reason] += 1
        if (histogram := self.seconds.get((route, method))) is None:
            histogram = self.seconds[route, method] = Histogram(REQUEST_SECONDS)
        histogram.add(seconds)
