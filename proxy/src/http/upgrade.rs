//! After `101 Switching Protocols` or a `CONNECT`: two sockets and no HTTP any more.
//!
//! In: both sockets with the bytes that the engines had read too far. Out: nothing; the bytes are counted on a
//! connection record of the same edge, and drain lets them run until its deadline, because nobody can ask a WebSocket
//! to finish.

use crate::detect::Prefixed;
use crate::pool::Open;
use crate::record::ConnectionRecord;
use crate::tcp;
use crate::worker::Worker;

/// What a request that switched protocols leaves behind for its connection.
pub(super) struct Switch {
    /// The server's end.
    pub server: Prefixed,
    /// Counts from now on.
    pub record: ConnectionRecord,
    /// Counts as open until the end.
    pub open: Open,
}

/// Copies both ways until both are done.
pub(super) async fn run(worker: &Worker, client: Prefixed, switch: Switch) {
    let Switch { server, record, open } = switch;
    let end = tcp::forward(worker, client, server, record).await;
    drop(open);
    tracing::debug!(?end, "an upgraded connection ended");
}
