//! Where measurements go: a line for people on stdout, a line of JSON for programs in a file that is appended to, so that a
//! run which is cut off leaves what it has measured.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::Value;

/// The results of a run.
pub(crate) struct Results {
    file: Option<File>,
    /// Fields of every line.
    common: Value,
}

impl Results {
    /// Appends to `path`, if there is one. `common` is an object.
    pub(crate) fn open(path: Option<&Path>, common: Value) -> anyhow::Result<Self> {
        let open = |path: &Path| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("opening {}", path.display()))
        };
        Ok(Results { file: path.map(open).transpose()?, common })
    }

    /// Notes one measurement.
    pub(crate) fn add(&mut self, text: &str, fields: Value) -> anyhow::Result<()> {
        println!("{text}");
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut line = self.common.clone();
        if let (Some(line), Value::Object(fields)) = (line.as_object_mut(), fields) {
            line.extend(fields);
        }
        writeln!(file, "{line}").context("writing the results")
    }
}
