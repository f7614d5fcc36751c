//! The TLS side of one connection: bytes in, bytes out, no socket.
//!
//! In: ciphertext as it comes, plaintext to send. Out: plaintext, ciphertext. rustls is used by its unbuffered interface, so
//! that a connection on which nothing moves holds no buffer: whoever reads brings a worker's shared one, and only what
//! could not be used up at once is kept here. Invariants: what rustls has to say by itself (alerts, tickets, key updates)
//! goes out before anything that is written later; `incoming` begins where rustls left off, because it remembers positions
//! in it. Surprise: reading can make something to be written. Non-goal: waiting.

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::CertificateDer;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};
use rustls::{CommonState, Error, HandshakeKind};

/// Plaintext of one record (RFC 8446 §5.1).
pub(super) const RECORD_MAX: usize = 16 * 1024;

/// What a record may be longer than its plaintext (RFC 8446 §5.2), its header included.
pub(super) const OVERHEAD_MAX: usize = 256 + 5;

/// Ciphertext kept at most: a record that is not all there, and what is left when a reader has no more room. Handshakes
/// with long chains fit as well.
pub(super) const INCOMING_MAX: usize = 64 * 1024;

/// Room for what rustls says by itself: four tickets, an alert, a flight of a handshake comes in pieces of one record.
const OWN_MAX: usize = RECORD_MAX + OVERHEAD_MAX;

/// Either side of a connection.
pub(super) enum Connection {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// See the module.
pub(super) struct Session {
    connection: Connection,
    /// Ciphertext that is not used up.
    incoming: Vec<u8>,
    /// Decrypted and not yet read.
    plain: Vec<u8>,
    /// How much of `plain` has been read.
    read: usize,
    /// Ciphertext that the socket has not taken yet.
    pub(super) outgoing: Vec<u8>,
    /// The other side has said that nothing more comes.
    ended: bool,
    /// We have.
    closed: bool,
    /// `incoming` may hold whole records, because nobody had room for more.
    full: bool,
}

/// What rustls wants next.
enum Step {
    /// Call it again.
    Again,
    /// Bytes of the other side.
    Wait,
}

impl Session {
    pub(super) fn client(connection: UnbufferedClientConnection) -> Self {
        Self::new(Connection::Client(Box::new(connection)))
    }

    pub(super) fn server(connection: UnbufferedServerConnection) -> Self {
        Self::new(Connection::Server(Box::new(connection)))
    }

    fn new(connection: Connection) -> Self {
        Self {
            connection,
            incoming: Vec::new(),
            plain: Vec::new(),
            read: 0,
            outgoing: Vec::new(),
            ended: false,
            closed: false,
            full: false,
        }
    }

    fn state(&self) -> &CommonState {
        match &self.connection {
            Connection::Client(connection) => connection,
            Connection::Server(connection) => connection,
        }
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.state().is_handshaking()
    }

    pub(super) fn is_client(&self) -> bool {
        matches!(self.connection, Connection::Client(_))
    }

    /// Ciphertext that is kept.
    pub(super) fn kept(&self) -> usize {
        self.incoming.len()
    }

    pub(super) fn is_resumed(&self) -> bool {
        self.state().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub(super) fn alpn(&self) -> Option<&[u8]> {
        self.state().alpn_protocol()
    }

    pub(super) fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.state().peer_certificates()?.first()
    }

    /// Whether [`read`](Self::read) has something without more ciphertext: bytes, or perhaps whole records, or the end.
    pub(super) fn is_readable(&self) -> bool {
        self.read < self.plain.len() || self.full || self.ended
    }

    /// Whether decrypted bytes, or the end, are waiting.
    pub(super) fn has_spoken(&self) -> bool {
        self.read < self.plain.len() || self.ended
    }

    /// Whether decrypted bytes are waiting.
    pub(super) fn has_plain(&self) -> bool {
        self.read < self.plain.len()
    }

    /// Whether the other side has said that nothing more comes, and all before has been read.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.read == self.plain.len()
    }

