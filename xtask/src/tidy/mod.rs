//! The rules of the house that a program can check. Style is a test here, not a reviewer's mood.

mod edges;
mod sources;

use anyhow::{Context, bail};
use cargo_metadata::MetadataCommand;

/// Checks every rule and prints each violation.
pub(crate) fn run() -> anyhow::Result<()> {
    let metadata = MetadataCommand::new().exec().context("reading cargo metadata")?;
    let mut violations = edges::check(&metadata);
    violations.extend(sources::check(metadata.workspace_root.as_std_path())?);
    for violation in &violations {
        println!("tidy: {violation}");
    }
    if !violations.is_empty() {
        bail!("{} violations", violations.len());
    }
    Ok(())
}
