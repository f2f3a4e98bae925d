"""The openai package with a scripted model that uses tools and writes JSON: argv[1] is the server's base URL, argv[2] the
stage's line.
"""

import asyncio
import json
import sys
from typing import Literal

import openai
import pydantic

import stage
from stage import tool_call

BASE = sys.argv[1]
STAGE = stage.Stage(sys.argv[2])
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key="unused", max_retries=0)
MODEL = client.models.list().data[0].id
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
STRICT = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
TIME = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}},
}
PARIS = {"city": "Paris", "unit": "celsius", "days": 3}
TOKYO = {"city": "\u6771\u4eac \u201cTokyo\u201d \U0001f5fc\n", "unit": "fahrenheit"}


def chat(**more):
    return client.chat.completions.create(**({"model": MODEL, "messages": QUESTION} | more))


def fold(stream):
    """A streamed answer put together as the package's users do: content, calls, finish reason, usage."""
    content, calls, reason, usage = "", {}, None, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert reason is None, "nothing follows the finish reason"
            content += choice.delta.content or ""
            reason = choice.finish_reason
            for delta in choice.delta.tool_calls or []:
                if delta.index not in calls:
                    assert delta.id and delta.type == "function" and delta.function.name, delta
                    calls[delta.index] = [delta.function.name, ""]
                else:
                    assert delta.id is None and delta.function.name is None, delta
                calls[delta.index][1] += delta.function.arguments or ""
    return content, [calls[index] for index in sorted(calls)], reason, usage


def told_twice(say, **more):
    """The same reply whole and streamed: equal, and counted the same. The whole answer's choice and its calls."""
    STAGE.play(say, say)
    whole = chat(**more)
    streamed = fold(chat(stream=True, stream_options={"include_usage": True}, **more))
    (prompt, again) = STAGE.end()
    choice = whole.choices[0]
    calls = [[call.function.name, call.function.arguments] for call in choice.message.tool_calls or []]
    assert prompt == again
    assert streamed[:3] == (choice.message.content or "", calls, choice.finish_reason), (streamed, choice)
    for usage in [whole.usage, streamed[3]]:
        assert usage.prompt_tokens == stage.count_tokens(BASE, prompt), (usage, prompt)
        # A forced call ends with its last token, anything else with the end of the turn.
        assert usage.completion_tokens - stage.count_tokens(BASE, say) in (0, 1), (usage, say)
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return choice, calls