    /// Puts what is kept here in front of what is about to come; says how much it is.
    pub(super) fn resume(&mut self, buffer: &mut [u8]) -> usize {
        let kept = std::mem::take(&mut self.incoming);
        self.full = false;
        buffer[..kept.len()].copy_from_slice(&kept);
        kept.len()
    }

    /// Keeps what was not used up.
    pub(super) fn keep(&mut self, rest: &[u8]) {
        self.incoming.extend_from_slice(rest);
    }

    /// Bytes that were decrypted before, as far as `out` takes them.
    pub(super) fn take_plain(&mut self, out: &mut impl FnMut(&[u8]) -> usize) -> usize {
        let taken = out(&self.plain[self.read..]);
        self.read += taken;
        if self.read == self.plain.len() {
            (self.plain, self.read) = (Vec::new(), 0);
        }
        taken
    }

    /// Uses up whole records at the front of `bytes` until `out` takes no more. Says how many bytes are used up, and how many
    /// `out` has taken.
    ///
    /// # Errors
    /// When the other side does not keep to the protocol; what to tell it is in `outgoing` then.
    pub(super) fn decrypt(
        &mut self,
        bytes: &mut [u8],
        out: &mut impl FnMut(&[u8]) -> usize,
    ) -> Result<(usize, usize), Error> {
        let (mut used, mut taken) = (0, 0);
        let Self { connection, plain, outgoing, ended, full, .. } = self;
        let mut spill = |record: &[u8]| {
            let count = out(record);
            taken += count;
            if count < record.len() {
                plain.extend_from_slice(&record[count..]);
            }
            count == record.len()
        };
        loop {
            let mut room = true;
            let mut see = |record: &[u8]| room &= spill(record);
            let rest = &mut bytes[used..];
            let (discard, step) = match &mut *connection {
                Connection::Client(it) => handle(it.process_tls_records(rest), &mut see, outgoing, ended),
                Connection::Server(it) => handle(it.process_tls_records(rest), &mut see, outgoing, ended),
            };
            used += discard;
            match step {
                Ok(Step::Again) if room => {}
                Ok(Step::Again) => {
                    *full = used < bytes.len();
                    return Ok((used, taken));
                }
                Ok(Step::Wait) => return Ok((used, taken)),
                Err(error) => {
                    self.last_words(&mut bytes[used..]);
                    return Err(error);
                }
            }
        }
    }

    /// What rustls wants to tell the other side about an error. `rest` begins where it left off.
    fn last_words(&mut self, rest: &mut [u8]) {
        let Self { connection, outgoing, ended, .. } = self;
        let see = &mut |_: &[u8]| {};
        // Nothing more can go wrong.
        drop(match connection {
            Connection::Client(it) => handle(it.process_tls_records(rest), see, outgoing, ended),
            Connection::Server(it) => handle(it.process_tls_records(rest), see, outgoing, ended),
        });
    }

    /// Moves a handshake on with `incoming`. Says whether it is over.
    ///
    /// # Errors
    /// As [`decrypt`](Self::decrypt).
    pub(super) fn shake(&mut self, bytes: &[u8]) -> Result<bool, Error> {
        let mut incoming = std::mem::take(&mut self.incoming);
        incoming.extend_from_slice(bytes);
        let result = self.decrypt(&mut incoming, &mut |_| 0);
        if let Ok((used, _)) = result {
            incoming.drain(..used);
            self.incoming = incoming;
        }
        result.map(|_| !self.is_handshaking())
    }

