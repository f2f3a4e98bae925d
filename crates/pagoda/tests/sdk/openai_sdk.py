"""The official openai package against a running server: argv[1] is its base URL, argv[2] one with a key, argv[3] the key.

Each check is a function; the script prints one line per check and fails at the first wrong one.
"""

import asyncio
import sys
from typing import Literal

import openai
import pydantic

import stage

BASE, GUARDED, KEY = sys.argv[1], sys.argv[2], sys.argv[3]
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key="unused", max_retries=0)
MODEL = client.models.list().data[0].id
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def post(path, body):
    return stage.post(BASE, path, body)


def chat(**more):
    arguments = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 24} | more
    return client.chat.completions.create(**arguments)


def complete(**more):
    arguments = {"model": MODEL, "prompt": "The sky is", "temperature": 0, "max_tokens": 16} | more
    return client.completions.create(**arguments)


def models_are_listed_and_found():
    model = client.models.retrieve(MODEL)
    assert model.id == MODEL and model.max_model_len == 2048, model


def chat_knows_the_capital_of_france():
    answer = chat()
    assert "Paris" in answer.choices[0].message.content, answer
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop", answer


def text_parts_are_one_message():
    parts = [{"type": "text", "text": "What is the capital "}, {"type": "text", "text": "of France?"}]
    answer = chat(messages=[{"role": "user", "content": parts}])
    assert "Paris" in answer.choices[0].message.content, answer


def streamed_chat_equals_whole_chat():
    for sampling in [{"temperature": 0}, {"temperature": 0.9, "seed": 7}]:
        messages = [{"role": "user", "content": "Write one sentence about caf\u00e9s in \u6771\u4eac \U0001f600."}]
        whole = chat(messages=messages, max_tokens=40, **sampling)
        text, reasons, usage = "", [], None
        options = {"include_usage": True}
        for chunk in chat(messages=messages, max_tokens=40, stream=True, stream_options=options, **sampling):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
            usage = chunk.usage or usage
        assert text == whole.choices[0].message.content, (text, whole)
        assert reasons == [whole.choices[0].finish_reason], reasons
        assert usage.completion_tokens == whole.usage.completion_tokens, (usage, whole.usage)
        assert usage.prompt_tokens == whole.usage.prompt_tokens


def streamed_completion_equals_whole_completion():
    whole = complete(max_tokens=40, seed=3, temperature=0.8)
    stream = complete(max_tokens=40, seed=3, temperature=0.8, stream=True)
    assert "".join(choice.text for chunk in stream for choice in chunk.choices) == whole.choices[0].text


def usage_equals_the_token_ids_counted():
    whole = complete(extra_body={"return_token_ids": True})
    choice = whole.choices[0]
    assert whole.usage.completion_tokens == len(choice.token_ids), whole
    prompt = post("/tokenize", {"model": MODEL, "prompt": "The sky is"})
    assert whole.usage.prompt_tokens == prompt["count"] == len(prompt["tokens"]), (whole.usage, prompt)
    rendered = post("/tokenize", {"model": MODEL, "messages": QUESTION})
    assert chat().usage.prompt_tokens == rendered["count"], rendered
    assert post("/detokenize", {"model": MODEL, "tokens": prompt["tokens"]})["prompt"] == "The sky is"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def repeated_prompts_are_cached():
    messages = [{"role": "system", "content": "You know the planets. " * 20}] + QUESTION
    first = chat(messages=messages)
    second = chat(messages=messages)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 1, second.usage
    assert second.choices[0].message.content == first.choices[0].message.content


def n_gives_different_samples_of_one_prompt():
    answer = complete(n=3, temperature=1.0, seed=1, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.text for choice in answer.choices}) > 1, answer
    again = complete(n=3, temperature=1.0, seed=1, max_tokens=12)
    assert [choice.text for choice in again.choices] == [choice.text for choice in answer.choices]


