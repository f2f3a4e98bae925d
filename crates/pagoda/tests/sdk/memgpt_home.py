"""A MemGPT of its own: configuration, databases and vectors in a folder that ends with the script.

Must be imported before anything of memgpt, whose paths are fixed when it is imported.
"""

import atexit
import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
import urllib.request

HOME = tempfile.mkdtemp(prefix="memgpt-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ["HOME"] = HOME
os.environ["MEMGPT_CONFIG_PATH"] = f"{HOME}/.memgpt/config"
os.environ["ANONYMIZED_TELEMETRY"] = "False"
# The encodings that tiktoken would otherwise fetch lie in llama-index.
LLAMA_INDEX = pathlib.Path(importlib.util.find_spec("llama_index").submodule_search_locations[0])
os.environ["TIKTOKEN_CACHE_DIR"] = str(LLAMA_INDEX / "core/_static/tiktoken_cache")

from memgpt import create_client
from memgpt.config import MemGPTConfig
from memgpt.credentials import MemGPTCredentials
from memgpt.data_types import EmbeddingConfig, LLMConfig
from memgpt.memory import ChatMemory

# Short, so that a small window holds a conversation; what the tools do stands in their descriptions.
SYSTEM = "You are MemGPT. Think privately, then act only by calling functions; the user sees nothing but send_message."


def window(base):
    """The context size, as the server tells it."""
    with urllib.request.urlopen(f"{base}/v1/models", timeout=60) as answer:
        model = json.load(answer)["data"][0]
    return model["id"], model["max_model_len"]


def connect(base, embeddings):
    """A client whose agents talk to one server for chat and one for embeddings, under the name that MemGPT always asks for."""
    model, context_window = window(base)
    MemGPTConfig.create_config_dir()
    config = MemGPTConfig()
    config.default_llm_config = LLMConfig(
        model=model, model_endpoint_type="openai", model_endpoint=f"{base}/v1", context_window=context_window
    )
    config.default_embedding_config = EmbeddingConfig(
        embedding_endpoint_type="openai",
        embedding_endpoint=f"{embeddings}/v1",
        embedding_model="text-embedding-ada-002",
        embedding_dim=384,
        embedding_chunk_size=300,
    )
    config.save()
    MemGPTCredentials(openai_key="sk-local").save()
    return create_client()


def legacy_config(base):
    """Completions of a ready ChatML prompt instead of chat."""
    model, context_window = window(base)
    return LLMConfig(
        model=model, model_endpoint_type="vllm", model_endpoint=base, model_wrapper="chatml", context_window=context_window
    )


class Talk:
    """One agent and what it did."""

    def __init__(self, client, name, **more):
        memory = ChatMemory(persona="I am Sam.", human="Nothing is known yet.")
        self.client = client
        self.state = client.create_agent(name=name, memory=memory, system_prompt=SYSTEM, **more)

    @property
    def agent(self):
        return self.client.server._get_or_load_agent(self.client.user_id, self.state.id)

    def say(self, text):
        """One user message with everything it sets off; the interface's entries."""
        return self.client.user_message(self.state.id, text)

    def memory(self, section):
        return self.agent.memory.memory[section].value


def entries(answer, kind):
    return [message[kind] for message in answer.messages if kind in message]
