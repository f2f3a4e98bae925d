//! The accept loop and the drain. The listener stays open until the very end: whoever comes while the server drains is
//! told so, rather than refused by the operating system.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::ConnectionLimits;
use crate::connection;
use crate::state::ServerState;

/// Said to one connection too many.
const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
retry-after: 2\r\nconnection: close\r\ncontent-length: 122\r\n\r\n\
{\"error\":{\"message\":\"too many connections, try again later\",\"type\":\"unavailable_error\",\"param\":null,\
\"code\":\"unavailable\"}}";

/// Connections that the system holds until they are accepted; its own limit may be lower. With the usual 128, of a thousand
/// clients that come at once some would believe to be connected and hear nothing.
const BACKLOG: u32 = 4096;

/// Listens on an address, with room for many clients at once.
///
/// # Errors
/// Whatever the system says: the address is taken, or not ours.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A server that starts anew does not wait for its predecessor's connections to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// How the server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// Exchanges that were still going on when the drain's time was over; their clients got an error.
    pub num_cut: usize,
    /// From the request to shut down to the end.
    pub elapsed: Duration,
}

/// The accept loop of one server.
pub(crate) struct Acceptor {
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    connections: JoinSet<()>,
    per_address: Arc<AddressCounts>,
    closing: watch::Sender<bool>,
}

#[derive(Default)]
struct AddressCounts(Mutex<HashMap<IpAddr, usize>>);

/// One connection's place in the counts.
struct AddressPlace {
    counts: Arc<AddressCounts>,
    address: IpAddr,
}

impl Acceptor {
    pub(crate) fn new(listener: TcpListener, router: Router, limits: ConnectionLimits) -> Self {
        Acceptor {
            listener,
            router,
            limits,
            connections: JoinSet::new(),
            per_address: Arc::default(),
            closing: watch::Sender::new(false),
        }
    }

    /// Serves until `shutdown`, then drains.
    pub(crate) async fn serve(
        mut self,
        state: &ServerState,
        shutdown: impl Future<Output = ()>,
    ) -> DrainReport {
        self.accept_until(shutdown).await;
        let started = Instant::now();
        tracing::info!("draining");
        state.start_draining();
        let drain = state.config.drain;
        let mut num_in_flight = state.num_in_flight.subscribe();
        self.accept_until(async {
            tokio::select! {
                // The sender lives in the state.
                _ = num_in_flight.wait_for(|num| *num == 0) => {}
                () = sleep(drain.drain_timeout) => {}
            }
        })
        .await;
        let num_cut = *state.num_in_flight.borrow();
        if num_cut > 0 {
            tracing::warn!(num_cut, "the drain's time is over");
            if let Some(model) = state.model.get() {
                model.engine.abort_all();
            }
            if let Some(embeddings) = state.embeddings.get() {
                embeddings.cut();
            }
            // Time for the error to reach the clients.
            let told = num_in_flight.wait_for(|num| *num == 0);
            let _ = tokio::time::timeout(drain.close_timeout, told).await;
        }
        self.close(drain.close_timeout).await;
        let elapsed = started.elapsed();
        tracing::info!(num_cut, elapsed_ms = elapsed.as_millis() as u64, "drained");
        DrainReport { num_cut, elapsed }
    }

    async fn accept_until(&mut self, end: impl Future<Output = ()>) {
        let mut end = pin!(end);
        loop {
            tokio::select! {
                biased;
                () = &mut end => return,
                Some(result) = self.connections.join_next() => {
                    if let Err(error) = result && error.is_panic() {
                        tracing::error!("a connection's task panicked");
                    }
                }
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => self.take(stream, peer),
                    Err(error) => {
                        // Out of file descriptors, most likely; others will be closed soon.
                        tracing::warn!(%error, "accepting a connection failed");
                        sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
    }

    fn take(&mut self, stream: TcpStream, peer: SocketAddr) {
        let is_full = self.connections.len() >= self.limits.max_connections;
        let place = (!is_full).then(|| self.place(peer.ip())).flatten();
        let Some(place) = place else {
            // Whatever the socket takes at once; nobody waits for a peer that is not served.
            let _ = stream.try_write(TOO_MANY_CONNECTIONS);
            return;
        };
        let (router, limits, closing) = (self.router.clone(), self.limits, self.closing.subscribe());
        self.connections.spawn(async move {
            connection::serve(stream, router, limits, closing).await;
            drop(place);
        });
    }

    /// None if the address has as many connections as it may.
    fn place(&self, address: IpAddr) -> Option<AddressPlace> {
        let mut counts = self.per_address.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_insert(0);
        if *count >= self.limits.max_connections_per_address && !address.is_loopback() {
            return None;
        }
        *count += 1;
        Some(AddressPlace { counts: Arc::clone(&self.per_address), address })
    }

    /// Lets answers that are complete leave, and drops everything else.
    async fn close(mut self, close_timeout: Duration) {
        self.closing.send_replace(true);
        let closed = async { while self.connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(close_timeout, closed).await;
        self.connections.shutdown().await;
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_one_too_many_has_the_length_it_says() {
        let text = std::str::from_utf8(TOO_MANY_CONNECTIONS).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        assert_eq!(length, body.len().to_string());
    }
}
