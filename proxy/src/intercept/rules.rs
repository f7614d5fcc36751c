//! What is captured, as data: the one model behind both the text and the kernel's messages.
//!
//! In: [`Args`]. Out: a [`Table`], whose `Display` is nft's language. Pure.
//!
//! Invariant: every rule is a list of conditions and one verdict; exclusions come first and return, captures come
//! last. No sets, no jumps: what `nft list table inet weft` shows can be read from top to bottom.
//!
//! The questions that such rules always raise, and the answers here:
//! - *Sidecar → app at the pod's own address or 127.0.0.1.* Goes over `lo` through the output hook as the sidecar's
//!   uid or mark: returned by the first rules. NAT's prerouting is not asked again for a connection that the output
//!   hook has seen, so it cannot come back to the sidecar: no loop.
//! - *App → 127.0.0.1 or the pod's own address.* Leaves through `lo`: not captured, as in other meshes.
//! - *App → its own service's address.* Leaves through another interface: captured; the sidecar may then choose
//!   this very pod, which is the first case.
//! - *Replies, retransmissions, connections from before.* NAT looks at the first packet of a connection only.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use weft_wire::port;

use super::Args;

/// The table's name, in the family `inet`.
pub(super) const TABLE: &str = "weft";

/// A block of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    /// The first address: bits behind the prefix are zero.
    address: IpAddr,
    prefix: u8,
}

/// The text is not a block of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address or a CIDR such as 10.0.0.0/8 or fd00::/8")]
pub struct InvalidCidr(String);

impl Cidr {
    /// The first address of the block.
    pub(super) fn address(self) -> IpAddr {
        self.address
    }

    /// How many leading bits count.
    pub(super) fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether the block is one address.
    pub(super) fn is_host(self) -> bool {
        self.prefix == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// The mask, as long as the address.
    pub(super) fn mask(self) -> Vec<u8> {
        let length = if self.address.is_ipv4() { 4 } else { 16 };
        let bits = |index: usize| usize::from(self.prefix).saturating_sub(index * 8).min(8);
        // `0xff00 >> bits` keeps the leading ones in the low byte.
        (0..length).map(|index| (0xff00_u16 >> bits(index)).to_le_bytes()[0]).collect()
    }
}

impl FromStr for Cidr {
    type Err = InvalidCidr;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidCidr(text.chars().take(60).collect());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| invalid())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.parse().ok().filter(|prefix| *prefix <= longest).ok_or_else(invalid)?,
            None => longest,
        };
        let whole = Self { address, prefix };
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let first: Vec<u8> = octets.iter().zip(whole.mask()).map(|(octet, mask)| octet & mask).collect();
        let address = match first.as_slice() {
            &[a, b, c, d] => IpAddr::from([a, b, c, d]),
            sixteen => IpAddr::from(<[u8; 16]>::try_from(sixteen).map_err(|_| invalid())?),
        };
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_host() { self.address.fmt(f) } else { write!(f, "{}/{}", self.address, self.prefix) }
    }
}

/// One thing that must be true of a connection's first packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Condition {
    /// Not TCP.
    NotTcp,
    /// TCP. A redirect to a port must know the transport.
    Tcp,
    /// IPv6.
    Ipv6,
    /// Arrives through loopback.
    FromLoopback,
    /// Leaves through loopback.
    ToLoopback,
    /// TCP to this port.
    Port(u16),
    /// From this block of addresses.
    Source(Cidr),
    /// To this block of addresses.
    Destination(Cidr),
    /// Made by a process of this uid (as the namespace's owner counts them).
    Uid(u32),
    /// Made by a socket with this mark.
    Mark(u32),
}

/// What happens to a connection that fulfils the conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Left alone.
    Return,
    /// Counted and handed to this port of the pod.
    Redirect(u16),
}

/// One line of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) verdict: Verdict,
}

/// Where a chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    /// Connections from outside.
    Prerouting,
    /// Connections that processes of the namespace open.
    Output,
}

/// One chain of type `nat`, accepting by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) hook: Hook,
    pub(super) rules: Vec<Rule>,
}

/// Destination NAT's usual place in the order of hooks.
pub(super) const PRIORITY: i32 = -100;

/// The whole table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) chains: [Chain; 2],
}

impl Table {
    pub(super) fn new(args: &Args) -> Self {
        Self { chains: [inbound(args), outbound(args)] }
    }

