//! The socket to the kernel's packet filter.
//!
//! In: a [`Table`]. Out: what was done, or which step the kernel refused and what that usually means.
//! Invariant: one `send` per transaction, one deadline per answer.
//! Surprise: the kernel answers errors of any message of a transaction, but applies all of it or nothing.

use std::io::{self, Read as _};
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

use super::Error;
use super::netlink::{Batch, HEADER, Step, comment_data};
use super::rules::Table;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The table was made or replaced.
    Programmed,
    /// An identical table was there and was left alone, counters included.
    Unchanged,
    /// The table was removed.
    Removed,
    /// There was no table to remove.
    Absent,
}

/// `AF_NETLINK`, `NETLINK_NETFILTER`: see netlink(7).
const AF_NETLINK: i32 = 16;
const NETLINK_NETFILTER: i32 = 12;
/// `NLMSG_ERROR` (also the acknowledgement, with code 0) and `NLMSG_DONE`.
const MESSAGE_ERROR: u16 = 2;
const MESSAGE_DONE: u16 = 3;
/// The kernel answers at once, except when it first loads a module from a slow disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// More than the kernel ever puts in one datagram of a dump (32 KiB).
const DATAGRAM_MAX: usize = 64 * 1024;

/// Puts the table in place unless it is already.
pub(super) fn program(table: &Table) -> Result<Outcome, Error> {
    let socket = open()?;
    if in_place(&socket, table)? {
        return Ok(Outcome::Unchanged);
    }
    match exchange(&socket, &Batch::program(table), |_, _| ())? {
        Ok(()) => Ok(Outcome::Programmed),
        Err(refusal) => Err(refusal.explain("program the rules")),
    }
}

/// Removes the table if there is one.
pub(super) fn clean() -> Result<Outcome, Error> {
    let socket = open()?;
    match exchange(&socket, &Batch::clean(), |_, _| ())? {
        Ok(()) => Ok(Outcome::Removed),
        Err(Refusal { errno: Errno::ENOENT, .. }) => Ok(Outcome::Absent),
        Err(refusal) => Err(refusal.explain("remove the rules")),
    }
}

/// Whether a table with the same digest and as many rules is there.
fn in_place(socket: &Socket, table: &Table) -> Result<bool, Error> {
    let data = comment_data(&table.comment());
    let mut same = false;
    let digest = exchange(socket, &Batch::get_table(), |_, payload| {
        same |= payload.windows(data.len()).any(|window| window == data);
    })?;
    match digest {
        Ok(()) if same => {}
        Ok(()) | Err(Refusal { errno: Errno::ENOENT, .. }) => return Ok(false),
        Err(refusal) => return Err(refusal.explain("read the rules")),
    }
    let mut rules = 0;
    let counted = exchange(socket, &Batch::dump_rules(), |_, _| rules += 1)?;
    // A dump that was interrupted by a change is as good as a difference: program anew.
    Ok(counted.is_ok() && rules == table.rules())
}

fn open() -> Result<Socket, Error> {
    let socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(NETLINK_NETFILTER.into()));
    let socket = socket.map_err(|source| match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT) => Error::Unsupported {
            step: "filter packets",
            hint: "it has no netfilter netlink (CONFIG_NETFILTER_NETLINK)",
            source,
        },
        _ => Error::Socket { source },
    })?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(|source| Error::Socket { source })?;
    Ok(socket)
}

/// The kernel's no.
#[derive(Debug)]
struct Refusal {
    step: Option<Step>,
    errno: Errno,
}

impl Refusal {
    fn explain(self, task: &'static str) -> Error {
        let source = io::Error::from(self.errno);
        let step = match self.step {
            None | Some(Step::Begin | Step::End) => task,
            Some(Step::Table) => "make the table inet weft",
            Some(Step::Chain) => "make a NAT chain in table inet weft",
            Some(Step::Rule) => "make a redirect rule in table inet weft",
        };
        match (self.errno, self.step) {
            (Errno::EPERM | Errno::EACCES, _) => Error::NotPermitted { step },
            (Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT, _) => {
                let hint =
                    "it has no nf_tables for the inet family (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)";
                Error::Unsupported { step, hint, source }
            }
            (Errno::ENOENT, Some(Step::Chain)) => {
                Error::Unsupported { step, hint: "it has no NAT for nf_tables (CONFIG_NFT_NAT)", source }
            }
            (Errno::ENOENT, Some(Step::Rule)) => Error::Unsupported {
                step,
                hint: "it has no redirect for nf_tables (CONFIG_NFT_REDIR)",
                source,
            },
            _ => Error::Refused { step, source },
        }
    }
}

/// Sends a batch and reads until its last answer; `each` sees the type and payload of data messages.
fn exchange(
    socket: &Socket,
    batch: &Batch,
    mut each: impl FnMut(u16, &[u8]),
) -> Result<Result<(), Refusal>, Error> {
    let broken = |source| Error::Socket { source };
    socket.send(&batch.bytes).map_err(broken)?;
    let mut datagram = vec![0; DATAGRAM_MAX];
    loop {
        let length = (&*socket).read(&mut datagram).map_err(broken)?;
        let mut rest = &datagram[..length];
        while let Some((message, behind)) = split_message(rest) {
            rest = behind;
            match message.kind {
                MESSAGE_DONE => return Ok(Ok(())),
                MESSAGE_ERROR => return Ok(message.refusal(batch).map_or(Ok(()), Err)),
                kind => each(kind, message.payload),
            }
        }
        if length == 0 {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Message<'_> {
    /// What an error message says; `None` is an acknowledgement.
    fn refusal(&self, batch: &Batch) -> Option<Refusal> {
        let code =
            self.payload.first_chunk().map_or(-(Errno::EBADMSG as i32), |code| i32::from_ne_bytes(*code));
        let step = usize::try_from(self.sequence).ok().and_then(|index| batch.steps.get(index)).copied();
        (code != 0).then(|| Refusal { step, errno: Errno::from_raw(code.wrapping_neg()) })
    }
}

/// Takes one netlink message off the front; `None` at the end or at nonsense.
fn split_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let header = bytes.first_chunk::<HEADER>()?;
    let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
    let length = usize::try_from(u32::from_ne_bytes(word(0))).ok()?;
    let payload = bytes.get(HEADER..length)?;
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let sequence = u32::from_ne_bytes(word(8));
    let behind = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((Message { kind, sequence, payload }, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_name_the_remedy() {
        let explain = |errno, step| Refusal { errno, step }.explain("program the rules").to_string();
        assert!(explain(Errno::EPERM, Some(Step::Begin)).contains("CAP_NET_ADMIN"));
        assert!(explain(Errno::EOPNOTSUPP, Some(Step::Begin)).contains("CONFIG_NF_TABLES"));
        assert!(explain(Errno::ENOENT, Some(Step::Chain)).contains("CONFIG_NFT_NAT"));
        assert!(explain(Errno::ENOENT, Some(Step::Rule)).contains("CONFIG_NFT_REDIR"));
    }

    #[test]
    fn nonsense_from_the_socket_is_not_a_message() {
        for bytes in [&[][..], &[1; 15], &[0; 16], &[0xff; 64]] {
            assert!(split_message(bytes).is_none(), "{bytes:?}");
        }
        let mut message = 20_u32.to_ne_bytes().to_vec();
        message.extend([2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        message.extend((-1_i32).to_ne_bytes());
        let (message, rest) = split_message(&message).expect("one message");
        assert!(rest.is_empty());
        let refusal = message.refusal(&Batch::default()).expect("an error");
        assert_eq!((refusal.errno, refusal.step), (Errno::EPERM, None));
    }
}
