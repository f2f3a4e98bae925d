//! The phases of a long command: each is timed, all are run, and the end says which failed.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// A run of several phases.
#[derive(Default)]
pub(crate) struct Phases {
    ended: Vec<(&'static str, Duration, Option<anyhow::Error>)>,
    num_skipped: usize,
}

impl Phases {
    /// Runs one phase. A failure does not stop the next ones: one run should tell everything that is wrong.
    pub(crate) fn run(&mut self, name: &'static str, phase: impl FnOnce() -> anyhow::Result<()>) {
        println!("== {name}");
        let start = Instant::now();
        let error = phase().err();
        if let Some(error) = &error {
            println!("{name} failed: {error:#}");
        }
        self.ended.push((name, start.elapsed(), error));
    }

    /// Notes that something was left out.
    pub(crate) fn skip(&mut self, why: &str) {
        println!("skipped: {why}");
        self.num_skipped += 1;
    }

    /// Prints the times and the verdict.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        println!("== times");
        for (name, time, error) in &self.ended {
            let verdict = if error.is_some() { "FAILED" } else { "ok" };
            println!("{name:<12} {:>7.1} s  {verdict}", time.as_secs_f64());
        }
        let num_failed = self.ended.iter().filter(|(_, _, error)| error.is_some()).count();
        println!(
            "phases: {} passed, {num_failed} failed, {} skipped",
            self.ended.len() - num_failed,
            self.num_skipped
        );
        if num_failed > 0 {
            bail!("{num_failed} phases failed");
        }
        Ok(())
    }
}

/// Runs a command with the terminal's own output, and fails if it does.
pub(crate) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    run_with(program, arguments, &[])
}

/// As [`run`], with some variables of the environment set.
pub(crate) fn run_with(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).envs(variables.iter().copied());
    // Cargo sets these for this program; some build scripts (ring's) would take them for a change and build again.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    let status = command.status().with_context(|| format!("starting {program}; is it installed?"))?;
    if !status.success() {
        bail!("{program} {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}