    /// Moves what is to go out into `out`, and behind it `plain` as records. `out` must have room for
    /// [`sealed_len`](Self::sealed_len). Says how many bytes of `out` are filled.
    ///
    /// # Errors
    /// When nothing can be sent any more.
    pub(super) fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        self.put(Put::Data(plain), out)
    }

    /// Room for [`encrypt`](Self::encrypt).
    pub(super) fn sealed_len(&self, plain: usize) -> usize {
        self.outgoing.len() + OWN_MAX + plain + plain.div_ceil(RECORD_MAX) * OVERHEAD_MAX
    }

    /// Says that nothing more comes from here, once.
    ///
    /// # Errors
    /// As [`encrypt`](Self::encrypt).
    pub(super) fn close(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.closed, true) {
            return Ok(());
        }
        let mut out = vec![0; self.sealed_len(0)];
        let count = self.put(Put::End, &mut out)?;
        out.truncate(count);
        self.outgoing = out;
        Ok(())
    }

    /// Gets to where application data can be written. Needs `incoming`, where rustls may remember a message that is not all
    /// there; what is found in it is kept as plaintext.
    fn put(&mut self, what: Put<'_>, out: &mut [u8]) -> Result<usize, Error> {
        let Self { connection, incoming, plain, outgoing, ended, full, .. } = self;
        let mut see = |record: &[u8]| plain.extend_from_slice(record);
        loop {
            let (discard, step) = match connection {
                Connection::Client(it) => match it.process_tls_records(incoming) {
                    UnbufferedStatus { state: Ok(ConnectionState::WriteTraffic(traffic)), discard: 0 } => {
                        return seal(traffic, what, outgoing, out);
                    }
                    status => handle(status, &mut see, outgoing, ended),
                },
                Connection::Server(it) => match it.process_tls_records(incoming) {
                    UnbufferedStatus { state: Ok(ConnectionState::WriteTraffic(traffic)), discard: 0 } => {
                        return seal(traffic, what, outgoing, out);
                    }
                    status => handle(status, &mut see, outgoing, ended),
                },
            };
            incoming.drain(..discard);
            *full &= !incoming.is_empty();
            match step? {
                Step::Wait if discard == 0 => return Err(Error::HandshakeNotComplete),
                Step::Wait | Step::Again => {}
            }
        }
    }
}

/// What is written.
enum Put<'a> {
    Data(&'a [u8]),
    End,
}

fn seal<D>(
    mut traffic: WriteTraffic<'_, D>,
    what: Put<'_>,
    outgoing: &mut Vec<u8>,
    out: &mut [u8],
) -> Result<usize, Error> {
    let before = outgoing.len();
    let Some((first, room)) = out.split_at_mut_checked(before) else { return Err(no_room()) };
    first.copy_from_slice(outgoing);
    *outgoing = Vec::new();
    let sealed = match what {
        Put::Data(plain) => traffic.encrypt(plain, room),
        Put::End => traffic.queue_close_notify(room),
    };
    match sealed {
        Ok(count) => Ok(before + count),
        Err(EncryptError::EncryptExhausted) => Err(Error::EncryptError),
        Err(EncryptError::InsufficientSize(_)) => Err(no_room()),
    }
}

/// Not reached: what is asked for fits.
fn no_room() -> Error {
    Error::General("no room for a record".into())
}

/// Does what rustls asks for, except writing. Says how many bytes it is done with.
fn handle<D>(
    status: UnbufferedStatus<'_, '_, D>,
    see: &mut impl FnMut(&[u8]),
    outgoing: &mut Vec<u8>,
    ended: &mut bool,
) -> (usize, Result<Step, Error>) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Err(error) => Err(error),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                Some(Ok(record)) => {
                    discard += record.discard;
                    see(record.payload);
                }
                Some(Err(error)) => break Err(error),
                None => break Ok(Step::Again),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut message)) => {
            let at = outgoing.len();
            if let Err(EncodeError::InsufficientSize(wanted)) = message.encode(&mut []) {
                outgoing.resize(at + wanted.required_size, 0);
                // Has the room that it asked for.
                drop(message.encode(&mut outgoing[at..]));
            }
            Ok(Step::Again)
        }
        // It is in `outgoing`, which goes out in order.
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            transmit.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::PeerClosed) => {
            *ended = true;
            Ok(Step::Again)
        }
        Ok(ConnectionState::Closed) => {
            *ended = true;
            Ok(Step::Wait)
        }
        Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => Ok(Step::Wait),
        // Early data is neither asked for nor accepted.
        Ok(_) => Err(Error::General("unexpected state".into())),
    };
    (discard, step)
}
