"""LangChain's and LlamaIndex's OpenAI classes and litellm: argv[1] is the base URL of a server with a scripted model, argv[2] the
stage's line, argv[3] the base URL of one with a real model. Both serve the alias gpt-4o-mini, because LlamaIndex refuses
names that it does not know.
"""

import asyncio
import json
import os
import sys

# Otherwise litellm fetches its price list.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import langchain_openai
import litellm
import pydantic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI

import stage
from stage import tool_call

SCRIPTED, REAL = f"{sys.argv[1]}/v1", f"{sys.argv[3]}/v1"
STAGE = stage.Stage(sys.argv[2])
NAME = "gpt-4o-mini"
QUESTION = "What is the weather in Paris?"
PARIS = {"city": "Paris", "days": 2}
CALL = tool_call("get_weather", PARIS)


class Person(pydantic.BaseModel):
    name: str
    age: int


ADA = Person(name="Ada \u201cL\u201d", age=36)


@tool
def get_weather(city: str, days: int) -> str:
    """The weather of a city for some days."""
    return f"{city}: sunny for {days} days"


def langchain(base, **more):
    return langchain_openai.ChatOpenAI(model=NAME, base_url=base, api_key="unused", max_retries=0, temperature=0, **more)


def langchain_calls_tools():
    chat = langchain(SCRIPTED).bind_tools([get_weather])
    STAGE.play(CALL, "It is sunny.", CALL, CALL)
    answer = chat.invoke(QUESTION)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", PARIS) and not answer.invalid_tool_calls, answer
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage) and "sunny for 2 days" in result.content
    last = chat.invoke([HumanMessage(QUESTION), answer, result])
    assert last.content == "It is sunny.", last
    whole = None
    for chunk in chat.stream(QUESTION, stream_usage=True):
        whole = chunk if whole is None else whole + chunk
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("get_weather", PARIS)], whole
    assert whole.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"], whole
    assert whole.usage_metadata["input_tokens"] == answer.usage_metadata["input_tokens"], whole
    again = asyncio.run(chat.ainvoke(QUESTION))
    assert again.tool_calls[0]["args"] == PARIS
    assert "sunny for 2 days" in STAGE.end()[1]


def langchain_gets_structured_output():
    for method, say in [
        ("json_schema", ADA.model_dump_json()),
        ("json_mode", ADA.model_dump_json()),
        ("function_calling", tool_call("Person", ADA.model_dump())),
    ]:
        STAGE.play(say)
        assert langchain(SCRIPTED).with_structured_output(Person, method=method).invoke("Who?") == ADA, method
        STAGE.end()
    # A weak model is held to the schema.
    person = langchain(REAL, max_tokens=200).with_structured_output(Person, method="json_schema").invoke("Who are you?")
    assert isinstance(person, Person)


def langchain_embeds():
    # The texts themselves, not another vocabulary's token ids.
    embeddings = langchain_openai.OpenAIEmbeddings(
        model="text-embedding-3-small", base_url=REAL, api_key="unused", check_embedding_ctx_length=False
    )
    cat, kitten, market = embeddings.embed_documents(["a cat", "a kitten", "the stock market"])
    query = embeddings.embed_query("a cat")
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert len(cat) == 384 and dot(query, cat) > 0.9999 and dot(cat, kitten) > dot(cat, market) + 0.3


def llama_index(base, **more):
    return OpenAI(model=NAME, api_base=base, api_key="unused", max_retries=0, temperature=0, **more)


def weather_tool():
    return FunctionTool.from_defaults(fn=get_weather.func, name="get_weather")


def llama_index_calls_tools():
    llm, tools = llama_index(SCRIPTED), [weather_tool()]
    STAGE.play(CALL, CALL, CALL, CALL)
    whole = llm.chat_with_tools(tools, user_msg=QUESTION)
    (call,) = llm.get_tool_calls_from_response(whole)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", PARIS), call
    *_, last = llm.stream_chat_with_tools(tools, user_msg=QUESTION)
    (streamed,) = llm.get_tool_calls_from_response(last)
    assert (streamed.tool_name, streamed.tool_kwargs) == ("get_weather", PARIS), streamed
    forced = llm.chat_with_tools(tools, user_msg=QUESTION, tool_required=True)
    assert llm.get_tool_calls_from_response(forced)[0].tool_kwargs == PARIS
    assert str(llm.predict_and_call(tools, QUESTION)) == "Paris: sunny for 2 days"
    STAGE.end()


def llama_index_gets_structured_output():
    STAGE.play(ADA.model_dump_json())
    program = llama_index(SCRIPTED, strict=True)
    answer = program.as_structured_llm(Person).chat([ChatMessage(role="user", content="Who?")])
    assert answer.raw == ADA, answer
    STAGE.end()
    person = llama_index(REAL, max_tokens=200, strict=True).structured_predict(Person, PromptTemplate("Who are you?"))
    assert isinstance(person, Person)


def llama_index_chats():
    answer = llama_index(REAL, max_tokens=24).chat([ChatMessage(role="user", content="What is the capital of France?")])
    assert "Paris" in answer.message.content, answer
    text = "".join(part.delta for part in llama_index(REAL, max_tokens=24).stream_complete("The sky is"))
    assert text == llama_index(REAL, max_tokens=24).complete("The sky is").text


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def complete(base, **more):
    messages = [{"role": "user", "content": QUESTION}]
    arguments = {"model": f"openai/{NAME}", "api_base": base, "api_key": "unused", "messages": messages, "num_retries": 0}
    return litellm.completion(**(arguments | {"temperature": 0} | more))


def litellm_forces_tools():
    STAGE.play(CALL, CALL)
    whole = complete(SCRIPTED, tools=[WEATHER], tool_choice="required")
    (call,) = whole.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", PARIS), whole
    assert whole.choices[0].message.content is None and whole.choices[0].finish_reason == "tool_calls"
    chunks = list(complete(SCRIPTED, tools=[WEATHER], tool_choice="required", stream=True))
    streamed = litellm.stream_chunk_builder(chunks)
    assert streamed.choices[0].message.tool_calls[0].function.arguments == call.function.arguments, streamed
    STAGE.end()
    weak = complete(REAL, tools=[WEATHER], tool_choice="required", max_tokens=300)
    stage.validate(weak.choices[0].message.tool_calls[0].function.arguments, WEATHER["function"]["parameters"])


def litellm_gets_json_objects():
    STAGE.play('{"city": "Paris"}')
    answer = complete(SCRIPTED, response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content) == {"city": "Paris"}
    STAGE.end()
    weak = complete(REAL, response_format={"type": "json_object"}, max_tokens=400)
    assert weak.choices[0].finish_reason == "length" or isinstance(json.loads(weak.choices[0].message.content), dict), weak
    text = weak.choices[0].message.content
    assert text.startswith("{"), weak


def litellm_raises_its_own_errors():
    long = [{"role": "user", "content": "word " * 5000}]
    try:
        complete(REAL, messages=long)
    except litellm.ContextWindowExceededError as error:
        assert "maximum context length" in str(error)
    else:
        raise AssertionError("no error")


stage.run(
    [
        langchain_calls_tools,
        langchain_gets_structured_output,
        langchain_embeds,
        llama_index_calls_tools,
        llama_index_gets_structured_output,
        llama_index_chats,
        litellm_forces_tools,
        litellm_gets_json_objects,
        litellm_raises_its_own_errors,
    ]
)