def text_is_text():
    say = "It is sunny \u2600\ufe0f in \u6771\u4eac, <b>I</b> think: {\"name\": 1}"
    for more in [{}, {"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "none"}]:
        choice, calls = told_twice(say, **more)
        assert (choice.message.content, calls, choice.finish_reason) == (say, [], "stop"), choice


def a_call_is_a_call():
    for arguments in [PARIS, TOKYO]:
        choice, calls = told_twice(tool_call("get_weather", arguments), tools=[WEATHER, TIME])
        assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
        assert [(name, json.loads(text)) for name, text in calls] == [("get_weather", arguments)]
        assert choice.message.tool_calls[0].id and choice.message.tool_calls[0].type == "function"


def text_and_several_calls_stand_beside_each_other():
    say = "\n".join(["I look.", tool_call("get_weather", PARIS), tool_call("get_time", {"zone": "CET"})])
    choice, calls = told_twice(say, tools=[WEATHER, TIME])
    assert choice.message.content.strip() == "I look." and choice.finish_reason == "tool_calls", choice
    assert [(name, json.loads(text)) for name, text in calls] == [("get_weather", PARIS), ("get_time", {"zone": "CET"})]
    assert len({call.id for call in choice.message.tool_calls}) == 2


def forced_calls_obey_their_schema():
    named = {"type": "function", "function": {"name": "get_weather"}}
    for tool_choice in ["required", named]:
        for tools in [[WEATHER, TIME], [STRICT, TIME]]:
            choice, calls = told_twice(tool_call("get_weather", PARIS), tools=tools, tool_choice=tool_choice)
            # The package's own documentation: a named choice ends with "stop" at OpenAI, everybody else says tool_calls.
            assert choice.finish_reason in ("tool_calls", "stop") and choice.message.content is None, choice
            assert [name for name, _ in calls] == ["get_weather"]
            stage.validate(calls[0][1], WEATHER["function"]["parameters"])
            assert json.loads(calls[0][1]) == PARIS


def what_the_grammar_forbids_cannot_be_said():
    wrong = [
        tool_call("get_weather", {"city": "Paris", "unit": "kelvin"}),
        tool_call("get_weather", {"unit": "celsius"}),
        tool_call("no_such_tool", {}),
        "I would rather talk.",
    ]
    for say in wrong:
        STAGE.play(say)
        try:
            chat(tools=[STRICT], tool_choice="required")
        except openai.InternalServerError:
            (fault,) = STAGE.faults()
            assert "may not be chosen" in fault, fault
        else:
            raise AssertionError(f"said: {say}")


def a_result_goes_back_to_the_model():
    STAGE.play(tool_call("get_weather", PARIS), "Sunny.")
    message = chat(tools=[WEATHER]).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny, 21 degrees"}
    answer = chat(tools=[WEATHER], messages=[*QUESTION, message, result])
    assert answer.choices[0].message.content == "Sunny."
    prompt = STAGE.end()[1]
    assert '"name": "get_weather"' in prompt and '"city": "Paris"' in prompt, prompt
    assert "sunny, 21 degrees" in stage.last_message(prompt), prompt


class Step(pydantic.BaseModel):
    explanation: str
    number: int


class Solution(pydantic.BaseModel):
    steps: list[Step]
    result: float
    mood: Literal["sure", "unsure"]


def parse_gives_the_pydantic_model():
    solution = Solution(steps=[Step(explanation="2 + 2 \u2260 5", number=4)], result=4.5, mood="sure")
    STAGE.play(solution.model_dump_json())
    answer = client.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Solution)
    assert answer.choices[0].message.parsed == solution, answer
    assert answer.choices[0].finish_reason == "stop"
    STAGE.play(solution.model_dump_json())
    with client.chat.completions.stream(model=MODEL, messages=QUESTION, response_format=Solution) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == solution
    STAGE.end()


def parse_gives_the_arguments_as_a_model():
    solution = Solution(steps=[], result=-1, mood="unsure")
    tool = openai.pydantic_function_tool(Solution)
    STAGE.play(tool_call("Solution", json.loads(solution.model_dump_json())))
    answer = client.chat.completions.parse(model=MODEL, messages=QUESTION, tools=[tool], tool_choice="required")
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == solution, answer
    STAGE.end()


def json_mode_and_choices_hold_the_model_to_them():
    say = '{"a": [1, {"b": null}], "c": "\u00e9\\n"}'
    choice, _ = told_twice(say, response_format={"type": "json_object"})
    assert json.loads(choice.message.content) == json.loads(say) and choice.finish_reason == "stop"
    choice, _ = told_twice("maybe", extra_body={"structured_outputs": {"choice": ["yes", "no", "maybe"]}})
    assert choice.message.content == "maybe"


def many_at_once_do_not_mix():
    async def gather():
        async with openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="unused", max_retries=0) as many:

            async def ask(number):
                messages = [{"role": "user", "content": f"Question number {number}."}]
                if number % 2:
                    answer = await many.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
                    return json.loads(answer.choices[0].message.tool_calls[0].function.arguments)
                stream = await many.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], stream=True)
                parts = [chunk.choices[0].delta.tool_calls or [] async for chunk in stream if chunk.choices]
                return json.loads("".join(call.function.arguments or "" for calls in parts for call in calls))

            return await asyncio.gather(*(ask(number) for number in range(16)))

    calls = [PARIS | {"city": f"city {number}"} for number in range(16)]
    STAGE.play(
        *({"say": tool_call("get_weather", call), "last": f"number {number}."} for number, call in enumerate(calls))
    )
    assert asyncio.run(gather()) == calls
    STAGE.end()


stage.run(
    [
        text_is_text,
        a_call_is_a_call,
        text_and_several_calls_stand_beside_each_other,
        forced_calls_obey_their_schema,
        what_the_grammar_forbids_cannot_be_said,
        a_result_goes_back_to_the_model,
        parse_gives_the_pydantic_model,
        parse_gives_the_arguments_as_a_model,
        json_mode_and_choices_hold_the_model_to_them,
        many_at_once_do_not_mix,
    ]
)
