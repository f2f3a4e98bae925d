//! From the first connection to the end of the process: serves until it is told to stop, until the model cannot be loaded, or
//! until the engine has stopped (the device is lost, an invariant is broken), which only a new process mends.

use std::pin::Pin;

use pagoda_server::Server;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// Ready when the engine has stopped.
pub(crate) type EngineEnd = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Why there is no model to serve, or none any more.
enum ModelEnd {
    NotLoaded(anyhow::Error),
    EngineStopped,
}

/// Serves until `signal`, and drains. An error is one for the exit code: a supervisor should start the process again.
pub(crate) async fn serve_to_the_end(
    server: &Server,
    listener: TcpListener,
    loaded: oneshot::Receiver<anyhow::Result<EngineEnd>>,
    signal: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (stop, stopped) = oneshot::channel();
    let shutdown = async {
        tokio::select! {
            () = signal => {}
            Ok(()) = stopped => {}
        }
    };
    let serving = server.serve(listener, shutdown);
    tokio::pin!(serving);
    let report = tokio::select! {
        report = &mut serving => report,
        end = end_of_model(loaded) => match end {
            ModelEnd::NotLoaded(error) => return Err(error),
            ModelEnd::EngineStopped => {
                // Clients read the errors that their streams have ended with; no new request is taken.
                let _ = stop.send(());
                serving.await;
                anyhow::bail!("the engine has stopped, which only a new process mends: the log says why");
            }
        },
    };
    if report.num_cut > 0 {
        tracing::warn!(num_cut = report.num_cut, "the drain time was over before these requests had ended");
    }
    tracing::info!(elapsed = ?report.elapsed, "drained");
    Ok(())
}

/// Ready if the load fails, or when the engine has stopped.
async fn end_of_model(loaded: oneshot::Receiver<anyhow::Result<EngineEnd>>) -> ModelEnd {
    match loaded.await {
        Ok(Ok(engine_end)) => {
            engine_end.await;
            ModelEnd::EngineStopped
        }
        Ok(Err(error)) => ModelEnd::NotLoaded(error),
        Err(_) => ModelEnd::NotLoaded(anyhow::anyhow!("loading the model panicked")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use pagoda_engine::{EngineConfig, EngineHandle, TokenLogprobs};
    use pagoda_model::Checkpoint;
    use pagoda_server::{DeviceReport, LoadedModel, SamplingDefaults, ServerConfig};
    use pagoda_testkit::{Fault, FaultPlan, TokenMemoryConfig, TokenMemoryExecutor};

    use super::*;

    /// A server over an executor that fails on command.
    fn model(faults: &FaultPlan) -> LoadedModel {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
        let assets = Checkpoint::open(tiny).unwrap().text_assets();
        let memory = TokenMemoryConfig { block_size: 16, num_blocks: 64, vocab_size: 500 };
        let executor =
            TokenMemoryExecutor::new(memory).with_faults(faults).with_delay(|_| Duration::from_millis(1));
        let config = EngineConfig {
            block_size: 16,
            num_blocks: 64,
            max_model_len: 900,
            watermark_blocks: 1,
            ..EngineConfig::default()
        };
        let engine: EngineHandle<Option<TokenLogprobs>> = EngineHandle::spawn(config, executor).unwrap();
        LoadedModel {
            engine,
            tokenizer: Arc::new(crate::text::tokenizer(assets).unwrap()),
            chat_template: None,
            stop_token_ids: vec![],
            sampling_defaults: SamplingDefaults::default(),
            max_trained_len: 900,
            block_size: 16,
            device: DeviceReport::default(),
        }
    }

    /// Streams a long answer, breaks the device after its first event, and reads on to the end.
    fn stream_into_a_fault(address: SocketAddr, faults: &FaultPlan) -> String {
        let body = r#"{"model":"tiny","prompt":[5,6,7],"max_tokens":800,"stream":true,"ignore_eos":true}"#;
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = body.len();
        let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
        write!(stream, "{head}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while !line.starts_with("data: ") {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0, "the stream ended before its first event");
        }
        faults.next(Fault::Fatal);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        rest
    }

    async fn listening() -> (Server, TcpListener, SocketAddr) {
        let server = Server::new(ServerConfig::new(vec!["tiny".into()])).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (server, listener, address)
    }

    #[tokio::test]
    async fn a_lost_device_ends_streams_with_an_error_and_the_process_with_one() {
        let (server, listener, address) = listening().await;
        let faults = FaultPlan::new();
        let model = model(&faults);
        let (loaded, receiver) = oneshot::channel();
        let end: EngineEnd = Box::pin(model.engine.ended());
        assert!(loaded.send(Ok(end)).is_ok());
        let watched = model.engine.clone();
        server.attach(model);
        let client = tokio::task::spawn_blocking(move || stream_into_a_fault(address, &faults));
        let result = serve_to_the_end(&server, listener, receiver, std::future::pending()).await;
        assert!(result.unwrap_err().to_string().contains("the engine has stopped"));
        let rest = client.await.unwrap();
        assert!(rest.contains("\"error\""), "{rest}");
        assert_eq!(watched.state(), pagoda_engine::EngineState::Stopped);
        assert!(TcpStream::connect(address).is_err(), "it listens on");
    }

    #[tokio::test]
    async fn a_signal_is_no_error_and_a_failed_load_is_one() {
        let (server, listener, _) = listening().await;
        let (loaded, receiver) = oneshot::channel();
        let model = model(&FaultPlan::new());
        let end: EngineEnd = Box::pin(model.engine.ended());
        assert!(loaded.send(Ok(end)).is_ok());
        server.attach(model);
        assert!(serve_to_the_end(&server, listener, receiver, std::future::ready(())).await.is_ok());
        let (server, listener, _) = listening().await;
        let (loaded, receiver) = oneshot::channel();
        assert!(loaded.send(Err(anyhow::anyhow!("no such model"))).is_ok());
        let result = serve_to_the_end(&server, listener, receiver, std::future::pending()).await;
        assert_eq!(result.unwrap_err().to_string(), "no such model");
    }
}
