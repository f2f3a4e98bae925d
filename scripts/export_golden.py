#!/usr/bin/env python3
"""Writes models/tiny/golden.json: the logits of models/tiny by an independent forward pass in NumPy, in f64 throughout.

Run once, offline, after models/tiny/model.safetensors has changed; the result is committed and never made in CI. It follows
the Llama description (RMS norm, rotary embedding on halves, grouped KV heads, SwiGLU), not Pagoda's code.
"""

import json
import pathlib
import struct

import numpy as np

TINY = pathlib.Path(__file__).parent.parent / "models" / "tiny"
SEQUENCES = [
    [1, 87, 260, 400, 12, 12, 511, 3, 99, 2, 301, 77, 145, 0, 258, 450],
    [5, 5, 5, 317, 288, 401, 33, 190, 9, 310],
]
NUM_GREEDY_TOKENS = 24


def read_safetensors(path):
    data = path.read_bytes()
    (header_len,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + header_len])
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        assert info["dtype"] == "F32", name
        start, end = (8 + header_len + offset for offset in info["data_offsets"])
        tensors[name] = np.frombuffer(data[start:end], "<f4").astype(np.float64).reshape(info["shape"])
    return tensors


def rms_norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotate(x, theta):
    """x: [heads, positions, head_dim]; channel i turns with channel i + head_dim / 2."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-np.arange(half) * 2.0 / x.shape[-1])
    angles = np.arange(x.shape[1])[:, None] * frequencies[None, :]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)


def forward(weights, config, token_ids):
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim, eps, theta = config["head_dim"], config["rms_norm_eps"], config["rope_theta"]
    n = len(token_ids)
    x = weights["model.embed_tokens.weight"][token_ids]
    for layer in range(config["num_hidden_layers"]):
        w = {k.split(f"model.layers.{layer}.")[1]: v for k, v in weights.items() if f".layers.{layer}." in k}
        h = rms_norm(x, w["input_layernorm.weight"], eps)
        split = lambda y, count: y.reshape(n, count, head_dim).transpose(1, 0, 2)
        q = rotate(split(h @ w["self_attn.q_proj.weight"].T, heads), theta)
        k = rotate(split(h @ w["self_attn.k_proj.weight"].T, kv_heads), theta)
        v = split(h @ w["self_attn.v_proj.weight"].T, kv_heads)
        k, v = (np.repeat(y, heads // kv_heads, axis=0) for y in (k, v))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(head_dim)
        scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attention = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + attention.transpose(1, 0, 2).reshape(n, -1) @ w["self_attn.o_proj.weight"].T
        h = rms_norm(x, w["post_attention_layernorm.weight"], eps)
        gate, up = h @ w["mlp.gate_proj.weight"].T, h @ w["mlp.up_proj.weight"].T
        x = x + (gate / (1.0 + np.exp(-gate)) * up) @ w["mlp.down_proj.weight"].T
    lm_head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return rms_norm(x, weights["model.norm.weight"], eps) @ lm_head.T


def main():
    config = json.loads((TINY / "config.json").read_text())
    weights = read_safetensors(TINY / "model.safetensors")
    lines = []
    for token_ids in SEQUENCES:
        logits = forward(weights, config, token_ids)
        greedy = list(token_ids)
        while len(greedy) < len(token_ids) + NUM_GREEDY_TOKENS:
            greedy.append(int(forward(weights, config, greedy)[-1].argmax()))
        rows = ",\n  ".join("[" + ",".join(f"{value:.6f}" for value in row) + "]" for row in logits)
        lines.append(
            f'{{"token_ids": {token_ids},\n "greedy": {greedy[len(token_ids):]},\n "logits": [\n  {rows}]}}'
        )
    (TINY / "golden.json").write_text('{"sequences": [\n' + ",\n".join(lines) + "\n]}\n")


if __name__ == "__main__":
    main()
