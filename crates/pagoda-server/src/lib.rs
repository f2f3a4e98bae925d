//! The OpenAI-compatible HTTP API.
//!
//! ```text
//! connection ─► exchange ─► guard of the route ─► handler ─► dialect: body -> Generation ─► prompt pool: token ids
//!  (limits)    (id, log)    (key, drain)                                                        │
//!                                                                                               ▼
//! connection ◄─ SSE or JSON ◄─ dialect: events -> wire ◄─ GenerationEvent ◄─ choices ◄─ run ◄─ engine
//!                                                          (text, stop strings, logprobs)
//! ```
//!
//! Embeddings take a short cut: their route, a queue and a thread of their own, the function that the binary handed in.
//!
//! What it is: wire formats, routes, keys, limits, metrics, and the accept loop. What it is not: it knows no model and no
//! device, reads no environment and no flag, and handles no signal; the binary does.
//!
//! Invariants: every route is a row of one table with a policy; no handler touches the engine, only a generation's run
//! does; a client can never make the engine wait; a time limit is a setting; no message and no log line carries a
//! prompt, an answer or a key.

mod activity;
mod body;
mod calls;
mod choice;
mod config;
mod connection;
mod constraint;
mod dialect;
mod embedding;
mod error;
mod exchange;
mod fields;
mod generation;
mod handlers;
mod json;
mod keys;
mod listener;
mod metrics;
mod model;
mod parsing;
mod prefix_log;
mod prompt;
mod prompt_logprobs;
mod refusal;
mod routes;
mod run;
mod server;
mod socket;
mod sse;
mod state;
mod submit;
mod thinking;
mod token_rules;

pub use config::{AutoToolChoice, ConnectionLimits, DrainLimits, RequestLimits, ServerConfig};
pub use embedding::{EmbedFunction, EmbeddingError, EmbeddingSource, LoadFunction, LoadedEncoder};
pub use keys::{ApiKeys, KeyError, KeyRole, MAX_KEY_LEN, MIN_KEY_LEN};
pub use listener::{DrainReport, listen};
pub use metrics::{DeviceReport, FreeBytes};
pub use model::{LoadedModel, SamplingDefaults, TokenPayload};
pub use routes::{Policy, RouteInfo, WhileDraining, routes};
pub use server::{Server, ServerError};
