"""The text of conversations: equal to transformers', with content in the form that the template reads."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
from tests.text.chat_templates import CONVERSATIONS, SPECIAL_TOKENS, TEMPLATES, TOOL, weather
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hasten.core.errors import CheckpointError, InvalidRequest
from hasten.text.chat_template import ChatTemplate

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no prompt": {"add_generation_prompt": False},
    "tools": {"tools": [TOOL, weather]},
    "documents": {"documents": [{"title": "A", "text": "first"}, {"title": "B", "text": "second"}]},
    "continued": {"continue_final_message": True},
    "continued field": {"continue_final_message": "thinking"},
    "no thinking": {"enable_thinking": False},
    "date": {"date_string": "1 May", "tools_in_user_message": False, "tools": [TOOL]},
}


def oracle(template: str | dict[str, str]) -> Any:
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=Tokenizer(models.WordLevel({}, unk_token="<unk>")), chat_template=template, **SPECIAL_TOKENS)


@pytest.fixture(scope="module")
def chat_templates():
    """Return a template by name; the processes end with the module."""
    made = {name: ChatTemplate(source, SPECIAL_TOKENS) for name, source in TEMPLATES.items()}
    yield made
    for template in made.values():
        template.close()


@pytest.mark.parametrize("name", TEMPLATES)
def test_equal_to_transformers(chat_templates: dict[str, ChatTemplate], name: str) -> None:
    """What transformers refuses is refused, and what it would ignore: the variables that the template does not read."""
    tokenizer, num_equal = oracle(TEMPLATES[name]), 0
    for settings in SETTINGS.values():
        for conversation in CONVERSATIONS.values():
            before = copy.deepcopy(conversation)
            given = {"add_generation_prompt": not settings.get("continue_final_message"), **settings}
            try:
                expected = tokenizer.apply_chat_template(conversation, tokenize=False, **given)
            except Exception:
                expected = None
            try:
                text = chat_templates[name].render(conversation, **settings)
            except InvalidRequest as error:
                refusal = str(error)
                assert expected is None or "takes no" in refusal or "no such variable" in refusal
                continue
            assert conversation == before
            if name == "parts-only":
                continue  # transformers loses contents that are text
            assert text == expected
            num_equal += 1
    assert num_equal > 8 or name == "parts-only"


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_content_parts_never_reach_the_model_as_a_python_list(
    chat_templates: dict[str, ChatTemplate], name: str, role: str
) -> None:
    template = chat_templates[name]
    other = [message for message in CONVERSATIONS["tools"] if message["role"] != "tool"]
    conversation = {"system": user("Hi"), "user": [], "assistant": user("Hi"), "tool": other}[role]
    at = 0 if role == "system" else len(conversation)

    def rendered(content: Any) -> str:
        return template.render([*conversation[:at], {"role": role, "content": content}, *conversation[at:]])

    try:
        text = rendered("alpha beta")
    except InvalidRequest:
        with pytest.raises(InvalidRequest):
            rendered(parts("alpha beta"))
        return
    assert text == rendered(parts("alpha beta"))
    assert ("alpha beta" in text) or (name, role) in {("phi-3", "tool"), ("deepseek", "tool")}  # these leave it out
    two = rendered(parts("alpha", "beta"))
    assert "'text'" not in two and '"text"' not in two
    if name in {"chatml", "qwen-2.5", "qwen-3", "phi-3"} and role == "user":
        assert "alpha\nbeta" in two
    if name in {"gemma-3", "parts-only", "llama-3.2-vision", "macro-parts"} and role == "user":
        assert two == oracle(TEMPLATES[name]).apply_chat_template(
            user(parts("alpha", "beta")), tokenize=False, add_generation_prompt=True
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([*parts("a"), {"type": "image_url", "image_url": {"url": "x"}}], "not text.*'image_url'.*allowed.*text"),
        ([{"type": "input_audio"}], "'input_audio'"),
        ([{"type": "text"}], "'text' without a text"),
        (["a"], "'str'"),
        ({"type": "text", "text": "a"}, "user message is not text: got dict"),
        (7, "user message is not text: got int"),
        ("a \ud800 b", r"not Unicode text: got '\\ud800'.*surrogate"),
        (parts("\udfff"), "not Unicode text"),
        (parts("a") * 2 + [{"type": "text", "text": {1: 2}}], "names that are not text"),
        ([object()], "not JSON: got object"),
    ],
)
def test_contents_that_are_not_text_are_refused(chat_templates: dict[str, ChatTemplate], content: Any, message: str) -> None:
    for name in ("chatml", "gemma-3"):
        with pytest.raises(InvalidRequest, match=message):
            chat_templates[name].render(user(content))


@pytest.mark.parametrize("messages", [[], "Hi", None, {"role": "user"}, ["Hi"], [["role"]], [None], 3])
def test_what_is_no_conversation_is_refused(chat_templates: dict[str, ChatTemplate], messages: Any) -> None:
    with pytest.raises(InvalidRequest):
        chat_templates["chatml"].render(messages)


def test_odd_values_are_refused(chat_templates: dict[str, ChatTemplate]) -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    template = chat_templates["hermes"]
    for values, message in (
        ({"tools": [{"function": deep}]}, "nested too deeply.*64"),
        ({"tools": "search"}, "tools are not a list: got str"),
        ({"tools": [3]}, "neither a schema nor a function"),
        ({"tools": [lambda x: x]}, "no schema can be made"),
        ({"tools": [{"a": 10**5000}]}, "cannot be written as JSON"),
        ({"tools": [{"\ud800": 1}]}, "not Unicode text"),
        ({"tools": [{"a": {1}}]}, "not JSON: got set"),
        ({"documents": [{"text": "x"}]}, "takes no documents"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "does not go with"),
        ({"continue_final_message": "thinking"}, "nothing to continue"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            template.render(user("Hi"), **values)
    with pytest.raises(InvalidRequest, match="takes no tools"):
        chat_templates["chatml"].render(user("Hi"), tools=[TOOL])


def test_variables_that_cannot_act_are_refused_and_the_others_unpacked(chat_templates: dict[str, ChatTemplate]) -> None:
    template = chat_templates["qwen-3"]
    thinking = template.render(user("Hi"))
    quick = template.render(user("Hi"), enable_thinking=False)
    assert quick == thinking + "<think>\n\n</think>\n\n"
    assert template.render(user("Hi"), chat_template_kwargs={"enable_thinking": False}) == quick
    assert template.render(user("Hi"), chat_template_kwargs={}) == thinking
    assert template.render(user("Hi"), chat_template_kwargs={"add_generation_prompt": False}) == "<|im_start|>user\nHi<|im_end|>\n"
    for variables, message in (
        ({"enable_thinkng": False}, "no such variable.*'enable_thinkng'.*'enable_thinking'"),
        ({"chat_template_kwargs": {"thinking": False}}, "no such variable.*'thinking'"),
        ({"chat_template": "{{ messages }}"}, "'chat_template'"),
        ({"bos_token": "x"}, "'bos_token'"),
        ({"raise_exception": 1}, "'raise_exception'"),
        ({"tokenize": True}, "'tokenize'"),
        ({"chat_template_kwargs": {"messages": []}}, "cannot set messages"),
        ({"chat_template_kwargs": {"tools": []}}, "cannot set tools"),
        ({"chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": True}, "cannot set enable_thinking"),
        ({"chat_template_kwargs": "enable_thinking"}, "not a mapping"),
        ({"chat_template_kwargs": {3: 4}}, "not a mapping"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            template.render(user("Hi"), **variables)


def test_one_of_several_templates_is_chosen_as_in_transformers() -> None:
    sources = {"default": "plain {{ messages[0].content }}", "tool_use": "tools {{ tools | length }}"}
    template, tokenizer = ChatTemplate(sources, {}), oracle(sources)
    for tools in (None, [], [TOOL]):
        assert template.render(user("Hi"), tools=tools) == tokenizer.apply_chat_template(user("Hi"), tools=tools, tokenize=False)
    template.close()
    with pytest.raises(InvalidRequest, match=r"several chat templates.*got rag"):
        ChatTemplate({"rag": "x"}, {}).render(user("Hi"))


def test_a_broken_template_is_an_error_of_the_checkpoint() -> None:
    for source in ("{% if %}", "{% endfor %}", "{{ x | nofilter }}", "{% for x in messages %}"):
        template = ChatTemplate(source, {})
        with pytest.raises(CheckpointError, match="chat template cannot be read: got"):
            template.render(user("Hi"))
        template.close()


def test_the_time_limit_holds_for_a_whole_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding out which form of contents a template reads renders it several times."""
    monkeypatch.setattr("hasten.text.chat_template.SECONDS", 1.0)
    template = ChatTemplate("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", {})
    begin = time.monotonic()
    with pytest.raises(InvalidRequest, match="exceeds its limits"):
        template.render([*user("Hi"), {"role": "assistant", "content": "Hello"}, {"role": "tool", "content": "1"}])
    assert time.monotonic() - begin < 2.9
    # The limit says nothing about the template, so nothing is remembered of it.
    assert [forms._reads for forms in template._content_forms.values()] == [{}]
    template.close()


def test_roles_that_a_client_invents_are_not_remembered_for_ever() -> None:
    template = ChatTemplate(TEMPLATES["chatml"], SPECIAL_TOKENS)
    for start in range(0, 120, 40):
        text = template.render(
            [{"role": f"{'role' * 100}{i}" if i % 2 else f"role {i}", "content": "Hi"} for i in range(start, start + 40)]
        )
        assert text.count("Hi") == 40
    (forms,) = template._content_forms.values()
    assert len(forms._reads) <= 64 and max(len(role) for role, _ in forms._reads) <= 64
    template.close()


@pytest.mark.parametrize("name", ["self", "messages", "source"])
def test_names_of_the_method_are_no_variables(name: str) -> None:
    template = ChatTemplate(TEMPLATES["chatml"], SPECIAL_TOKENS)
    with pytest.raises(InvalidRequest, match=f"no such variable, or a request must not set it|cannot set {name}"):
        template.render(user("Hi"), chat_template_kwargs={name: 1})
    template.close()
