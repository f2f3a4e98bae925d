//! The `pagoda` binary: flags to configuration to wiring, and the commands around the server (pull, bench, doctor).
//!
//! Owns: the command line, the configuration, the model cache, the only reads of the environment, and the one place where
//! all parts meet (`wire`). Does not know: how any part works inside.

mod args;
mod banner;
mod batch_limits;
mod bench;
mod config;
mod conformance;
mod device;
mod device_report;
mod doctor;
mod embedding;
mod environment;
mod kv_pool;
mod lifetime;
mod memory;
mod products;
mod pull;
mod schema_args;
mod serve;
mod text;
mod wire;

use std::process::ExitCode;

use clap::Parser;

use args::{BenchCommand, Cli, Command, PullArgs};
use pull::ModelReference;

fn main() -> ExitCode {
    quiet_handled_panics();
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(*args),
        Command::Pull(args) => pull_model(&args),
        Command::Bench(command) => match command {
            BenchCommand::Serve(args) => bench::serve(&args),
            BenchCommand::Throughput(args) => bench::throughput(&args),
            BenchCommand::Kernels(args) => bench::kernels(&args),
            BenchCommand::Agreement(args) => bench::agreement(&args),
            BenchCommand::Consistency(args) => bench::consistency(&args),
        },
        Command::Doctor(args) => doctor::run(&args),
        Command::Conformance(args) => conformance::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A panic over hostile input becomes a typed error, and its message may quote a prompt: only its place is printed.
fn quiet_handled_panics() {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if pagoda_text::is_within_panic_boundary() {
            if let Some(location) = panic.location() {
                eprintln!("an input made {} panic; its request was refused", location.file());
            }
        } else {
            default_hook(panic);
        }
    }));
}

/// Fetches a model, or verifies one that is there, and prints its path.
fn pull_model(args: &PullArgs) -> anyhow::Result<()> {
    let store = environment::model_store(&args.store)?;
    let name = args.model.as_deref().unwrap_or(&store.catalogue.default);
    if let ModelReference::Catalogue(name) = ModelReference::parse(name)?
        && let Some(model) = store.catalogue.find(name)
    {
        store.verify(model)?;
    }
    println!("{}", store.locate(name)?.display());
    Ok(())
}