def logprobs_name_the_chosen_tokens():
    answer = chat(logprobs=True, top_logprobs=3)
    entries = answer.choices[0].logprobs.content
    assert len(entries) >= answer.usage.completion_tokens - 1, answer
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        # Greedy: the chosen token is the likeliest.
        assert entry.top_logprobs[0].token == entry.token, entry
    text = "".join(entry.token for entry in entries)
    assert answer.choices[0].message.content in text, (text, answer)


def stop_strings_end_the_answer_and_stay_out_of_it():
    full = complete(prompt="1, 2, 3, 4,", max_tokens=24).choices[0].text
    assert "7" in full, full
    cut = complete(prompt="1, 2, 3, 4,", max_tokens=24, stop=["7"]).choices[0]
    assert cut.text == full.split("7")[0] and cut.finish_reason == "stop", cut
    streamed = complete(prompt="1, 2, 3, 4,", max_tokens=24, stop=["7"], stream=True)
    assert "".join(choice.text for chunk in streamed for choice in chunk.choices) == cut.text


def max_tokens_ends_with_length():
    answer = complete(max_tokens=3, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 3, answer


def echo_without_output_gives_the_prompt():
    answer = complete(max_tokens=0, echo=True)
    assert answer.choices[0].text == "The sky is" and answer.usage.completion_tokens == 0, answer


def raises(kind, status, part, call):
    try:
        call()
    except kind as error:
        assert error.status_code == status and part in str(error), error
        assert error.request_id, "an answer without a request id"
        return
    raise AssertionError(f"no {kind.__name__}")


def errors_are_the_sdks_own_classes():
    raises(openai.BadRequestError, 400, "temperature", lambda: chat(temperature=-1))
    raises(openai.BadRequestError, 400, "messages", lambda: chat(messages="hello"))
    long = "word " * 5000
    raises(openai.BadRequestError, 400, "maximum context length is 2048", lambda: complete(prompt=long))
    raises(openai.NotFoundError, 404, "no such model", lambda: chat(model="no-such-model"))
    raises(openai.NotFoundError, 404, "", lambda: client.get("/no-such-route", cast_to=object))


def keys_are_checked():
    wrong = openai.OpenAI(base_url=f"{GUARDED}/v1", api_key="wrong-key-0123456789abcdef", max_retries=0)
    raises(openai.AuthenticationError, 401, "", lambda: wrong.models.list())
    right = openai.OpenAI(base_url=f"{GUARDED}/v1", api_key=KEY, max_retries=0)
    assert right.models.list().data


def the_async_client_serves_many_at_once():
    async def gather():
        async with openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="unused") as many:
            calls = [
                many.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=24)
                for _ in range(8)
            ]
            return await asyncio.gather(*calls)

    alone = chat().choices[0].message.content
    assert all(answer.choices[0].message.content == alone for answer in asyncio.run(gather()))


class Booking(pydantic.BaseModel):
    city: str
    nights: int
    board: Literal["none", "breakfast", "full"]


BOOK = {
    "type": "function",
    "function": {"name": "book_hotel", "description": "Books a hotel.", "parameters": Booking.model_json_schema()},
}
CANCEL = {
    "type": "function",
    "function": {
        "name": "cancel",
        "parameters": {
            "type": "object",
            "properties": {"reason": {"enum": ["price", "date"]}, "urgent": {"type": "boolean"}},
            "required": ["reason", "urgent"],
        },
    },
}


