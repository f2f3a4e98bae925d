"""pymemgpt, the original MemGPT, with a scripted model that does everything MemGPT is about: argv[1] is the server's base
URL, argv[2] the stage's line, argv[3] the base URL of a server with the embedding model.
"""

import sys

import stage
from memgpt_home import Talk, connect, entries, legacy_config

BASE = sys.argv[1]
STAGE = stage.Stage(sys.argv[2])
client = connect(BASE, sys.argv[3])
talk = Talk(client, "ada")

SUMMARISER = "Your job is to summarize a history of previous messages"
HEARTBEAT = "Function called using request_heartbeat=true, returning control"
WARNING = "The conversation history will soon reach its maximum length"


def act(thought, function, /, **arguments):
    """An inner monologue and a call."""
    return f"{thought}\n{stage.tool_call(function, arguments)}"


def send(message):
    return act("I answer.", "send_message", message=message)


def turn(text, *replies):
    """A user message to which the model replies as given, once per step; MemGPT's entries and the prompts."""
    STAGE.play(*replies)
    answer = talk.say(text)
    assert answer.usage.step_count == len(replies), answer.usage
    return answer, STAGE.end()


def a_message_reaches_the_user_and_the_thought_does_not():
    answer, prompts = turn("Hello, I am Ada.", act("She says her name.", "send_message", message="Hello \u201cAda\u201d \U0001f600"))
    assert entries(answer, "assistant_message") == ["Hello \u201cAda\u201d \U0001f600"], answer
    assert [thought.strip() for thought in entries(answer, "internal_monologue")] == ["She says her name."], answer
    # Everything MemGPT starts with is in the prompt: system, the boot call and its result, the login, the message.
    for part in ["You are MemGPT", "archival_memory_search", "More human than human", '"type": "login"', "I am Ada"]:
        assert part in prompts[0], part


def usage_is_what_the_server_counted():
    STAGE.play(send("Four."))
    step = talk.agent.step('{"type": "user_message", "message": "2 + 2?"}', skip_verify=True)
    usage = step[4]
    (prompt,) = STAGE.end()
    assert usage.prompt_tokens == stage.count_tokens(BASE, prompt), usage
    # And the end of the turn.
    assert usage.completion_tokens == stage.count_tokens(BASE, send("Four.")) + 1, usage


def core_memory_is_edited_and_a_heartbeat_follows():
    answer, prompts = turn(
        "My name is Ada and I like tea.",
        act("Remember.", "core_memory_append", name="human", content="Name: Ada. Likes tea.", request_heartbeat=True),
        send("Noted."),
    )
    assert "Name: Ada. Likes tea." in talk.memory("human")
    assert HEARTBEAT in prompts[1] and HEARTBEAT not in prompts[0]
    system = prompts[1].split("<|im_end|>")[0]
    assert "Name: Ada. Likes tea." in system and "Name: Ada. Likes tea." not in prompts[0].split("<|im_end|>")[0]
    answer, prompts = turn(
        "No, coffee.",
        act("Correct it.", "core_memory_replace", name="human", old_content="tea", new_content="coffee", request_heartbeat=True),
        send("Coffee."),
    )
    assert "Likes coffee." in talk.memory("human") and "tea" not in talk.memory("human")
    assert "Likes coffee." in prompts[1].split("<|im_end|>")[0]
    assert entries(answer, "function_return") == ["None", "None"], answer


def archival_memory_finds_by_meaning():
    facts = [
        "The user's dog is called Rex and loves the beach.",
        "Quarterly revenue rose by four percent.",
        "The bicycle needs a new chain.",
        "Paris is the capital of France.",
        "The meeting moved to Thursday.",
        "Water boils at 100 degrees.",
    ]
    inserts = [act("Keep it.", "archival_memory_insert", content=fact, request_heartbeat=True) for fact in facts]
    turn("Remember these facts.", *inserts, send("Kept."))
    assert len(talk.agent.persistence_manager.archival_memory) == len(facts)
    for query, fact in [("What pet does she have?", facts[0]), ("broken vehicle", facts[2]), ("appointment", facts[4])]:
        search = act("Look it up.", "archival_memory_search", query=query, request_heartbeat=True)
        answer, prompts = turn("Think of something.", search, send("Found."))
        found = entries(answer, "function_return")[0]
        assert found.startswith("Showing 5 of"), found
        best = min(facts, key=lambda other: found.find(other) if other in found else len(found))
        assert best == fact, (query, found)
        assert fact in prompts[1], "the result is shown to the model"


