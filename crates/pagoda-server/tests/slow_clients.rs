//! 1,000 half-sent and silent connections are all closed by their time limit, while normal traffic flows.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::{Client, JSON, Setup, chat, request};

const LIMIT: Duration = Duration::from_millis(400);
/// How much later than the limit a close may be seen on a busy machine.
const SLACK: Duration = Duration::from_secs(5);
const NUM_SLOW: usize = 1_000;
/// Both ends of every connection live in this process; the rest is for normal traffic and the runtime.
const NUM_OPEN_FILES: u64 = 2 * NUM_SLOW as u64 + 200;

/// Ways to be slow.
#[derive(Clone, Copy, Debug)]
enum Slowness {
    Silent,
    HalfHead,
    TricklingHead,
    HalfBody,
    TricklingBody,
    IdleAfterAnswer,
}

const WAYS: [Slowness; 6] = [
    Slowness::Silent,
    Slowness::HalfHead,
    Slowness::TricklingHead,
    Slowness::HalfBody,
    Slowness::TricklingBody,
    Slowness::IdleAfterAnswer,
];

const HALF_BODY: &[u8] =
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n{";

/// Is slow; gives how long the server put up with it, and what it said in the end.
async fn be_slow(address: SocketAddr, way: Slowness) -> (Duration, Vec<u8>) {
    // The server's clock starts when it accepts, which may be before a busy client learns of it.
    let mut started = Instant::now();
    let mut client = Client::connect(address).await;
    match way {
        Slowness::Silent => {}
        Slowness::HalfHead => client.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x").await,
        Slowness::HalfBody => client.write(HALF_BODY).await,
        Slowness::TricklingHead => return trickle(client, b"GET /health HTTP/1.1\r\nx: ", started).await,
        Slowness::TricklingBody => return trickle(client, HALF_BODY, started).await,
        Slowness::IdleAfterAnswer => {
            client.write(&request("GET", "/health", &[], b"")).await;
            assert_eq!(client.read_answer().await.unwrap().status, 200);
            started = Instant::now();
        }
    }
    let (said, _) = client.read_to_end().await;
    (started.elapsed(), said)
}

/// A byte now and then: progress, but far too little.
async fn trickle(mut client: Client, start: &[u8], started: Instant) -> (Duration, Vec<u8>) {
    client.write(start).await;
    let mut ticks = tokio::time::interval(Duration::from_millis(40));
    loop {
        ticks.tick().await;
        client.write(b" ").await;
        let mut said = vec![0; 4096];
        match client.socket().try_read(&mut said) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(started.elapsed() < LIMIT + SLACK, "it is never closed");
            }
            // Closed or reset, or the answer that says why.
            Ok(len) => return (started.elapsed(), said[..len].to_vec()),
            Err(_) => return (started.elapsed(), Vec::new()),
        }
    }
}

/// All of them, unless the machine grants too few open files.
fn slow_connections_at_once() -> usize {
    let granted = rlimit::increase_nofile_limit(NUM_OPEN_FILES).expect("the limit can be read");
    if granted >= NUM_OPEN_FILES {
        return NUM_SLOW;
    }
    println!("only {granted} open files: the slow connections come in waves of 250");
    250
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_slow_connections_are_closed_while_others_are_served() {
    let setup = Setup::saying("Hello!").with_config(|config| {
        config.connections.first_byte_timeout = LIMIT;
        config.connections.header_timeout = LIMIT;
        config.connections.idle_timeout = LIMIT;
        config.requests.body_timeout = LIMIT;
    });
    let server = Arc::new(setup.start().await);
    let is_over = Arc::new(AtomicBool::new(false));
    let num_served = Arc::new(AtomicUsize::new(0));
    let normal = tokio::spawn({
        let (server, is_over, num_served) =
            (Arc::clone(&server), Arc::clone(&is_over), Arc::clone(&num_served));
        async move {
            while !is_over.load(Ordering::SeqCst) {
                let answer = server.post("/v1/chat/completions", &chat("hi")).await.ok();
                assert_eq!(answer["choices"][0]["message"]["content"], "Hello!");
                num_served.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    let num_per_wave = slow_connections_at_once();
    for first in (0..NUM_SLOW).step_by(num_per_wave) {
        let served_before = num_served.load(Ordering::SeqCst);
        let slow = (first..NUM_SLOW.min(first + num_per_wave)).map(|index| {
            let way = WAYS[index % WAYS.len()];
            let address = server.address;
            tokio::spawn(async move { (way, be_slow(address, way).await) })
        });
        let slow: Vec<_> = slow.collect();
        for client in slow {
            let (way, (held, said)) = client.await.expect("the slow client was closed");
            assert!(held < LIMIT + SLACK, "{way:?} was held for {held:?}");
            assert!(held > LIMIT / 2, "{way:?} was cut after {held:?}, before its time");
            let is_told = said.starts_with(b"HTTP/1.1 408");
            match way {
                Slowness::HalfBody => assert!(is_told, "{}", String::from_utf8_lossy(&said)),
                // The answer may be lost in the reset that its further bytes provoke.
                Slowness::TricklingBody => assert!(is_told || said.is_empty()),
                _ => assert!(said.is_empty(), "{way:?}: {}", String::from_utf8_lossy(&said)),
            }
        }
        assert!(
            num_served.load(Ordering::SeqCst) > served_before,
            "the slow ones from {first} on starved the others"
        );
    }
    is_over.store(true, Ordering::SeqCst);
    normal.await.expect("normal traffic flowed");
    // A connection that behaves is still taken.
    let bytes = request("POST", "/v1/chat/completions", &[JSON], chat("hi").to_string().as_bytes());
    assert_eq!(server.send(&bytes).await.status, 200);
}
