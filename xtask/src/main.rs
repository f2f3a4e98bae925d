//! The menu of development commands: `cargo xtask <test|tidy|kernels|gpu-bundle|ci>`.

mod bundle;
mod phases;
mod preflight;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development commands of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run all checks and tests, or the tests of one area (engine, model, text, server, pagoda, ..).
    Test {
        /// A crate's name without `pagoda-`.
        area: Option<String>,
    },
    /// Check the rules of the house: crate edges, file headers, where unsafe code and environment reads may be.
    Tidy,
    /// Compile every GPU kernel for sm_80 and sm_90a, compare registers and spills with the snapshot, run the case table on the
    /// host shim, and see that it catches the mutations. Needs no GPU.
    Kernels {
        /// Write the snapshot (kernels/resources.txt) anew.
        #[arg(long)]
        update: bool,
    },
    /// Pack the binary with kernels for every GPU and a script of stages into gpu-bundle/, to be run where there is a GPU.
    GpuBundle {
        /// Cargo's profile: dist, or a faster one to try the script.
        #[arg(long, default_value = "dist")]
        profile: String,
    },
    /// What the continuous integration runs: set up the test tools, then `test` with nothing skipped.
    Ci,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Test { area: None } => test::all(),
        Command::Test { area: Some(area) } => test::area(&area),
        Command::Tidy => tidy::run(),
        Command::Kernels { update } => test::kernels(update),
        Command::GpuBundle { profile } => bundle::make(&profile),
        Command::Ci => test::ci(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