def a_weak_model_is_held_to_the_tools():
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in [BOOK, CANCEL]}
    named = {"type": "function", "function": {"name": "cancel"}}
    for tool_choice in ["required", named]:
        more = {"tools": [BOOK, CANCEL], "tool_choice": tool_choice, "max_tokens": 512, "seed": 5, "temperature": 0.8}
        whole = chat(**more, extra_body={"return_token_ids": True})
        message = whole.choices[0].message
        calls = [(call.function.name, call.function.arguments) for call in message.tool_calls]
        assert message.content is None and calls, whole
        assert tool_choice == "required" or [name for name, _ in calls] == ["cancel"], whole
        for name, arguments in calls:
            stage.validate(arguments, schemas[name])
        assert whole.usage.completion_tokens == len(whole.choices[0].token_ids), whole
        rendered = post("/tokenize", {"model": MODEL, "messages": QUESTION, "tools": [BOOK, CANCEL]})
        assert whole.usage.prompt_tokens == rendered["count"], (whole.usage, rendered["count"])
        streamed, usage = {}, None
        for chunk in chat(**more, stream=True, stream_options={"include_usage": True}):
            for choice in chunk.choices:
                for delta in choice.delta.tool_calls or []:
                    name, text = streamed.get(delta.index, (delta.function.name, ""))
                    streamed[delta.index] = (name, text + (delta.function.arguments or ""))
            usage = chunk.usage or usage
        assert [streamed[index] for index in sorted(streamed)] == calls, (streamed, calls)
        assert usage.completion_tokens == whole.usage.completion_tokens


def parse_fills_a_pydantic_model():
    ask = {"model": MODEL, "messages": QUESTION, "max_tokens": 512, "temperature": 0}
    answer = client.chat.completions.parse(**ask, response_format=Booking)
    assert isinstance(answer.choices[0].message.parsed, Booking), answer
    tool = openai.pydantic_function_tool(Booking)
    answer = client.chat.completions.parse(**ask, tools=[tool], tool_choice="required")
    assert isinstance(answer.choices[0].message.tool_calls[0].function.parsed_arguments, Booking), answer

    async def ask_async():
        async with openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="unused") as many:
            return await many.chat.completions.parse(**ask, response_format=Booking)

    assert asyncio.run(ask_async()).choices[0].message.parsed == client.chat.completions.parse(
        **ask, response_format=Booking
    ).choices[0].message.parsed


def embeddings_are_vectors_of_meaning():
    texts = ["a cat", "a kitten", "the stock market"]
    create = client.embeddings.create
    # The package asks for base64 by itself, and decodes it.
    answer = create(model="text-embedding-ada-002", input=texts)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    cat, kitten, market = (entry.embedding for entry in answer.data)
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert len(cat) == 384 and abs(dot(cat, cat) - 1) < 1e-4
    assert dot(cat, kitten) > dot(cat, market) + 0.3
    floats = create(model="text-embedding-3-small", input="a cat", encoding_format="float").data[0].embedding
    assert dot(floats, cat) > 0.9999
    short = create(model="text-embedding-3-small", input="a cat", dimensions=64).data[0].embedding
    assert len(short) == 64 and abs(dot(short, short) - 1) < 1e-4
    assert answer.usage.prompt_tokens == answer.usage.total_tokens >= 3 * len(texts), answer.usage

    async def ask_async():
        async with openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="unused") as many:
            return await asyncio.gather(*(many.embeddings.create(model="any", input=text) for text in texts))

    for one, together in zip(asyncio.run(ask_async()), answer.data):
        assert dot(one.data[0].embedding, together.embedding) > 0.9999


CHECKS = [
    models_are_listed_and_found,
    chat_knows_the_capital_of_france,
    text_parts_are_one_message,
    streamed_chat_equals_whole_chat,
    streamed_completion_equals_whole_completion,
    usage_equals_the_token_ids_counted,
    repeated_prompts_are_cached,
    n_gives_different_samples_of_one_prompt,
    logprobs_name_the_chosen_tokens,
    stop_strings_end_the_answer_and_stay_out_of_it,
    max_tokens_ends_with_length,
    echo_without_output_gives_the_prompt,
    errors_are_the_sdks_own_classes,
    keys_are_checked,
    the_async_client_serves_many_at_once,
    a_weak_model_is_held_to_the_tools,
    parse_fills_a_pydantic_model,
    embeddings_are_vectors_of_meaning,
]

stage.run(CHECKS)
