"""Requests that schemathesis makes from the OpenAPI document, valid and not: each is answered as it says, and harms nothing."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.transport import Response
from schemathesis.schemas import APIOperation
from tests.exhaustive import repeats
from tests.serving.repairs import repaired
from tests.serving.watched_server import WatchedServer, check_error_form

SEED = 20_240_607  # of all cases; a failure prints its case as a command of curl
NUM_CASES = repeats("generated requests")
MAX_REPAIRS = 12
GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/generate", "/generate_stream", "/")
# Not among them: positive_data_acceptance, because JSON schema cannot say all limits: the context, the vocabulary, the names of the
# models, and fields that exclude each other. What ``repaired`` expects stands for it.
CHECK_NAMES = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)


def test_generated_requests(watched: WatchedServer) -> None:
    """A valid request that is refused runs once the fields are left out that its errors name, one by one."""
    load_all_checks()
    schema = schemathesis.openapi.from_url(f"{watched.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    num_shares = sum(map(shares, operations))
    counts: Counter[tuple[str, bool | None]] = Counter()  # cases by path, and by what ``send`` returns
    with requests.Session() as session:
        for operation in operations:
            for case in chosen_cases(operation, NUM_CASES * shares(operation) / num_shares):
                with watched.unharmed(f"seed {SEED}: {case.as_curl_command()}"):
                    counts[operation.path, send(case, session)] += 1
    assert sum(counts.values()) > 0.9 * NUM_CASES, counts
    num_run, num_not = (sum(counts[path, ran] for path in GENERATING) for ran in (True, False))
    assert num_run > num_not, f"valid requests that run: {num_run}, and not: {num_not}"
    assert all(counts[path, True] and counts[path, None] for path in GENERATING), counts


def shares(operation: APIOperation[Any, Any, Any, Any]) -> int:
    """Return how many cases a route gets, relative to others: few without a body."""
    if operation.path in GENERATING:
        return 24
    return 8 if operation.body else 1


def chosen_cases(operation: APIOperation[Any, Any, Any, Any], number: float) -> list[Case]:
    """Return about so many cases: half of them have one field at a bound or of another type, half are random."""
    config = operation.schema.config.generation_for(operation=operation)
    listed = list(operation.schema.iter_coverage_cases(operation, generation_modes=list(GenerationMode), generation_config=config))
    chosen = random.Random(f"{SEED} {operation.label}").sample(listed, min(len(listed), round(number / 2)))
    for mode in GenerationMode:
        chosen += random_cases(operation, mode, max(1, round(number / 4)))
    return chosen


def random_cases(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, number: int) -> list[Case]:
    """Return up to so many cases; none where a route has nothing that could be invalid."""
    found: list[Case] = []

    @seed(SEED)
    @settings(max_examples=number, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def collect(case: Case) -> None:
        found.append(case)

    try:
        collect()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, operation.label
    return found


def send(case: Case, session: requests.Session) -> bool | None:
    """Send a request, check its answer, and return whether it runs in the end; None for one that is not valid."""
    answer = case.call(session=session, timeout=60)
    case.validate_response(answer, checks=list(CHECKS.get_by_names(CHECK_NAMES)))
    command = case.as_curl_command()
    check_answer(case, answer, command)
    is_valid = case.meta is not None and case.meta.generation.mode.is_positive
    return runs_repaired(case, answer, session) if is_valid else None


def check_answer(case: Case, answer: Response, what: str) -> None:
    assert answer.status_code < 500, f"{answer.text} to {what}"
    if answer.status_code >= 400 and case.method != "HEAD":
        check_error_form(case.operation.path, answer.json())
        assert len(answer.content) < 4096, what


def runs_repaired(case: Case, answer: Response, session: requests.Session) -> bool:
    """Return whether a valid request runs without the fields that its errors name."""
    body = case.body
    for _ in range(MAX_REPAIRS):
        if answer.status_code < 300:
            return True
        body = repaired(body, answer.json())
        if body is None:
            return False
        answer = case.call(session=session, timeout=60, json=body)
        check_answer(case, answer, f"{case.path}: {body}")
    return False
