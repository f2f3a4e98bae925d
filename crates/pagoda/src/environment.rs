//! The only reader of environment variables: cache folder, hub address and token.

use std::path::PathBuf;

use anyhow::Context;

use crate::args::StoreArgs;
use crate::pull::{Catalogue, ModelStore};

const DEFAULT_HUB: &str = "https://huggingface.co";

/// The model store that the user's environment describes.
pub(crate) fn model_store(args: &StoreArgs) -> anyhow::Result<ModelStore> {
    let catalogue = Catalogue::load(args.catalogue.as_deref())?;
    let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_HUB.to_owned());
    Ok(ModelStore::new(catalogue, cache_folder()?.join("models"), &endpoint, text("HF_TOKEN")))
}

/// `$XDG_CACHE_HOME/pagoda` or `~/.cache/pagoda`.
fn cache_folder() -> anyhow::Result<PathBuf> {
    let cache = match text("XDG_CACHE_HOME").map(PathBuf::from) {
        // The specification says to ignore relative values.
        Some(cache) if cache.is_absolute() => cache,
        _ => PathBuf::from(text("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"),
    };
    Ok(cache.join("pagoda"))
}

/// The log filter: `RUST_LOG`, or `info`.
pub(crate) fn log_filter() -> String {
    text("RUST_LOG").unwrap_or_else(|| "info".to_owned())
}

fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
