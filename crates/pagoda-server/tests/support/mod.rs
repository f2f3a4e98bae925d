//! A whole server on loopback whose model is an executor that remembers tokens, and a client that speaks HTTP by hand.
#![allow(dead_code, unreachable_pub, reason = "every test file is a crate that uses its own part of it")]

mod client;

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pagoda_engine::{EngineConfig, EngineHandle, StepPlan};
use pagoda_server::{
    DeviceReport, DrainReport, LoadedModel, SamplingDefaults, Server, ServerConfig, TokenPayload,
};
use pagoda_testkit::{
    FaultPlan, HashSource, SampleContext, ScriptSource, TokenMemoryConfig, TokenMemoryExecutor, TokenSource,
};
use pagoda_text::{ChatTemplate, SpecialTokens, Tokenizer, TokenizerSource};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub use client::{Answer, Client, JSON, request};

/// Longer than anything here may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The name under which the model is served; ids of hubs have a slash.
pub const MODEL: &str = "org/tiny";
pub const ALIAS: &str = "gpt-4o-mini";
/// Ends an answer.
pub const END: u32 = 258;
pub const VOCAB_SIZE: usize = 259;

const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(byte_tokenizer(&[])));

pub fn tokenizer() -> Arc<Tokenizer> {
    Arc::clone(&TOKENIZER)
}

/// One token per byte, with the byte as its id, and three control tokens behind them, then `further` ones.
pub fn byte_tokenizer(further: &[&str]) -> Tokenizer {
    let mut vocab = Map::new();
    let mut num_shifted = 0;
    for byte in 0..=255u32 {
        let is_itself = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if is_itself { byte } else { 0x100 + num_shifted };
        num_shifted += u32::from(!is_itself);
        vocab.insert(char::from_u32(code).unwrap().to_string(), byte.into());
    }
    let specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let added: Vec<Value> = (256..)
        .zip(specials.iter().chain(further).copied())
        .map(|(id, content): (u32, _)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    Tokenizer::new(TokenizerSource::Json(serde_json::to_vec(&file).unwrap())).unwrap()
}

/// What a test's server is made of.
pub struct Setup {
    pub config: ServerConfig,
    pub engine: EngineConfig,
    pub source: Box<dyn FnMut(SampleContext<'_>) -> u32 + Send>,
    pub delay: Duration,
    pub faults: FaultPlan,
    pub template: String,
    pub tokenizer: Arc<Tokenizer>,
}

impl Setup {
    /// The model says `text`, then ends.
    pub fn saying(text: &str) -> Self {
        let mut script: Vec<u32> = text.bytes().map(u32::from).collect();
        script.push(END);
        Setup::from(ScriptSource(script))
    }

    /// As `saying`, with special tokens that are written out in the text read as such.
    pub fn saying_with(text: &str, specials: &[&str]) -> Self {
        let tokenizer = Arc::new(byte_tokenizer(specials));
        let mut script = tokenizer.encode(text, false).unwrap();
        script.push(END);
        Setup { tokenizer, ..Setup::from(ScriptSource(script)) }
    }

    /// The model's answer depends on everything before it, the seed and the choice; it ends by length.
    pub fn hashing() -> Self {
        Setup::from(HashSource)
    }

    fn from(mut source: impl TokenSource + 'static) -> Self {
        Setup {
            config: ServerConfig::new(vec![MODEL.into(), ALIAS.into()]),
            engine: EngineConfig {
                block_size: 4,
                num_blocks: 512,
                max_num_seqs: 32,
                max_num_batched_tokens: 256,
                max_model_len: 512,
                max_queued_requests: 4096,
                watermark_blocks: 2,
                ..EngineConfig::default()
            },
            source: Box::new(move |context| source.choose(context).expect("these sources never fail")),
            delay: Duration::ZERO,
            faults: FaultPlan::new(),
            template: TEMPLATE.into(),
            tokenizer: tokenizer(),
        }
    }

    pub fn with_config(mut self, change: impl FnOnce(&mut ServerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    pub fn with_engine(mut self, change: impl FnOnce(&mut EngineConfig)) -> Self {
        change(&mut self.engine);
        self
    }

    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// A chat template of its own.
    pub fn with_template(mut self, template: String) -> Self {
        self.template = template;
        self
    }

    pub async fn start(self) -> TestServer {
        let server = Server::new(self.config).unwrap();
        let test = TestServer::listen(server).await;
        let config = TokenMemoryConfig {
            block_size: self.engine.block_size,
            num_blocks: self.engine.num_blocks,
            vocab_size: self.tokenizer.vocab_size() as u32,
        };
        let (block_size, delay) = (self.engine.block_size, self.delay);
        let executor = TokenMemoryExecutor::with_source(config, self.source)
            .with_faults(&self.faults)
            .with_delay(move |_: &StepPlan| delay);
        let engine = EngineHandle::spawn(self.engine, executor).unwrap();
        test.server.attach(LoadedModel {
            engine: engine.clone(),
            tokenizer: self.tokenizer,
            chat_template: Some(ChatTemplate::new(&self.template, SpecialTokens::default()).unwrap()),
            stop_token_ids: vec![END],
            sampling_defaults: SamplingDefaults::default(),
            max_trained_len: 4096,
            block_size,
            device: DeviceReport::default(),
        });
        TestServer { engine: Some(engine), ..test }
    }
}

/// A server that listens.
pub struct TestServer {
    pub server: Server,
    pub address: SocketAddr,
    pub engine: Option<EngineHandle<TokenPayload>>,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<DrainReport>,
}

impl TestServer {
    /// Without a model.
    pub async fn listen(server: Server) -> Self {
        let listener = pagoda_server::listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, end) = oneshot::channel::<()>();
        let serving = server.clone();
        let task = tokio::spawn(async move {
            serving
                .serve(listener, async {
                    let _ = end.await;
                })
                .await
        });
        TestServer { server, address, engine: None, shutdown, task }
    }

    pub fn engine(&self) -> &EngineHandle<TokenPayload> {
        self.engine.as_ref().expect("the model was attached")
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(&request("POST", path, &[JSON], body.to_string().as_bytes())).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(&request("GET", path, &[], b"")).await
    }

    /// One request on a connection of its own.
    pub async fn send(&self, bytes: &[u8]) -> Answer {
        let mut client = Client::connect(self.address).await;
        client.write(bytes).await;
        client.read_answer().await.expect("the server answers")
    }

    /// Asks the server to end; the report comes when it has.
    pub fn shut_down(self) -> JoinHandle<DrainReport> {
        let _ = self.shutdown.send(());
        self.task
    }

    /// Waits until the engine has nothing left to do.
    pub async fn wait_until_idle(&self) {
        eventually("the engine is idle", || {
            let stats = self.engine().stats();
            stats.num_requests_running + stats.num_requests_waiting == 0
                && self.engine().num_unfinished() == 0
        })
        .await;
    }
}

/// Polls until the condition holds.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn chat(content: &str) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": content}]})
}

pub fn completion(prompt: impl Into<Value>) -> Value {
    json!({"model": MODEL, "prompt": prompt.into()})
}

/// `body` with further fields.
pub fn with(mut body: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}
