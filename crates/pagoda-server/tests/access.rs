//! Who gets in, for how long, and how the server ends.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::{Duration, Instant};

use pagoda_server::{ApiKeys, Policy, Server, ServerConfig, WhileDraining, routes};
use serde_json::json;
use support::{Client, JSON, MODEL, Setup, TestServer, chat, completion, eventually, request, with};

const USER_KEY: &str = "user-key-0123456789abcdef";
const ADMIN_KEY: &str = "admin-key-0123456789abcdef";

fn keys() -> ApiKeys {
    ApiKeys::parse(&format!("{USER_KEY}\nadmin {ADMIN_KEY}\n")).unwrap()
}

/// A path that the route's pattern matches.
fn path_of(pattern: &str) -> String {
    pattern.replace("{*id}", MODEL)
}

#[tokio::test]
async fn every_route_obeys_its_policy() {
    let server = Setup::saying("!").with_config(|config| config.api_keys = keys()).start().await;
    let status = |method, path: String, key: Option<&'static str>| {
        let authorization = key.map(|key| format!("Bearer {key}"));
        let mut headers = vec![JSON];
        headers.extend(authorization.iter().map(|value| ("authorization", value.as_str())));
        let body = if method == "POST" { "{}" } else { "" };
        let bytes = request(method, &path, &headers, body.as_bytes());
        let server = &server;
        async move { server.send(&bytes).await.status }
    };
    let (refused, forbidden) = (401, 403);
    for route in routes() {
        let path = path_of(route.path);
        let statuses = [
            status(route.method, path.clone(), None).await,
            status(route.method, path.clone(), Some("wrong-key-0123456789abcdef")).await,
            status(route.method, path.clone(), Some(USER_KEY)).await,
            status(route.method, path.clone(), Some(ADMIN_KEY)).await,
        ];
        let is_let_in = |status: u16| status != refused && status != forbidden;
        match route.policy {
            Policy::Public => assert!(statuses.into_iter().all(is_let_in), "{path}: {statuses:?}"),
            Policy::Key => {
                assert_eq!(statuses[..2], [refused; 2], "{path}");
                assert!(statuses[2..].iter().copied().all(is_let_in), "{path}: {statuses:?}");
            }
            Policy::Admin => {
                assert_eq!(statuses[..3], [refused, refused, forbidden], "{path}");
                assert!(is_let_in(statuses[3]), "{path}: {statuses:?}");
            }
        }
        if route.policy != Policy::Public {
            // Another spelling of the path, or another method, does not get around the guard.
            for spelling in
                [format!("/{path}"), format!("{path}/"), path.to_uppercase(), path.replacen('/', "/%2e/", 1)]
            {
                assert_eq!(status(route.method, spelling.clone(), None).await, refused, "{spelling}");
            }
            assert_eq!(status("DELETE", path.clone(), None).await, refused, "DELETE {path}");
        }
    }
    let public: Vec<&str> =
        routes().iter().filter(|route| route.policy == Policy::Public).map(|route| route.path).collect();
    assert_eq!(public, ["/health", "/health/ready", "/health/live"]);
    assert_eq!(status("GET", "/nowhere".into(), None).await, refused);
    assert_eq!(status("GET", "/nowhere".into(), Some(USER_KEY)).await, 404);
}

#[tokio::test]
async fn a_key_is_a_domain_of_cached_prefixes() {
    let server = Setup::saying("!").with_config(|config| config.api_keys = keys()).start().await;
    let body = completion("a prompt that is long enough to be cached").to_string();
    let cached = |key: &'static str| {
        let authorization = format!("Bearer {key}");
        let bytes =
            request("POST", "/v1/completions", &[JSON, ("authorization", &authorization)], body.as_bytes());
        let server = &server;
        async move {
            server.send(&bytes).await.ok()["usage"]["prompt_tokens_details"]["cached_tokens"]
                .as_u64()
                .unwrap()
        }
    };
    assert_eq!(cached(USER_KEY).await, 0);
    assert!(cached(USER_KEY).await > 0);
    assert_eq!(cached(ADMIN_KEY).await, 0);
}

#[tokio::test]
async fn request_ids_are_ours_or_a_harmless_one_of_the_client() {
    let server = Setup::saying("!").start().await;
    let first = server.get("/health").await.header("x-request-id").unwrap().to_owned();
    let second = server.get("/nowhere").await.header("x-request-id").unwrap().to_owned();
    assert_eq!((first.len(), second.len()), (32, 32));
    assert_ne!(first, second);
    let with_id = |id: &str| request("GET", "/health", &[("x-request-id", id)], b"");
    assert_eq!(server.send(&with_id("agent-7")).await.header("x-request-id"), Some("agent-7"));
    assert_ne!(server.send(&with_id("a b")).await.header("x-request-id"), Some("a b"));
}

