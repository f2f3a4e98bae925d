//! What the server is told at start: names, keys, origins and every limit and time limit. Plain numbers; the binary
//! resolves flags into it, tests put the time limits at milliseconds.

use std::time::Duration;

use pagoda_text::{GrammarLimits, SchemaBounds};

use crate::ApiKeys;

/// Everything that is known before the model is loaded.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The names under which the model answers; the first one is reported. Must not be empty.
    pub served_model_names: Vec<String>,
    /// Any other name means this model too, instead of being unknown.
    pub accept_any_model: bool,
    /// The keys that open the guarded routes. Empty leaves every route open.
    pub api_keys: ApiKeys,
    /// Origins that browsers may call from. Empty sends no CORS header at all.
    pub cors_origins: Vec<String>,
    /// Whether tools stand before the system's text, where the chat template permits, unless a request says otherwise.
    pub tools_first: bool,
    /// Limits on connections.
    pub connections: ConnectionLimits,
    /// Limits on one request.
    pub requests: RequestLimits,
    /// Limits on grammars.
    pub grammar_limits: GrammarLimits,
    /// The most that a schema gets where it sets no bound itself; less where the answer has less room.
    pub schema_bounds: SchemaBounds,
    /// How the server ends.
    pub drain: DrainLimits,
    /// What a `tool_choice` of `auto`, or none, means.
    pub auto_tool_choice: AutoToolChoice,
}

/// Whether the model decides about tools where the client leaves it to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoToolChoice {
    /// It does.
    #[default]
    Auto,
    /// It must call one. For weak models, which else answer agents with text.
    Required,
}

impl ServerConfig {
    /// The secure defaults, for a model served under `names`.
    pub fn new(names: Vec<String>) -> Self {
        ServerConfig {
            served_model_names: names,
            accept_any_model: false,
            api_keys: ApiKeys::none(),
            cors_origins: Vec::new(),
            tools_first: false,
            connections: ConnectionLimits::default(),
            requests: RequestLimits::default(),
            grammar_limits: GrammarLimits::default(),
            schema_bounds: SchemaBounds::default(),
            drain: DrainLimits::default(),
            auto_tool_choice: AutoToolChoice::default(),
        }
    }
}

/// Limits on connections: what a peer may hold, and for how long without doing anything.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Connections at the same time; one more is answered 503 and closed.
    pub max_connections: usize,
    /// Of these, from one address. Loopback is exempt: a reverse proxy there speaks for everyone.
    pub max_connections_per_address: usize,
    /// Bytes of a request's head; more is 431.
    pub max_header_bytes: usize,
    /// Header fields of a request; more is 431.
    pub max_header_fields: usize,
    /// From the connection's start to its first byte.
    pub first_byte_timeout: Duration,
    /// From a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// Between two requests.
    pub idle_timeout: Duration,
    /// How long a reader may take nothing while there is something to take.
    pub write_timeout: Duration,
    /// How long sent bytes may stay unacknowledged (TCP_USER_TIMEOUT, and the start of keep-alive probes).
    pub peer_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        ConnectionLimits {
            max_connections: 12_000,
            max_connections_per_address: 1_024,
            max_header_bytes: 16 * 1024,
            max_header_fields: 64,
            first_byte_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            peer_timeout: Duration::from_secs(30),
        }
    }
}

/// Limits on one request.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Bytes of a body; more is 413.
    pub max_body_bytes: usize,
    /// From the end of the head to the end of the body; longer is 408.
    pub body_timeout: Duration,
    /// Nesting of arrays and objects in a body, at most 127; deeper is 400.
    pub max_json_depth: usize,
    /// Sequences per prompt.
    pub max_n: u32,
    /// Prompts of one completions request.
    pub max_prompts: usize,
    /// Alternatives per position.
    pub max_logprobs: u32,
    /// Stop strings.
    pub max_stop_strings: usize,
    /// Bytes of one stop string.
    pub max_stop_string_bytes: usize,
    /// Entries of `stop_token_ids`.
    pub max_stop_token_ids: usize,
    /// Entries of `logit_bias`.
    pub max_logit_bias: usize,
    /// Entries of `allowed_token_ids`.
    pub max_allowed_token_ids: usize,
    /// Entries of `tools`.
    pub max_tools: usize,
    /// Bytes of `cache_salt`.
    pub max_cache_salt_bytes: usize,
    /// Prompts rendered and tokenised at the same time; further ones wait.
    pub max_concurrent_prompts: usize,
    /// Prompts that may wait for it, each with its body in memory; one more is 429.
    pub max_waiting_prompts: usize,
    /// Texts of one embeddings request.
    pub max_embedding_inputs: usize,
    /// Token ids of one text that comes as token ids.
    pub max_embedding_tokens: usize,
    /// Texts that wait for the embedding model or run in it; a request that finds no room is 429.
    pub max_queued_embedding_inputs: usize,
    /// Silence after which a stream sends a comment.
    pub sse_keep_alive: Duration,
    /// How long the engine may stand still while it has work before `/health/ready` says so.
    pub stall_timeout: Duration,
}

impl Default for RequestLimits {
    fn default() -> Self {
        RequestLimits {
            max_body_bytes: 2 * 1024 * 1024,
            body_timeout: Duration::from_secs(30),
            max_json_depth: 127,
            max_n: 8,
            max_prompts: 64,
            max_logprobs: 20,
            max_stop_strings: 64,
            max_stop_string_bytes: 256,
            max_stop_token_ids: 256,
            max_logit_bias: 300,
            max_allowed_token_ids: 1_024,
            max_tools: 128,
            max_cache_salt_bytes: 1_024,
            max_concurrent_prompts: 4,
            max_waiting_prompts: 256,
            max_embedding_inputs: 2_048,
            max_embedding_tokens: 8_192,
            max_queued_embedding_inputs: 4_096,
            sse_keep_alive: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// How the server ends.
#[derive(Clone, Copy, Debug)]
pub struct DrainLimits {
    /// How long accepted requests may go on after the shutdown was asked for.
    pub drain_timeout: Duration,
    /// How long answers that are complete may take to leave.
    pub close_timeout: Duration,
    /// What `Retry-After` says in 429 and 503 answers; whole seconds, 1 to 60.
    pub retry_after: Duration,
}

impl Default for DrainLimits {
    fn default() -> Self {
        DrainLimits {
            drain_timeout: Duration::from_secs(25),
            close_timeout: Duration::from_millis(800),
            retry_after: Duration::from_secs(2),
        }
    }
}
