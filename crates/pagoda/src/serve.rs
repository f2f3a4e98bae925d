//! `pagoda serve`: listens at once, loads the model beside that, serves until it is told to stop, drains, ends.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use pagoda_model::{Checkpoint, ModelError};
use pagoda_server::{ConnectionLimits, Server};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::args::{LoadFormat, ServeArgs};
use crate::batch_limits::BatchLimits;
use crate::config::{Config, ListenConfig};
use crate::device::{Device, DeviceConfig};
use crate::embedding::EmbeddingChoice;
use crate::lifetime::{self, EngineEnd};
use crate::pull::ModelStore;
use crate::{banner, environment, wire};

/// How often an open server says so.
const OPEN_WARNING_PERIOD: Duration = Duration::from_secs(60);

/// Runs the server until SIGTERM or Ctrl-C.
pub(crate) fn run(args: ServeArgs) -> anyhow::Result<()> {
    environment::bound_candle_threads();
    start_log(&args);
    let store = Arc::new(environment::model_store(&args.model.store)?);
    let model = args.model.model.clone().unwrap_or_else(|| store.catalogue.default.clone());
    let listen = ListenConfig::resolve(&args, &model)?;
    let embedding = EmbeddingChoice::resolve(&args, &store)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(serve(Start { args, store, model, listen, embedding }));
    // A load that is still going on must not hold up the end.
    runtime.shutdown_background();
    result
}

fn start_log(args: &ServeArgs) {
    let log = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(environment::log_filter()))
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    if args.log_format == "json" { log.json().init() } else { log.init() }
}

/// Everything that is known before the first connection.
struct Start {
    args: ServeArgs,
    store: Arc<ModelStore>,
    /// What was typed, or the default.
    model: String,
    listen: ListenConfig,
    embedding: Option<EmbeddingChoice>,
}

async fn serve(mut start: Start) -> anyhow::Result<()> {
    let listen = &start.listen;
    let listener = pagoda_server::listen(listen.address).with_context(|| {
        format!(
            "cannot listen on {}: stop what holds it, or choose another --port (0 takes a free one)",
            listen.address
        )
    })?;
    let address = listener.local_addr()?;
    let mut server_config = listen.server.clone();
    fit_connections_to_open_files(&mut server_config.connections);
    let server = Server::new(server_config)?;
    say(&format!("listening on http://{address} (503 until {} is loaded)", start.model));
    if listen.is_open_to_others {
        tokio::spawn(warn_of_open_server(address));
    }
    let mut embedding_names = Vec::new();
    if let Some(choice) = start.embedding.take() {
        embedding_names.clone_from(&choice.names);
        server.attach_embeddings(choice.source(Arc::clone(&start.store)))?;
    }
    let loaded = load_in_background(start, server.clone(), (address, embedding_names));
    lifetime::serve_to_the_end(&server, listener, loaded, shutdown_signal()?).await
}

/// Fetches, opens and loads on a thread of its own; the answer is an error, or the end of the engine to come.
fn load_in_background(
    start: Start,
    server: Server,
    (address, embedding_names): (SocketAddr, Vec<String>),
) -> oneshot::Receiver<anyhow::Result<EngineEnd>> {
    let (sender, receiver) = oneshot::channel();
    let Start { args, store, model, listen, .. } = start;
    std::thread::spawn(move || {
        let loaded = open_and_load(&args, &store, &model).map(|loaded| {
            let table = banner::table(&loaded, address, &listen.server, &embedding_names);
            let end: EngineEnd = Box::pin(loaded.wired.model.engine.ended());
            server.attach(loaded.wired.model);
            say(&table);
            end
        });
        // Nobody listens any more if the server was told to stop meanwhile.
        let _ = sender.send(loaded);
    });
    receiver
}

/// File descriptors kept for everything that is no connection: log, model, listener.
const RESERVED_OPEN_FILES: usize = 64;

/// Raises the limit of open files as far as it goes, and keeps the connections below it: a server that cannot accept
/// cannot even say 503.
fn fit_connections_to_open_files(limits: &mut ConnectionLimits) {
    let wanted = limits.max_connections + RESERVED_OPEN_FILES;
    let open_files = match rlimit::increase_nofile_limit(wanted as u64) {
        Ok(open_files) => usize::try_from(open_files).unwrap_or(usize::MAX),
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be read");
            return;
        }
    };
    let max_connections = open_files.saturating_sub(RESERVED_OPEN_FILES).max(1);
    if max_connections < limits.max_connections {
        tracing::warn!(open_files, max_connections, "the limit of open files bounds the connections");
        limits.max_connections = max_connections;
        limits.max_connections_per_address =
            limits.max_connections_per_address.min(max_connections.div_ceil(2));
    }
}

/// Prints to the standard output. A reader that has gone (`pagoda serve | head -1`) does not stop the server.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// What the banner shows of a loaded model.
pub(crate) struct Loaded {
    /// Its file or folder.
    pub(crate) path: PathBuf,
    /// One line about its shape.
    pub(crate) description: String,
    /// The resolved numbers.
    pub(crate) config: Config,
    /// The parts.
    pub(crate) wired: wire::Wired,
}

/// The device first: whoever asked for one that is not there need not wait for the model to be fetched.
fn open_and_load(args: &ServeArgs, store: &ModelStore, model: &str) -> anyhow::Result<Loaded> {
    let device = Device::open(&DeviceConfig::resolve(&args.model)?)?;
    // Nor need whoever asked for a batch that cannot be.
    BatchLimits::resolve(&args.model, device.kind())?;
    let path = store.locate(model)?;
    let checkpoint = open_checkpoint(args.model.load_format, &path)
        .with_context(|| format!("{model} cannot be served"))?;
    let config = Config::resolve(&args.model, &checkpoint, device.memory()?)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let wired = wire::load(&checkpoint, args, &config, device)?;
    let description = banner::describe(checkpoint.config());
    Ok(Loaded { path, description, config, wired })
}

/// Opens a checkpoint, or makes one up.
pub(crate) fn open_checkpoint(load_format: LoadFormat, path: &Path) -> Result<Checkpoint, ModelError> {
    match load_format {
        LoadFormat::Auto => Checkpoint::open(path),
        LoadFormat::Dummy { seed } => Checkpoint::open_dummy(path, seed),
    }
}

async fn warn_of_open_server(address: SocketAddr) {
    loop {
        tracing::warn!(%address, "anyone who reaches this address may use the server (--insecure-no-auth)");
        tokio::time::sleep(OPEN_WARNING_PERIOD).await;
    }
}

/// Ready at the first SIGTERM or Ctrl-C. The second one ends the process on the spot.
fn shutdown_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("installing the SIGTERM handler")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("installing the Ctrl-C handler")?;
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        let mut first = Some(sender);
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match first.take() {
                Some(first) => {
                    tracing::info!(
                        "draining: new requests get 503, accepted ones go on; once more ends at once"
                    );
                    // The server may be gone already, after a failed load.
                    let _ = first.send(());
                }
                None => std::process::exit(0),
            }
        }
    });
    Ok(async move {
        // A dropped sender cannot happen while the task above loops.
        let _ = receiver.await;
    })
}
