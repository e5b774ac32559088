"""Proposers: a model sampled by a seed, and an endpoint; and the file in which their answers are kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from tests.prompts.endpoint_server import Asked, completion, send, serve

from hasten import LLM, SamplingParams
from hasten.checkpoints.hub import resolve
from hasten.core.errors import InvalidOption, PromptTooLong
from hasten.prompts.endpoint import Endpoint
from hasten.prompts.proposal_file import ProposalFile
from hasten.prompts.proposer import EndpointProposer, ModelProposer, Proposals, open_proposer

PROMPT = "def add(a, b):\n"


def test_a_model_proposes_what_it_samples(llm: LLM) -> None:
    proposer = open_proposer(llm, None, None, chat=False, max_tokens=8)
    found = proposer.propose(PROMPT, 3, seed=5)
    num_tokens = 0
    for index, text in enumerate(found.texts):
        params = SamplingParams(temperature=1.0, max_tokens=8, stop=("</INS>",), seed=5 + index)
        (output,) = llm.generate(PROMPT, params, use_tqdm=False)
        assert text == output.outputs[0].text
        num_tokens += len(output.prompt_token_ids) + output.metrics.num_output_tokens
    assert len(set(found.texts)) == 3 and found.num_tokens == num_tokens
    assert proposer.propose(PROMPT, 3, seed=5) == found != proposer.propose(PROMPT, 3, seed=50)


def test_a_chat_model_gets_a_message(llm: LLM) -> None:
    found = ModelProposer(llm, chat=True, max_tokens=8).propose(PROMPT, 1, seed=5)
    params = SamplingParams(temperature=1.0, max_tokens=8, stop=("</INS>",), seed=5)
    (output,) = llm.chat([{"role": "user", "content": PROMPT}], params, use_tqdm=False)
    assert found.texts == (output.outputs[0].text,)


def test_a_meta_prompt_that_is_too_long_has_an_error_of_its_own(llm: LLM) -> None:
    with pytest.raises(PromptTooLong):
        ModelProposer(llm, chat=False, max_tokens=8).propose("word " * 400, 2, seed=0)


def test_identities_change_with_what_answers_depend_on(llm: LLM) -> None:
    proposers = [
        *(ModelProposer(llm, chat=chat, max_tokens=num) for chat in (False, True) for num in (8, 9)),
        *(EndpointProposer(Endpoint(f"http://{host}/v1", model)) for host in ("a", "b") for model in ("m", "n")),
    ]
    assert len({proposer.identity for proposer in proposers}) == 8


def test_a_model_without_a_tokenizer_cannot_propose(tmp_path: Path) -> None:
    folder = shutil.copytree(resolve("demo"), tmp_path / "bare", ignore=shutil.ignore_patterns("token*", "special*"))
    with LLM(str(folder), threads=1, kv_cache_memory="16MiB") as bare, pytest.raises(InvalidOption, match="no tokenizer"):
        ModelProposer(bare, chat=False, max_tokens=8)


def test_an_endpoint_is_asked_once_per_text(llm: LLM) -> None:
    def answer(handler: BaseHTTPRequestHandler, asked: Asked) -> None:
        send(handler, completion(f"text {asked.body['seed']}"))

    with serve(answer) as server:
        found = open_proposer(llm, server.url, "m", chat=False, max_tokens=8).propose("Write.", 3, seed=7)
        bodies = [asked.body for asked in server.asked]
    assert found == Proposals(("text 7", "text 8", "text 9"), 126)
    assert all(body["temperature"] == 1.0 and body["messages"][0]["content"] == "Write." for body in bodies)


@dataclass
class CountingProposer:
    max_count: int = 3
    identity: str = "counting"
    asked: list[tuple[str, int, int]] = field(default_factory=list)

    def propose(self, prompt: str, count: int, seed: int) -> Proposals:
        self.asked.append((prompt, count, seed))
        return Proposals(tuple(f"é {prompt} {seed} {index}" for index in range(count)), count)


def test_answers_are_kept_in_parts(tmp_path: Path) -> None:
    path, proposer = tmp_path / "new" / "proposals.jsonl", CountingProposer()
    with ProposalFile(path) as kept:
        found = kept.propose(proposer, "p", 8, seed=100)
        assert proposer.asked == [("p", 3, 100), ("p", 3, 103), ("p", 2, 106)]
        assert found.num_tokens == 8 and found.texts[3:6] == ("é p 103 0", "é p 103 1", "é p 103 2")
    content = path.read_bytes()
    path.write_bytes(content[:-5])  # killed while the last part was written
    with ProposalFile(path) as kept:
        assert kept.propose(proposer, "p", 8, seed=100) == found and proposer.asked[3:] == [("p", 2, 106)]
        assert kept.propose(proposer, "p", 8, seed=100) == found and len(proposer.asked) == 4
        # Whatever an answer depends on makes another key.
        kept.propose(proposer, "q", 3, seed=100)
        kept.propose(proposer, "p", 3, seed=101)
        kept.propose(proposer, "p", 1, seed=100)
        kept.propose(CountingProposer(identity="other", asked=proposer.asked), "p", 3, seed=100)
        assert len(proposer.asked) == 8
    assert path.read_bytes()[: len(content)] == content


GOOD = {"key": "k", "texts": ["a"], "num_tokens": 1}


@pytest.mark.parametrize(
    "line",
    [
        *("not JSON", "3", "[]", "{}", "[" * 10_000),
        *(json.dumps({**GOOD, **wrong}) for wrong in ({"key": 1}, {"texts": "a"}, {"texts": [1]}, {"texts": ["\ud800"]})),
        *(json.dumps({**GOOD, "num_tokens": wrong}) for wrong in (-1, 1.5, True, None, 10**400)),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "proposals.jsonl"
    file.write_text(f'{{"hasten_prompt_proposals": 1}}\n{json.dumps(GOOD)}\n{line}\n')
    with pytest.raises(InvalidOption, match=r"line 3 of .*proposals.jsonl is damaged"):
        ProposalFile(file)


def test_a_file_of_results_is_no_file_of_proposals(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text('{"hasten_prompt_run": 1}\n')
    with pytest.raises(InvalidOption, match="this is no file of proposals"):
        ProposalFile(file)