def the_conversation_is_searched():
    search = act("I look.", "conversation_search", query="I like tea", page=0, request_heartbeat=True)
    answer, _ = turn("What did I drink at first?", search, send("Tea."))
    assert "My name is Ada and I like tea." in entries(answer, "function_return")[0], answer
    search = act("I look.", "conversation_search_date", start_date="2000-01-01", end_date="2000-01-02", request_heartbeat=True)
    answer, _ = turn("And in 2000?", search, send("Nothing."))
    assert entries(answer, "function_return")[0] == "No results found.", answer


def heartbeats_are_paused():
    turn("Be quiet.", act("Quiet.", "pause_heartbeats", minutes=30))
    assert talk.agent.heartbeat_is_paused()


def a_failed_call_is_told_to_the_model():
    answer, prompts = turn(
        "Change your persona.",
        act("Try.", "core_memory_append", name="nobody", content="x", request_heartbeat=False),
        act("Try.", "no_such_function", content="x"),
        send("I cannot."),
    )
    assert "Error calling function core_memory_append" in prompts[1], prompts[1][-600:]
    assert "No function named no_such_function" in prompts[2], prompts[2][-600:]
    assert entries(answer, "assistant_message") == ["I cannot."]


def pressure_warns_once_and_overflow_is_summarised():
    busy = Talk(client, "busy")
    filler = "The log of the day goes on and on, one line after the other, with nothing in it. " * 28
    prompts, day = [], 0
    while not any(SUMMARISER in prompt for prompt in prompts):
        # Whatever happens has its reply. MemGPT asks for a summary when the server says that the window is full.
        STAGE.play(
            {"say": "Ada told of her days.", "when": SUMMARISER},
            {"say": act("Save.", "core_memory_append", name="human", content="Talks a lot."), "last": WARNING},
            send("Tell me more."),
        )
        before = len(busy.agent._messages)
        busy.say(f"Day {day}: {filler}")
        prompts += STAGE.drop()
        day += 1
        assert day < 40, "the window never fills"
    assert sum(WARNING in stage.last_message(prompt) for prompt in prompts) == 1
    assert "Talks a lot." in busy.memory("human")
    assert len(busy.agent._messages) < before, "the queue is shorter"
    # The step that overflowed was tried again, with the summary at the head of its queue.
    assert "Ada told of her days." in prompts[-1] and "have been hidden from view" in prompts[-1]
    assert f"Day {day - 1}:" in stage.last_message(prompts[-1]) and "Day 0:" not in prompts[-1]
    # Core memory outlives the queue, and the conversation goes on.
    assert "Talks a lot." in prompts[-1].split("<|im_end|>")[0]
    STAGE.play(send("Yes."))
    assert entries(busy.say("Still there?"), "assistant_message") == ["Yes."]
    STAGE.end()


def a_completion_goes_on_with_the_json_it_was_given():
    legacy = Talk(client, "legacy", llm_config=legacy_config(BASE))
    # The wrapper's prompt ends in {"function": and it stops at the end of the object.
    reply = ' "send_message",\n  "params": {\n    "inner_thoughts": "Hm.",\n    "message": "Hello again."\n  }\n}\n'
    STAGE.play(reply)
    answer = legacy.say("Hello?")
    (prompt,) = STAGE.end()
    assert prompt.endswith('{\n  "function":'), prompt[-100:]
    assert entries(answer, "assistant_message") == ["Hello again."], answer
    assert entries(answer, "internal_monologue") == ["Hm."], answer


stage.run(
    [
        a_message_reaches_the_user_and_the_thought_does_not,
        usage_is_what_the_server_counted,
        core_memory_is_edited_and_a_heartbeat_follows,
        archival_memory_finds_by_meaning,
        the_conversation_is_searched,
        heartbeats_are_paused,
        a_failed_call_is_told_to_the_model,
        pressure_warns_once_and_overflow_is_summarised,
        a_completion_goes_on_with_the_json_it_was_given,
    ]
)
