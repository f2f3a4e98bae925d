"""pymemgpt with a real small model: argv[1] is the base URL of a server whose window is small. What the model says is its own
affair; that MemGPT's protocol holds whatever it says is checked here.
"""

import sys

import stage
from memgpt_home import SYSTEM, Talk, connect, window
from memgpt.llm_api import llm_api_tools
from memgpt.local_llm.settings.settings import get_completions_settings
from memgpt.local_llm.utils import get_available_wrappers

BASE = sys.argv[1]
client = connect(BASE, BASE)
# A weak model asks for heartbeats at random: one step for each message.
client.server.max_chaining_steps = 0
talk = Talk(client, "smol")

# Every answer of the server, as MemGPT got it.
answers, overflows, summaries = [], [], []
create = llm_api_tools.openai_chat_completions_request


def watched(**arguments):
    request = arguments["chat_completion_request"]
    # MemGPT sets no limit, and so small a model would now and then write until the window is full.
    request.max_tokens = 256 if request.tools else 128
    try:
        answer = create(**arguments)
    except Exception as error:
        if llm_api_tools.is_context_overflow_error(error):
            overflows.append(error.response.json()["error"])
        raise
    if not request.tools:
        summaries.append(answer)
    elif answer.choices[0].finish_reason != "length":
        answers.append((request, answer))
    # Else the room behind the prompt was too small for a call: MemGPT makes a summary then, too.
    return answer


llm_api_tools.openai_chat_completions_request = watched


def every_step_is_a_valid_call():
    talk.say("Hello, my name is Ada.")
    assert answers, "the server was asked"
    for request, answer in answers:
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls", choice
        (call,) = choice.message.tool_calls
        functions = {tool.function.name: tool.function for tool in request.tools}
        stage.validate(call.function.arguments, functions[call.function.name].parameters)
        usage = answer.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.completion_tokens > 0 and usage.prompt_tokens > 500, usage


def overflow_is_summarised_and_the_conversation_goes_on():
    line = "The log of the day goes on and on, one line after the other, with nothing in it. "
    _, max_model_len = window(BASE)
    for day in range(12):
        if answers[-1][1].usage.total_tokens > max_model_len - 800:
            break
        talk.say(f"Day {day}: {12 * line}")
    # More than what is left, and less than what there is once the queue has been summarised.
    num_answers = len(answers)
    talk.say(f"The whole week: {45 * line}")
    assert len(answers) > num_answers, "the message is answered"
    assert summaries and overflows, "the window never filled"
    for error in overflows:
        assert error["code"] == "context_length_exceeded" and "maximum context length" in error["message"], error
    assert all(summary.choices[0].message.content for summary in summaries), summaries
    assert any("have been hidden from view" in (message.text or "") for message in talk.agent._messages)
    talk.say("Good night.")
    every_step_is_a_valid_call()


def the_legacy_prompt_is_continued():
    wrapper = get_available_wrappers()["chatml"]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": '{"message": "Hello, who are you?"}'}]
    prompt = wrapper.chat_completion_to_prompt(messages=messages, functions=talk.agent.functions)
    assert prompt.endswith('{\n  "function":')
    model, _ = window(BASE)
    body = get_completions_settings() | {"prompt": prompt, "max_tokens": 100, "stream": False, "user": "", "model": model}
    answer = stage.post(BASE, "/v1/completions", body | {"temperature": 0, "return_token_ids": True})
    (choice,) = answer["choices"]
    assert not any(stop in choice["text"] for stop in body["stop"]), choice
    assert answer["usage"]["prompt_tokens"] == stage.count_tokens(BASE, prompt), answer["usage"]
    assert answer["usage"]["completion_tokens"] == len(choice["token_ids"]) > 0
    # The value of "function": a name, or the whole call once more (which MemGPT knows from weak models).
    assert choice["text"].lstrip()[0] in '"{', choice


stage.run(
    [
        every_step_is_a_valid_call,
        overflow_is_summarised_and_the_conversation_goes_on,
        the_legacy_prompt_is_continued,
    ]
)
