//! What `pagoda serve` says when it is ready: one table with the exact memory, and a line to copy.

use std::net::SocketAddr;

use pagoda_model::ModelConfig;
use pagoda_server::ServerConfig;

use crate::pull::bytes_text;
use crate::serve::Loaded;

/// `llama, 30 layers x 576, 9 heads (3 KV), vocabulary 49152`.
pub(crate) fn describe(model: &ModelConfig) -> String {
    format!(
        "{}, {} layers x {}, {} heads ({} KV), vocabulary {}",
        model.architecture.name,
        model.num_layers,
        model.hidden_size,
        model.num_q_heads,
        model.num_kv_heads,
        model.vocab_size
    )
}

/// The table and the curl line.
pub(crate) fn table(
    loaded: &Loaded,
    address: SocketAddr,
    server: &ServerConfig,
    embedding_names: &[String],
) -> String {
    let (runner, memory) = (&loaded.config.runner, &loaded.wired.memory);
    let name = &server.served_model_names[0];
    let kv_tokens = (runner.num_blocks - 1) * runner.block_size;
    let keys = if server.api_keys.is_empty() { "no key needed" } else { "API key needed" };
    let embeddings = match embedding_names {
        [] => "none".to_owned(),
        names => format!("{} (loaded at the first call)", names.join(", ")),
    };
    let rows = [
        ("model", format!("{} ({})", server.served_model_names.join(", "), loaded.description)),
        ("file", loaded.path.display().to_string()),
        ("device", loaded.wired.device.clone()),
        ("weights", bytes_exact(memory.weight_bytes)),
        (
            "KV cache",
            format!(
                "{}: {} blocks of {} tokens, {kv_tokens} tokens",
                bytes_exact(memory.kv_bytes),
                runner.num_blocks - 1,
                runner.block_size
            ),
        ),
        ("workspace", bytes_exact(memory.workspace_bytes)),
        ("context", format!("{} tokens", runner.max_model_len)),
        (
            "limits",
            format!(
                "{} sequences at a time, {} tokens a step, {} requests waiting",
                runner.max_num_seqs, runner.max_num_batched_tokens, loaded.config.max_queued_requests
            ),
        ),
        ("embeddings", embeddings),
        ("address", format!("http://{address}/v1 ({keys})")),
    ];
    let mut text = String::new();
    for (label, value) in rows {
        text.push_str(&format!("  {label:<10} {value}\n"));
    }
    let key = if server.api_keys.is_empty() { "" } else { " -H 'authorization: Bearer KEY'" };
    text.push_str(&format!(
        "ready. Try it:\ncurl http://{address}/v1/chat/completions -H 'content-type: application/json'{key} -d \
         '{{\"model\": \"{name}\", \"stream\": true, \"temperature\": 0, \"messages\": [{{\"role\": \"user\", \"content\": \
         \"What is the capital of France?\"}}]}}'"
    ));
    text
}

fn bytes_exact(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", bytes_text(bytes))
}
