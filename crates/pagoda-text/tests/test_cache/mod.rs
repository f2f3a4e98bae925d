//! Where tests find what is too large or not ours to commit, and what they do when it is not there.

#![allow(dead_code, reason = "every test file is a crate that uses its own part of it")]

use std::path::PathBuf;

/// `relative` within the cache: `$XDG_CACHE_HOME/pagoda`, else `~/.cache/pagoda`.
pub(crate) fn path(relative: &str) -> PathBuf {
    let home_cache = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home_cache);
    cache.expect("HOME or XDG_CACHE_HOME is set").join("pagoda").join(relative)
}

/// The Python with what tests compare with.
#[allow(dead_code, reason = "not every test that looks into the cache needs it")]
pub(crate) fn python() -> PathBuf {
    path("test/venv/bin/python")
}

/// Says why a test does nothing, which is a failure where everything is required.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("REQUIRE_ALL").is_none_or(|value| value != "1"), "REQUIRE_ALL=1, but {why}");
    println!("skipped: {why}");
}
