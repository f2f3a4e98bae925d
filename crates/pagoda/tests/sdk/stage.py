"""The line to a scripted server (tests/support/scripted.rs): what is played here is what the model says next."""

import json
import socket
import urllib.request

import jsonschema


class Stage:
    """One connection. A request takes the first reply whose `when` is in its prompt and whose `last` is in the last message."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.line = socket.create_connection((host, int(port)), timeout=60).makefile("rw", encoding="utf-8")

    def command(self, **command):
        self.line.write(json.dumps(command) + "\n")
        self.line.flush()
        return json.loads(self.line.readline())

    def play(self, *replies):
        self.command(play=[reply if isinstance(reply, dict) else {"say": reply} for reply in replies])

    def end(self):
        """Everything was said and nothing went wrong; the prompts that were answered."""
        state = self.command()
        assert not state["faults"], state["faults"]
        assert not state["left"], f"never said: {state['left']}"
        return state["prompts"]

    def drop(self):
        """Forgets what was not said; faults are errors all the same. The prompts that were answered."""
        state = self.command(drop=True)
        assert not state["faults"], state["faults"]
        return state["prompts"]

    def faults(self):
        return self.command()["faults"]


def last_message(prompt):
    """The message before the open turn of the assistant."""
    return prompt.split("<|im_start|>")[-2]


def post(base, path, body):
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{base}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def count_tokens(base, text):
    return post(base, "/tokenize", {"prompt": text, "add_special_tokens": False})["count"]


def tool_call(name, arguments):
    """A call as Hermes and Qwen models write it."""
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def validate(arguments, schema):
    """The text is one JSON value that the schema allows; the value."""
    value = json.loads(arguments)
    jsonschema.Draft202012Validator(schema).validate(value)
    return value


def run(checks):
    """Runs all checks; each prints a line, the first wrong one ends the script."""
    for check in checks:
        check()
        print(f"ok {check.__name__}", flush=True)
