#!/usr/bin/env python3
"""The nano bench (256 requests at once, lengths uniform in 100..1024, seed 0, greedy, nothing ends early) on transformers' continuous
batching, with random weights of the shape of a config.json. One line of JSON, appended to the file given. Says why and does nothing
where torch, transformers or a GPU is missing, or where this version of transformers has no continuous batching.

engine.py CONFIG.json RESULTS.jsonl [NUM_REQUESTS]"""

import json
import random
import sys
import time

try:
    import torch
    import transformers
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(0)
if not torch.cuda.is_available():
    print("skipped: torch sees no CUDA device")
    sys.exit(0)


def workload(num_requests):
    random.seed(0)
    prompts = [[random.randint(0, 10000) for _ in range(random.randint(100, 1024))] for _ in range(num_requests)]
    return prompts, [random.randint(100, 1024) for _ in range(num_requests)]


def build(config_path):
    fields = json.loads(open(config_path).read())
    config = transformers.AutoConfig.for_model(**fields)
    torch.manual_seed(0)
    attention = "paged|sdpa"
    with torch.device("cuda:0"):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    model.eval()
    try:
        model.set_attn_implementation(attention)
    except (AttributeError, ValueError):
        # Older versions switch to the paged form by themselves.
        pass
    return model


def run(model, prompts, lengths):
    """The manager's own queue takes a length per request; ends when every request has."""
    generation = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=max(lengths), eos_token_id=-1, pad_token_id=0
    )
    manager = model.init_continuous_batching(generation_config=generation)
    manager.start()
    try:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for prompt, length in zip(prompts, lengths):
            manager.add_request(prompt, max_new_tokens=length)
        num_tokens, num_left = 0, len(prompts)
        while num_left:
            result = manager.get_result(timeout=1)
            if result is None:
                if not manager.is_running():
                    raise RuntimeError("the generation thread has ended")
                continue
            if getattr(result, "error", None):
                raise RuntimeError(result.error)
            if result.is_finished():
                num_tokens += len(result.generated_tokens)
                num_left -= 1
        return time.perf_counter() - start, num_tokens
    finally:
        manager.stop(block=True)


def main():
    config_path, results = sys.argv[1], sys.argv[2]
    prompts, lengths = workload(int(sys.argv[3]) if len(sys.argv) > 3 else 256)
    model = build(config_path)
    if not hasattr(model, "init_continuous_batching"):
        print(f"skipped: transformers {transformers.__version__} has no continuous batching")
        return
    with torch.inference_mode():
        run(model, prompts[:4], [8] * 4)
        seconds, num_tokens = run(model, prompts, lengths)
    line = {
        "bench": "peer-engine",
        "peer": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "device": torch.cuda.get_device_name(0),
        "model": config_path.rsplit("/", 1)[-1].removesuffix(".json"),
        "workload": "nano",
        "num_requests": len(prompts),
        "num_prompt_tokens": sum(map(len, prompts)),
        "num_output_tokens": num_tokens,
        "num_output_tokens_expected": sum(lengths),
        "seconds": seconds,
        "output_tokens_per_s": num_tokens / seconds,
    }
    with open(results, "a") as file:
        print(json.dumps(line), file=file)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
