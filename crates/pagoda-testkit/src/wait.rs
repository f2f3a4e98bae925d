//! Waiting in tests without an async runtime and without fixed sleeps: everything has a deadline.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Far beyond anything a test waits for; reached only by a hang.
const DEADLINE: Duration = Duration::from_secs(30);

/// Wakes the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future on this thread; panics after half a minute.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let start = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        let left =
            DEADLINE.checked_sub(start.elapsed()).expect("a future was not ready within half a minute");
        std::thread::park_timeout(left);
    }
}

/// Waits until the condition holds; panics, naming it, after half a minute.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "not within half a minute: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
