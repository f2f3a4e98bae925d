//! The only reader of environment variables: cache folder, hub address and token, log filter, where Python lies, whether a GPU
//! is required; and
//! the only place that sets one.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::args::StoreArgs;
use crate::pull::{Catalogue, ModelStore};

const DEFAULT_HUB: &str = "https://huggingface.co";

/// How many threads candle starts for element-wise operations. It reads this once and offers no other way to say it.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

/// Keeps the embedding model from starting a thread per core that spins while it waits (docs/decisions/103): this program
/// starts itself again, in the same process, with the variable set, because the environment of a running program cannot be
/// changed soundly. Somebody who has set the variable is left alone. To be called before anything else has begun.
pub(crate) fn bound_candle_threads() {
    if text(CANDLE_THREADS).is_some() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut args = std::env::args_os();
    let mut again = Command::new(program);
    if let Some(name) = args.next() {
        again.arg0(name);
    }
    // Returns only if it failed (the file has been replaced meanwhile, say): embedding is slower then, nothing else.
    let _failed = again.args(args).env(CANDLE_THREADS, "1").exec();
}

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

/// The file of the measured products of `cuda:ordinal`.
pub(crate) fn product_cache(ordinal: i32) -> Option<PathBuf> {
    Some(cache_folder().ok()?.join(format!("products-cuda{ordinal}.txt")))
}

/// Folders with a `lib/python3*`: of every `python3` of the search path, of the user and of the machine.
pub(crate) fn python_folders() -> Vec<PathBuf> {
    let search = text("PATH").unwrap_or_default();
    let has_python = |bin: &PathBuf| bin.join("python3").exists();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&search)
        .filter(has_python)
        .filter_map(|bin| bin.parent().map(PathBuf::from))
        .collect();
    folders.extend(text("HOME").map(|home| PathBuf::from(home).join(".local")));
    folders.push(PathBuf::from("/usr/local"));
    folders
}

/// The log filter: `RUST_LOG`, or `info`.
pub(crate) fn log_filter() -> String {
    text("RUST_LOG").unwrap_or_else(|| "info".to_owned())
}

/// Whether a machine without a GPU is a failure (`REQUIRE_GPU=1`).
pub(crate) fn requires_gpu() -> bool {
    text("REQUIRE_GPU").as_deref() == Some("1")
}

fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