#[tokio::test]
async fn only_configured_origins_may_call_from_a_browser() {
    let origin = "http://localhost:3000";
    let asking = |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type,x-stainless-os"),
        ];
        request("OPTIONS", "/v1/chat/completions", &headers, b"")
    };
    let closed = Setup::saying("!").start().await;
    assert_eq!(closed.send(&asking(origin)).await.header("access-control-allow-origin"), None);
    let open =
        Setup::saying("!").with_config(|config| config.cors_origins = vec![origin.into()]).start().await;
    let answer = open.send(&asking(origin)).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some(origin));
    // The OpenAI SDK for browsers sends headers of its own with every call.
    let allowed = answer.header("access-control-allow-headers").unwrap_or_default();
    for header in ["authorization", "content-type", "x-stainless-os"] {
        assert!(allowed.contains(header), "{header}: {allowed:?}");
    }
    assert_eq!(answer.header("access-control-max-age"), Some("600"));
    assert_eq!(open.send(&asking("http://evil.test")).await.header("access-control-allow-origin"), None);
    for wrong in ["*", "localhost", "http://a/b", "http://a/"] {
        let mut config = ServerConfig::new(vec![MODEL.into()]);
        config.cors_origins = vec![wrong.into()];
        assert!(Server::new(config).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn a_server_without_its_model_says_that_it_loads() {
    let server = TestServer::listen(Server::new(ServerConfig::new(vec![MODEL.into()])).unwrap()).await;
    assert_eq!(server.get("/health/live").await.status, 200);
    for answer in [
        server.get("/health/ready").await,
        server.get("/v1/models").await,
        server.post("/v1/chat/completions", &chat("hi")).await,
    ] {
        assert_eq!(answer.error(), (503, "unavailable".into(), "".into()));
        assert!(answer.text().contains("loading"));
        assert_eq!(answer.header("retry-after"), Some("2"));
    }
    let report = server.shut_down().await.unwrap();
    assert_eq!(report.num_cut, 0);
}

#[tokio::test]
async fn a_full_queue_is_429_and_a_several_prompt_request_gets_in_whole_or_not_at_all() {
    let setup = Setup::saying("!").with_engine(|engine| {
        engine.max_num_seqs = 1;
        engine.max_queued_requests = 2;
    });
    let hang = setup.faults.hang_next();
    let faults = setup.faults.clone();
    let server = setup.start().await;
    let mut clients = Vec::new();
    let bytes = request("POST", "/v1/completions", &[JSON], completion("a").to_string().as_bytes());
    for num_accepted in 1..=2 {
        let mut client = Client::connect(server.address).await;
        client.write(&bytes).await;
        clients.push(client);
        eventually("accepted", || server.engine().num_unfinished() == num_accepted).await;
        eventually("the first one's step hangs", || faults.num_left() == 0).await;
    }
    let two = server.post("/v1/completions", &completion(json!(["a", "b"]))).await;
    assert_eq!(two.error(), (429, "queue_full".into(), "".into()));
    assert_eq!(two.header("retry-after"), Some("2"));
    // More than the whole queue holds can never succeed: not a matter of trying again.
    let three = server.post("/v1/completions", &completion(json!(["a", "b", "c"]))).await;
    assert_eq!(three.status, 400);
    assert!(three.text().contains("'prompt' asks for 3 sequences"), "{}", three.text());
    eventually("nothing of it is left", || server.engine().num_unfinished() == 2).await;
    hang.release();
    for mut client in clients {
        assert_eq!(client.read_answer().await.unwrap().status, 200);
    }
    server.wait_until_idle().await;
    assert!(server.get("/metrics").await.text().contains("vllm:admission_rejections_total"));
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_behind() {
    for stream in [true, false] {
        for half_closed in [true, false] {
            let server = Setup::hashing().with_delay(Duration::from_millis(5)).start().await;
            let body = with(
                completion("x"),
                json!({"max_tokens": 400, "stream": stream, "n": 2, "ignore_eos": true}),
            );
            let mut client = Client::connect(server.address).await;
            client.write(&request("POST", "/v1/completions", &[JSON], body.to_string().as_bytes())).await;
            eventually("it runs", || server.engine().stats().num_output_tokens > 4).await;
            if half_closed {
                client.close_sending().await;
                server.wait_until_idle().await;
            } else {
                drop(client);
                server.wait_until_idle().await;
            }
            let stats = server.engine().stats();
            assert!(stats.num_output_tokens < 600, "it was not left to finish");
            let kv = server.get("/debug/kv").await.ok();
            assert_eq!(kv["integrity"]["is_intact"], true);
            assert_eq!(kv["integrity"]["kv_blocks_referenced"], 0);
        }
    }
}

#[tokio::test]
async fn a_reader_that_stalls_is_cut_off_and_delays_nobody() {
    let setup = Setup::hashing()
        .with_config(|config| config.connections.write_timeout = Duration::from_millis(300))
        .with_engine(|engine| {
            engine.max_model_len = 4096;
            engine.num_blocks = 16 * 1024;
        });
    let server = setup.start().await;
    // Some 100 MB of answer: more than all buffers between here and there.
    let body = with(
        completion("x"),
        json!({"max_tokens": 4000, "stream": true, "n": 8, "logprobs": 20, "ignore_eos": true}),
    );
    let mut stalled = Client::connect(server.address).await;
    stalled.write(&request("POST", "/v1/completions", &[JSON], body.to_string().as_bytes())).await;
    eventually("it runs", || server.engine().stats().num_output_tokens > 0).await;
    let quick = server.post("/v1/completions", &with(completion("y"), json!({"max_tokens": 8}))).await;
    assert_eq!(quick.status, 200);
    eventually("the stalled one is cut", || server.engine().stats().num_aborted_requests == 1).await;
    server.wait_until_idle().await;
    // The connection's end is a reset or a cut chunk, never a clean end.
    let (bytes, _) = stalled.read_to_end().await;
    assert!(!bytes.ends_with(b"0\r\n\r\n"));
    assert!(!bytes.windows(6).any(|window| window == b"[DONE]"));
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let server =
        Setup::saying("!").with_config(|config| config.connections.max_connections = 2).start().await;
    let first = Client::connect(server.address).await;
    let _second = Client::connect(server.address).await;
    let mut third = Client::connect(server.address).await;
    let answer = third.read_answer().await.unwrap();
    assert_eq!(answer.error(), (503, "unavailable".into(), "".into()));
    drop(first);
    let deadline = Instant::now() + support::PATIENCE;
    loop {
        let mut client = Client::connect(server.address).await;
        client.write(&request("GET", "/health", &[], b"")).await;
        match client.read_answer().await {
            Some(answer) if answer.status == 200 => break,
            _ => assert!(Instant::now() < deadline, "a place became free"),
        }
    }
}

#[tokio::test]
async fn heads_beyond_the_limits_are_431() {
    let server = Setup::saying("!").start().await;
    let long = "x".repeat(20_000);
    assert_eq!(server.send(&request("GET", "/health", &[("x-long", &long)], b"")).await.status, 431);
    let many = [("x-many", "1"); 70];
    assert_eq!(server.send(&request("GET", "/health", &many, b"")).await.status, 431);
    let fine = "x".repeat(12_000);
    assert_eq!(server.send(&request("GET", "/health", &[("x-long", &fine)], b"")).await.status, 200);
}

#[tokio::test]
async fn a_drain_finishes_what_was_accepted_and_refuses_the_rest() {
    let server = Setup::saying(&"word ".repeat(40)).with_delay(Duration::from_millis(3)).start().await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut client = Client::connect(server.address).await;
        let body = with(chat("hi"), json!({"stream": true})).to_string();
        client.write(&request("POST", "/v1/chat/completions", &[JSON], body.as_bytes())).await;
        streams.push(client);
    }
    eventually("all run", || server.engine().stats().num_requests_running == 4).await;
    let mut half_head = Client::connect(server.address).await;
    half_head.write(b"GET /health HT").await;
    let _silent = Client::connect(server.address).await;
    let address = server.address;
    let draining = server.server.clone();
    let task = server.shut_down();

    let deadline = Instant::now() + support::PATIENCE;
    loop {
        let mut client = Client::connect(address).await;
        client.write(&request("GET", "/health/ready", &[], b"")).await;
        let answer = client.read_answer().await.expect("the listener is open while the server drains");
        if answer.status == 503 {
            break;
        }
        assert!(Instant::now() < deadline);
    }
    for route in routes().iter().filter(|route| route.while_draining == WhileDraining::Refuse) {
        let mut client = Client::connect(address).await;
        client.write(&request(route.method, &path_of(route.path), &[JSON], b"{}")).await;
        let answer = client.read_answer().await.expect("an answer while the server drains");
        assert_eq!(answer.status, 503, "{}", route.path);
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(answer.header("retry-after").is_some());
    }
    for mut stream in streams {
        let events = stream.read_answer().await.unwrap().events();
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop", "nothing is cut short");
    }
    let report = tokio::time::timeout(support::PATIENCE, task).await.unwrap().unwrap();
    assert_eq!(report.num_cut, 0);
    assert!(report.elapsed < Duration::from_secs(10), "{report:?}");
    drop(draining);
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the listener is closed at the end");
}

#[tokio::test]
async fn a_drain_that_takes_too_long_ends_with_an_error_event() {
    let setup = Setup::hashing().with_delay(Duration::from_millis(20)).with_config(|config| {
        config.drain.drain_timeout = Duration::from_millis(200);
    });
    let server = setup.start().await;
    let mut client = Client::connect(server.address).await;
    let body =
        with(completion("x"), json!({"stream": true, "max_tokens": 500, "ignore_eos": true})).to_string();
    client.write(&request("POST", "/v1/completions", &[JSON], body.as_bytes())).await;
    eventually("it runs", || server.engine().stats().num_output_tokens > 0).await;
    let task = server.shut_down();
    let events = client.read_answer().await.unwrap().events();
    assert_eq!(events.last().unwrap()["error"]["code"], "unavailable");
    let report = tokio::time::timeout(support::PATIENCE, task).await.unwrap().unwrap();
    assert_eq!(report.num_cut, 1);
    assert!(report.elapsed < Duration::from_secs(5), "{report:?}");
}