    /// How many rules there are.
    pub(super) fn rules(&self) -> usize {
        self.chains.iter().map(|chain| chain.rules.len()).sum()
    }

    /// What the table says of itself: who made it and a digest of its rules.
    pub(super) fn comment(&self) -> String {
        let text: String = self.chains.iter().map(Chain::to_string).collect();
        format!("weft-proxy intercept {:016x}", fnv1a(text.as_bytes()))
    }
}

/// The ports that belong to the sidecar itself, sorted.
fn own_ports(args: &Args) -> Vec<u16> {
    let mut ports = vec![args.inbound_port, args.outbound_port, port::METRICS, port::ADMIN];
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn inbound(args: &Args) -> Chain {
    let mut rules = vec![unless(Condition::NotTcp)];
    if args.no_ipv6 {
        rules.push(unless(Condition::Ipv6));
    }
    rules.push(unless(Condition::FromLoopback));
    rules.extend(own_ports(args).into_iter().map(Condition::Port).map(unless));
    rules.extend(unique(&args.exclude_inbound_port).map(Condition::Port).map(unless));
    rules.extend(unique(&args.exclude_inbound_cidr).map(Condition::Source).map(unless));
    let only: Vec<_> = unique(&args.include_inbound_port).map(Condition::Port).collect();
    rules.extend(capture(only, args.inbound_port));
    Chain { name: "inbound", hook: Hook::Prerouting, rules }
}

fn outbound(args: &Args) -> Chain {
    let mut rules = vec![unless(Condition::NotTcp)];
    if args.no_ipv6 {
        rules.push(unless(Condition::Ipv6));
    }
    let uids = [args.proxy_uid].into_iter().chain(args.exclude_uid.iter().copied()).collect::<Vec<_>>();
    rules.extend(unique(&uids).map(Condition::Uid).map(unless));
    rules.extend(unique(&args.exclude_mark).map(Condition::Mark).map(unless));
    rules.push(unless(Condition::ToLoopback));
    rules.extend(own_ports(args).into_iter().map(Condition::Port).map(unless));
    rules.extend(unique(&args.exclude_outbound_port).map(Condition::Port).map(unless));
    rules.extend(unique(&args.exclude_cidr).map(Condition::Destination).map(unless));
    let ports = unique(&args.include_outbound_port).map(Condition::Port);
    let only: Vec<_> = ports.chain(unique(&args.include_cidr).map(Condition::Destination)).collect();
    rules.extend(capture(only, args.outbound_port));
    Chain { name: "outbound", hook: Hook::Output, rules }
}

fn unless(condition: Condition) -> Rule {
    Rule { conditions: vec![condition], verdict: Verdict::Return }
}

/// Everything, or whatever meets one of the conditions.
fn capture(only: Vec<Condition>, port: u16) -> Vec<Rule> {
    let verdict = Verdict::Redirect(port);
    if only.is_empty() {
        return vec![Rule { conditions: vec![Condition::Tcp], verdict }];
    }
    let conditions = |condition| match condition {
        // Says TCP by itself; nft, too, would leave out the repetition.
        Condition::Port(_) => vec![condition],
        _ => vec![Condition::Tcp, condition],
    };
    only.into_iter().map(|condition| Rule { conditions: conditions(condition), verdict }).collect()
}

/// Each value once, sorted, so that equal intentions have equal digests.
fn unique<T: Copy + Ord>(values: &[T]) -> impl Iterator<Item = T> + use<T> {
    values.iter().copied().collect::<std::collections::BTreeSet<_>>().into_iter()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE} {{")?;
        writeln!(f, "\tcomment \"{}\"", self.comment())?;
        for chain in &self.chains {
            write!(f, "\n{chain}")?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Output => "output",
        };
        writeln!(f, "\tchain {} {{", self.name)?;
        writeln!(f, "\t\ttype nat hook {hook} priority {PRIORITY}; policy accept;")?;
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.conditions {
            write!(f, "{condition} ")?;
        }
        match self.verdict {
            Verdict::Return => write!(f, "return"),
            Verdict::Redirect(port) => write!(f, "counter redirect to :{port}"),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTcp => write!(f, "meta l4proto != tcp"),
            Self::Tcp => write!(f, "meta l4proto tcp"),
            Self::Ipv6 => write!(f, "meta nfproto ipv6"),
            Self::FromLoopback => write!(f, "iifname \"lo\""),
            Self::ToLoopback => write!(f, "oifname \"lo\""),
            Self::Port(port) => write!(f, "tcp dport {port}"),
            Self::Source(cidr) if cidr.address.is_ipv4() => write!(f, "ip saddr {cidr}"),
            Self::Source(cidr) => write!(f, "ip6 saddr {cidr}"),
            Self::Destination(cidr) if cidr.address.is_ipv4() => write!(f, "ip daddr {cidr}"),
            Self::Destination(cidr) => write!(f, "ip6 daddr {cidr}"),
            Self::Uid(uid) => write!(f, "meta skuid {uid}"),
            Self::Mark(mark) => write!(f, "meta mark {mark:#010x}"),
        }
    }
}

/// FNV-1a, 64 bits: a digest that never changes with the standard library. Not against an adversary: who can write
/// the table can write the comment.
fn fnv1a(bytes: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    pub(in super::super) fn table(line: &str) -> Table {
        let words = std::iter::once("intercept").chain(line.split_whitespace());
        Table::new(&Line::try_parse_from(words).expect("valid arguments").args)
    }

    #[test]
    fn the_default_table_reads_from_top_to_bottom() {
        let table = table("");
        let comment = table.comment();
        assert_eq!(
            table.to_string(),
            format!(
                "table inet weft {{
	comment \"{comment}\"

	chain inbound {{
		type nat hook prerouting priority -100; policy accept;
		meta l4proto != tcp return
		iifname \"lo\" return
		tcp dport 15000 return
		tcp dport 15001 return
		tcp dport 15006 return
		tcp dport 15020 return
		meta l4proto tcp counter redirect to :15006
	}}

	chain outbound {{
		type nat hook output priority -100; policy accept;
		meta l4proto != tcp return
		meta skuid 2102 return
		oifname \"lo\" return
		tcp dport 15000 return
		tcp dport 15001 return
		tcp dport 15006 return
		tcp dport 15020 return
		meta l4proto tcp counter redirect to :15001
	}}
}}
"
            )
        );
    }

    #[test]
    fn the_sidecar_is_excluded_before_anything_else_of_tcp() {
        let table = table("--exclude-mark 0x2102 --exclude-uid 0,7 --no-ipv6 --exclude-cidr 10.1.2.3/8");
        let outbound = table.chains[1].to_string();
        let order = [
            "meta nfproto ipv6",
            "skuid 0 ",
            "skuid 7 ",
            "skuid 2102",
            "mark 0x00002102",
            "oifname",
            "10.0.0.0/8",
        ];
        let positions: Vec<_> = order.iter().map(|text| outbound.find(text).expect(text)).collect();
        assert!(positions.is_sorted(), "{outbound}");
    }

    #[test]
    fn includes_replace_the_catch_all() {
        let text =
            table("--include-outbound-port 80,443 --include-cidr fd00::/8 --include-inbound-port 8080")
                .to_string();
        for line in [
            "tcp dport 80 counter redirect to :15001",
            "tcp dport 443 counter redirect to :15001",
            "meta l4proto tcp ip6 daddr fd00::/8 counter redirect to :15001",
            "tcp dport 8080 counter redirect to :15006",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        assert!(!text.contains("meta l4proto tcp counter"), "no catch-all is left: {text}");
    }

    #[test]
    fn the_order_and_repetition_of_arguments_do_not_matter() {
        let one = table("--exclude-outbound-port 25 --exclude-outbound-port 5432");
        let two = table("--exclude-outbound-port 5432,25,25");
        assert_eq!(one.comment(), two.comment());
        assert_ne!(one.comment(), table("").comment());
    }

    #[test]
    fn a_block_of_addresses_starts_at_its_first() {
        for (text, shown) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3"),
            ("10.1.2.255/25", "10.1.2.128/25"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00:1::5/16", "fd00::/16"),
            ("::1", "::1"),
        ] {
            assert_eq!(text.parse::<Cidr>().map(|cidr| cidr.to_string()), Ok(shown.into()));
        }
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "a/8", "10.0.0.0/-1", "10.0.0.0/"] {
            assert!(text.parse::<Cidr>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn mark_zero_would_exclude_everything_and_is_refused() {
        assert!(super::super::parse_mark("0").is_err());
        assert_eq!(super::super::parse_mark("0x2102"), Ok(0x2102));
    }
}
