"""Renders chat templates with Python's jinja2 as transformers sets it up: the reference that ours is compared with.

stdin:  {"templates": {name: {"source": source, "cases": {case name: arguments}}},
         "now_us": microseconds, "special_tokens": {name: text}}
stdout: {template name: {case name: {"text": rendered} or {"error": message}}}
"""

import datetime
import json
import sys

from transformers.utils import chat_template_utils


def main():
    job = json.load(sys.stdin)
    fixed = datetime.datetime.fromtimestamp(job["now_us"] / 1e6)

    class FixedClock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return fixed

    chat_template_utils.datetime = FixedClock
    results = {}
    for name, template in job["templates"].items():
        results[name] = {
            case: render(template["source"], job["special_tokens"], arguments)
            for case, arguments in template["cases"].items()
        }
    json.dump(results, sys.stdout)


def render(source, special_tokens, arguments):
    arguments = json.loads(json.dumps(arguments))
    kwargs = {**special_tokens, **arguments.pop("kwargs", {})}
    messages = arguments.pop("messages")
    try:
        rendered, _ = chat_template_utils.render_jinja_template([messages], chat_template=source, **arguments, **kwargs)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"text": rendered[0]}


main()
