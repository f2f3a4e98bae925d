//! The real server, engine, tokenizer, template and detokeniser on loopback, with a script in the place of the model: what a
//! client test says on the stage's line is what the model answers, token by token, under whatever grammar the request has.
//!
//! The line is a TCP connection on which each side writes one JSON value per line:
//! `{"drop": true, "play": [{"say": "text", "when": "in the prompt", "last": "in its last message"}, ..]}` drops the replies that
//! are left and appends new ones; all fields but `say` may be absent. Every command is answered with `{"left": [..],
//! "prompts": [..], "faults": [..]}`: replies not taken yet, the prompts answered since the last command, and what went wrong. A
//! sequence takes the first reply that fits its prompt.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use pagoda_engine::{EngineConfig, EngineHandle};
use pagoda_model::Checkpoint;
use pagoda_server::{DeviceReport, LoadedModel, SamplingDefaults, Server, ServerConfig};
use pagoda_testkit::{Faults, ReplySource, SampleContext, TokenMemoryConfig, TokenMemoryExecutor};
use pagoda_text::Tokenizer;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::text;

const BLOCK_SIZE: usize = 16;

/// What the scripted model looks like from outside.
pub(crate) struct Cast<'a> {
    /// The checkpoint whose vocabulary and special tokens are used.
    pub(crate) model: &'a Path,
    /// A chat template in the place of the checkpoint's.
    pub(crate) template: Option<&'a Path>,
    pub(crate) names: &'a [&'a str],
    pub(crate) max_model_len: usize,
}

/// A server that says what it is told to say. Ends when it is dropped.
pub(crate) struct ScriptedServer {
    /// Of the HTTP API.
    pub(crate) address: SocketAddr,
    /// Of the stage's line.
    pub(crate) stage: SocketAddr,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Deserialize)]
struct PlayCommand {
    #[serde(default)]
    drop: bool,
    #[serde(default)]
    play: Vec<Reply>,
}

#[derive(Clone, Debug, Deserialize)]
struct Reply {
    say: String,
    #[serde(default)]
    when: String,
    #[serde(default)]
    last: String,
}

impl Reply {
    fn fits(&self, prompt: &str) -> bool {
        // ChatML: the last turn is the open one of the assistant.
        let last = prompt.rsplit("<|im_start|>").nth(1).unwrap_or(prompt);
        prompt.contains(&self.when) && last.contains(&self.last)
    }
}

/// The script, shared by the engine's thread and the stage's line.
struct Script {
    tokenizer: Arc<Tokenizer>,
    /// Said after every reply.
    end_token_id: u32,
    state: Mutex<ScriptState>,
}

#[derive(Default)]
struct ScriptState {
    replies: VecDeque<Reply>,
    prompts: Vec<String>,
}

impl ScriptedServer {
    pub(crate) fn start(cast: &Cast<'_>) -> Self {
        let checkpoint = Checkpoint::open(cast.model).unwrap();
        let assets = checkpoint.text_assets();
        let stop_token_ids = assets.stop_token_ids.clone();
        let chat_template = text::chat_template(&assets, cast.template).unwrap();
        let tokenizer = Arc::new(text::tokenizer(assets).unwrap());
        let end_token_id = tokenizer.token_id("<|im_end|>").expect("the script plays a ChatML model");
        assert!(stop_token_ids.contains(&end_token_id));
        let state = Mutex::default();
        let script = Arc::new(Script { tokenizer: Arc::clone(&tokenizer), end_token_id, state });
        let (engine, faults) = engine(cast, &script);
        let model = LoadedModel {
            engine,
            tokenizer,
            chat_template,
            stop_token_ids,
            sampling_defaults: SamplingDefaults::default(),
            max_trained_len: checkpoint.config().max_position_embeddings,
            block_size: BLOCK_SIZE,
            device: DeviceReport::default(),
        };
        let config = ServerConfig::new(cast.names.iter().map(|name| (*name).to_owned()).collect());
        let stage = listen(script, faults);
        let (address, shutdown, thread) = serve(config, model);
        ScriptedServer { address, stage, shutdown: Some(shutdown), thread: Some(thread) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        drop(self.shutdown.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || std::thread::panicking(), "the server panicked");
    }
}

fn engine(cast: &Cast<'_>, script: &Arc<Script>) -> (EngineHandle<pagoda_server::TokenPayload>, Faults) {
    let num_blocks = 2 + 16 * cast.max_model_len.div_ceil(BLOCK_SIZE);
    let vocab_size = u32::try_from(script.tokenizer.vocab_size()).unwrap();
    let config = EngineConfig {
        block_size: BLOCK_SIZE,
        num_blocks,
        max_num_seqs: 16,
        max_num_batched_tokens: 512,
        max_model_len: cast.max_model_len,
        max_queued_requests: 64,
        vocab_size: script.tokenizer.vocab_size(),
        ..EngineConfig::default()
    };
    let script = Arc::clone(script);
    let source = ReplySource::new(move |context: SampleContext<'_>| script.reply_to(context.tokens));
    let faults = source.faults();
    let memory = TokenMemoryConfig { block_size: BLOCK_SIZE, num_blocks, vocab_size };
    let executor = TokenMemoryExecutor::with_source(memory, source);
    (EngineHandle::spawn(config, executor).unwrap(), faults)
}

fn serve(config: ServerConfig, model: LoadedModel) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let (shutdown, end) = oneshot::channel::<()>();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = Server::new(config).unwrap();
    server.attach(model);
    let thread = std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            // A dropped sender is the end as well.
            server.serve(listener, async { drop(end.await) }).await;
        });
        runtime.shutdown_background();
    });
    (address, shutdown, thread)
}

impl Script {
    fn reply_to(&self, prompt: &[u32]) -> Result<Vec<u32>, String> {
        let prompt = self.tokenizer.decode(prompt, false);
        let mut state = self.state.lock().unwrap();
        let position = state.replies.iter().position(|reply| reply.fits(&prompt));
        let reply = position.and_then(|position| state.replies.remove(position));
        let Some(reply) = reply else {
            let tail: String = prompt.chars().skip(prompt.chars().count().saturating_sub(300)).collect();
            return Err(format!("nobody has a reply to a prompt that ends with {tail:?}"));
        };
        state.prompts.push(prompt);
        let mut tokens = self.tokenizer.encode(&reply.say, false).map_err(|error| error.to_string())?;
        tokens.push(self.end_token_id);
        Ok(tokens)
    }

    fn obey(&self, command: PlayCommand, faults: &Faults) -> Value {
        let mut state = self.state.lock().unwrap();
        if command.drop {
            state.replies.clear();
        }
        state.replies.extend(command.play);
        let prompts = std::mem::take(&mut state.prompts);
        let left: Vec<&str> = state.replies.iter().map(|reply| reply.say.as_str()).collect();
        json!({"left": left, "prompts": prompts, "faults": faults.take()})
    }
}

/// The stage's line: any number of connections, each with a thread that ends with it.
fn listen(script: Arc<Script>, faults: Faults) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (script, faults) = (Arc::clone(&script), faults.clone());
            // A client that goes away in the middle has failed, and says so itself.
            std::thread::spawn(move || connection.and_then(|line| talk(&line, &script, &faults)));
        }
    });
    address
}

fn talk(line: &TcpStream, script: &Script, faults: &Faults) -> std::io::Result<()> {
    for command in BufReader::new(line).lines() {
        let command: PlayCommand = serde_json::from_str(&command?)?;
        let answer = script.obey(command, faults);
        writeln!(&mut &*line, "{answer}")?;
    }
    Ok(())
}
