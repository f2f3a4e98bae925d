//! A few threads that fill token masks while the device runs the forward pass. Started by the first mask, so that an engine
//! without constraints has none.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::TokenMask;

/// The threads. They end when the pool is dropped.
pub(crate) struct MaskPool {
    num_threads: usize,
    /// `None` until the first mask comes.
    queue: Option<Sender<TokenMask>>,
}

impl MaskPool {
    /// A pool that has not started. Without threads every mask is filled by the executor that waits for it.
    pub(crate) fn new(num_threads: usize) -> Self {
        MaskPool { num_threads, queue: None }
    }

    /// Hands a mask to the threads. The queue is bounded by the samples of the steps in flight.
    pub(crate) fn submit(&mut self, mask: TokenMask) {
        if self.num_threads == 0 {
            return;
        }
        let queue = self.queue.get_or_insert_with(|| start(self.num_threads));
        // Without a thread that listens, the executor fills it.
        let _ = queue.send(mask);
    }
}

fn start(num_threads: usize) -> Sender<TokenMask> {
    let (sender, receiver) = channel();
    let receiver = Arc::new(Mutex::new(receiver));
    for index in 0..num_threads {
        let receiver = Arc::clone(&receiver);
        let thread = std::thread::Builder::new().name(format!("pagoda-mask-{index}"));
        if let Err(error) = thread.spawn(move || fill_all(&receiver)) {
            tracing::warn!("no thread for token masks, the step loop fills them: {error}");
        }
    }
    sender
}

fn fill_all(masks: &Mutex<Receiver<TokenMask>>) {
    loop {
        let next = masks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match next {
            Ok(mask) => mask.fill(),
            Err(_) => return,
        }
    }
}
