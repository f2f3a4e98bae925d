//! One file per group of routes. A handler reads the request, asks the part that knows, and answers.

pub(crate) mod debug;
pub(crate) mod embeddings;
pub(crate) mod generations;
pub(crate) mod health;
pub(crate) mod metrics;
pub(crate) mod models;
pub(crate) mod tokenize;
