//! `weft-proxy intercept`: makes the kernel hand a pod's TCP connections to its sidecar.
//!
//! In: [`Args`]. Out: one nftables table, `inet weft`, in the network namespace of the calling process; or its
//! text. Runs once, as the pod's init container, or from whatever else builds a namespace.
//!
//! - [`rules`]: what is captured and what is not, as plain data, and its text in nft's language.
//! - [`netlink`]: the same data as the kernel's messages.
//! - [`kernel`]: the socket.
//!
//! Invariant: the table is replaced in one transaction, so there is never a moment with half the rules; and it is
//! the only thing that is ever touched.
//! Surprise: running it twice changes nothing, counters included: a digest of the rules stands in the table's
//! comment, and a table that bears it and has the right number of rules is left alone.
//! Non-goal: UDP (DNS is the app's own business) and rules outside of the table.

mod kernel;
mod netlink;
mod rules;

use std::io::Write as _;

use weft_wire::port;

pub use kernel::Outcome;
pub use rules::{Cidr, InvalidCidr};

/// Redirects the pod's TCP connections to the sidecar (nftables, current network namespace).
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where inbound connections are sent.
    #[arg(long, value_name = "PORT", default_value_t = port::INBOUND)]
    pub inbound_port: u16,
    /// Where outbound connections are sent.
    #[arg(long, value_name = "PORT", default_value_t = port::OUTBOUND)]
    pub outbound_port: u16,
    /// The uid the sidecar runs as: its own connections are left alone.
    #[arg(long, value_name = "UID", default_value_t = port::PROXY_UID)]
    pub proxy_uid: u32,
    /// Leave connections of this uid alone; may be repeated.
    #[arg(long, value_name = "UID", value_delimiter = ',')]
    pub exclude_uid: Vec<u32>,
    /// Leave connections with this socket mark alone (decimal or 0x…): for namespaces where the sidecar cannot
    /// have a uid of its own.
    #[arg(long, value_name = "MARK", value_delimiter = ',', value_parser = parse_mark)]
    pub exclude_mark: Vec<u32>,
    /// Leave connections to this port of the pod alone; may be repeated.
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub exclude_inbound_port: Vec<u16>,
    /// Leave connections to this port of anyone alone; may be repeated.
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub exclude_outbound_port: Vec<u16>,
    /// Leave connections to these addresses alone; may be repeated.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub exclude_cidr: Vec<Cidr>,
    /// Leave connections of these callers to the pod alone; may be repeated.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub exclude_inbound_cidr: Vec<Cidr>,
    /// Capture only these ports of the pod (default: all); may be repeated.
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub include_inbound_port: Vec<u16>,
    /// Capture only connections to these ports, or to --include-cidr (default: all); may be repeated.
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub include_outbound_port: Vec<u16>,
    /// Capture only connections to these addresses, or to --include-outbound-port (default: all).
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub include_cidr: Vec<Cidr>,
    /// Leave IPv6 alone.
    #[arg(long)]
    pub no_ipv6: bool,
    /// Print the rules in nft's language and change nothing.
    #[arg(long, conflicts_with = "clean")]
    pub dry_run: bool,
    /// Remove what an earlier run made, and nothing else.
    #[arg(long)]
    pub clean: bool,
}

const EXAMPLES: &str = "\
Examples:
  weft-proxy intercept                                   capture everything, as the init container does
  weft-proxy intercept --exclude-outbound-port 5432      … but talk to Postgres directly
  weft-proxy intercept --exclude-cidr 169.254.169.254/32 … and to the cloud's metadata service
  weft-proxy intercept --dry-run | nft -c -f -           show and check the rules
  weft-proxy intercept --clean                           undo";

/// Most values of all lists together. A rule takes about 400 bytes and the whole transaction is one message, which
/// must fit in the socket's send buffer (at least 200 KiB).
const VALUES_MAX: usize = 400;

/// Why the rules are not in place.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More lists entries than one transaction holds.
    #[error("{count} ports, uids, marks and CIDRs were given; at most {VALUES_MAX} are possible")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// Two ports that must differ are the same.
    #[error("inbound and outbound connections cannot both be sent to port {port}")]
    SamePort {
        /// The port.
        port: u16,
    },
    /// The process may not change the network namespace.
    #[error(
        "not allowed to {step}: CAP_NET_ADMIN is needed in this network namespace (in Kubernetes: securityContext.capabilities.add: [NET_ADMIN])"
    )]
    NotPermitted {
        /// What was being done.
        step: &'static str,
    },
    /// The kernel has no nf_tables, no NAT for it or no redirect.
    #[error("this kernel cannot {step}: {hint}")]
    Unsupported {
        /// What was being done.
        step: &'static str,
        /// What the kernel lacks.
        hint: &'static str,
        /// What it answered.
        source: std::io::Error,
    },
    /// The kernel refused for another cause.
    #[error("the kernel refused to {step}")]
    Refused {
        /// What was being done.
        step: &'static str,
        /// What it answered.
        source: std::io::Error,
    },
    /// The socket to the kernel failed.
    #[error("could not talk netlink to the kernel")]
    Socket {
        /// The cause.
        source: std::io::Error,
    },
    /// The rules could not be printed.
    #[error("could not print the rules")]
    Print {
        /// The cause.
        source: std::io::Error,
    },
}

/// Does what the arguments ask for and says so in one line on stdout.
///
/// # Errors
/// When the arguments contradict each other or the kernel refuses.
pub fn run(args: &Args) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    if args.clean {
        let outcome = kernel::clean()?;
        return say(&mut out, outcome);
    }
    let table = table(args)?;
    if args.dry_run {
        return write!(out, "{table}").map_err(|source| Error::Print { source });
    }
    say(&mut out, kernel::program(&table)?)
}

fn table(args: &Args) -> Result<rules::Table, Error> {
    if args.inbound_port == args.outbound_port {
        return Err(Error::SamePort { port: args.inbound_port });
    }
    let count = args.exclude_uid.len()
        + args.exclude_mark.len()
        + args.exclude_inbound_port.len()
        + args.exclude_outbound_port.len()
        + args.exclude_cidr.len()
        + args.exclude_inbound_cidr.len()
        + args.include_inbound_port.len()
        + args.include_outbound_port.len()
        + args.include_cidr.len();
    if count > VALUES_MAX {
        return Err(Error::TooMany { count });
    }
    Ok(rules::Table::new(args))
}

fn say(out: &mut impl std::io::Write, outcome: Outcome) -> Result<(), Error> {
    let line = match outcome {
        Outcome::Programmed => "table inet weft is in place",
        Outcome::Unchanged => "table inet weft is already in place",
        Outcome::Removed => "table inet weft is removed",
        Outcome::Absent => "there is no table inet weft",
    };
    writeln!(out, "{line}").map_err(|source| Error::Print { source })
}

fn parse_mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16),
        None => text.parse(),
    };
    match parsed {
        Ok(0) => Err("every unmarked connection has mark 0".into()),
        Ok(mark) => Ok(mark),
        Err(error) => Err(error.to_string()),
    }
}
