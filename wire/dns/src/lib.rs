//! What addresses a name has, asked without the C library: a static program must not depend on the plug-ins that
//! `getaddrinfo` may load, nor hold a thread while a name server is silent.
//!
//! In: a name. Out: its addresses, IPv4 first, as `/etc/hosts` says, else as the name servers, search domains and options in
//! `/etc/resolv.conf` do. Both files are read for every question: that takes some 20 µs, less than any answer, so a file that
//! changes counts at once, nothing is shared between threads, and there is nothing to keep fresh. Invariant: the name as asked
//! or with one search domain has all the answers; they are never mixed. Surprise: hickory's own search is not used, because it
//! goes on for IPv6 addresses after it has found IPv4 ones, and looks into `/etc/hosts` for the first candidate only.
//! Non-goals: a cache (name servers of clusters have one and are near), a deadline (callers have theirs).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use hickory_resolver::config::{
    LookupIpStrategy, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use tokio::net::TcpStream;

/// Addresses of one name that are of use, at most: who calls tries them in turn.
const ADDRESSES_MAX: usize = 8;

/// Search domains that are tried, at most; as many as Kubernetes lets a pod have.
const SEARCH_MAX: usize = 32;

/// Where name servers listen.
const PORT: u16 = 53;

/// What `resolv.conf(5)` says is meant when there is no such file, or no name server in it.
const NO_SERVERS: &str = "nameserver 127.0.0.1";

/// The addresses of `host`, at most eight, never none: IPv4 first, because a pod without an IPv6 route is common and one
/// without IPv4 rare. An address is its own name.
///
/// Takes as long as the name servers' time-outs add up to; give it a deadline. Cancel safe.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when the name has none; else why nobody could say.
pub async fn lookup(host: &str) -> io::Result<Vec<IpAddr>> {
    Files { hosts: Path::new("/etc/hosts"), servers: Path::new("/etc/resolv.conf"), port: PORT }
        .lookup(host)
        .await
}

/// A connection to the first of a name's addresses that accepts. Has no deadline. Cancel safe.
///
/// # Errors
/// As [`lookup`]; else what the last address said.
pub async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failed = none(host);
    for ip in lookup(host).await? {
        match TcpStream::connect(SocketAddr::new(ip, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Whom to ask.
#[derive(Debug, Clone, Copy)]
struct Files<'a> {
    hosts: &'a Path,
    servers: &'a Path,
    port: u16,
}

impl Files<'_> {
    async fn lookup(self, host: &str) -> io::Result<Vec<IpAddr>> {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(ip) = bare.parse() {
            return Ok(vec![ip]);
        }
        let name = Name::from_str_relaxed(host)
            .ok()
            .filter(|name| name.num_labels() > 0)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{host:?} is not a name")))?;
        let listed = self.listed(&name);
        if !listed.is_empty() {
            return Ok(ordered(listed));
        }
        let (mut config, options) = self.servers()?;
        let search = std::mem::take(&mut config.search);
        let candidates = candidates(&name, search, config.domain.take(), options.ndots);
        let resolver = resolver(config, options)?;
        let mut failed = None;
        for candidate in candidates {
            match resolver.lookup_ip(candidate).await {
                Ok(found) if found.iter().next().is_some() => return Ok(ordered(found.iter().collect())),
                Ok(_) => {}
                Err(error) if error.is_no_records_found() => {}
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.map_or_else(|| none(host), |error| unanswered(host, &error)))
    }

    /// What `/etc/hosts` says; where it cannot be read, nothing.
    fn listed(self, name: &Name) -> Vec<IpAddr> {
        let mut hosts = Hosts::default();
        let read = std::fs::File::open(self.hosts).and_then(|file| hosts.read_hosts_conf(file));
        if read.is_err() {
            return Vec::new();
        }
        let of = |kind| hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let found = [of(RecordType::A), of(RecordType::AAAA)].into_iter().flatten();
        found
            .flat_map(|lookup| lookup.answers().iter().filter_map(|r| r.data.ip_addr()).collect::<Vec<_>>())
            .collect()
    }

    fn servers(self) -> io::Result<(ResolverConfig, ResolverOpts)> {
        let text = match std::fs::read(self.servers) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        // The only thing that it refuses of a text is a search domain that is none, and a list of no servers.
        let (mut config, options) = match parse_resolv_conf(&text) {
            Ok(parsed) => parsed,
            Err(_) if !mentions_servers(&text) => {
                parse_resolv_conf([&text, NO_SERVERS.as_bytes()].join(&b'\n')).map_err(io::Error::other)?
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        for connection in config.name_servers.iter_mut().flat_map(|server| &mut server.connections) {
            connection.port = self.port;
        }
        Ok((config, options))
    }
}

fn mentions_servers(text: &[u8]) -> bool {
    text.split(|byte| *byte == b'\n').any(|line| line.trim_ascii_start().starts_with(b"nameserver"))
}

/// The names that are asked for one after the other until one has an address: as it is first if it has enough dots, else last.
fn candidates(name: &Name, search: Vec<Name>, domain: Option<Name>, dots: usize) -> Vec<Name> {
    let mut absolute = name.clone();
    absolute.set_fqdn(true);
    if name.is_fqdn() || name.is_localhost() {
        return vec![absolute];
    }
    let search = if search.is_empty() { Vec::from_iter(domain) } else { search };
    let longer = search.into_iter().take(SEARCH_MAX).filter_map(|domain| {
        let mut longer = name.clone().append_domain(&domain).ok()?;
        longer.set_fqdn(true);
        Some(longer)
    });
    let mut names: Vec<Name> = longer.collect();
    // A name of n labels has n - 1 dots.
    let at = if usize::from(name.num_labels()) > dots { 0 } else { names.len() };
    names.insert(at, absolute);
    names
}

fn resolver(config: ResolverConfig, mut options: ResolverOpts) -> io::Result<TokioResolver> {
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Never;
    // Lives for one question.
    options.cache_size = 0;
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().map_err(io::Error::other)
}

/// Stable: keeps the server's order within a family.
fn ordered(mut found: Vec<IpAddr>) -> Vec<IpAddr> {
    found.sort_by_key(IpAddr::is_ipv6);
    found.truncate(ADDRESSES_MAX);
    found
}

fn none(host: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{host:?} has no address"))
}

fn unanswered(host: &str, error: &NetError) -> io::Error {
    let kind = match error {
        NetError::Timeout => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("no name server could say what {host:?} is: {error}"))
}

#[cfg(test)]
mod tests;
