//! Asked of a small name server in this process, over UDP and TCP.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

use super::*;

/// What the server says of a name.
#[derive(Clone)]
enum Says {
    Addresses(Vec<IpAddr>),
    /// Over UDP only that the answer is too long.
    Long(Vec<IpAddr>),
    Code(ResponseCode),
}

/// A name server, and the files that point to it.
struct World {
    directory: TempDir,
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl World {
    async fn new(zone: &[(&str, Says)]) -> Self {
        let zone: HashMap<String, Says> =
            zone.iter().map(|(name, says)| ((*name).to_owned(), says.clone())).collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
            // The same number may be taken over TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("bound")).await {
                break (udp, tcp);
            }
        };
        let port = udp.local_addr().expect("bound").port();
        let (zone, noted) = (Arc::new(zone), Arc::clone(&asked));
        let over_tcp = Arc::clone(&zone);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).expect("a query");
                let first = query.queries.first().expect("one question");
                noted.lock().expect("whole").push(format!("{} {}", first.name(), first.query_type()));
                let answer = answer(&zone, &query, true).to_vec().expect("encodes");
                udp.send_to(&answer, from).await.expect("sent");
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let mut query = vec![0; usize::from(stream.read_u16().await.expect("a length"))];
                stream.read_exact(&mut query).await.expect("a query");
                let query = Message::from_vec(&query).expect("a query");
                let answer = answer(&over_tcp, &query, false).to_vec().expect("encodes");
                stream.write_u16(u16::try_from(answer.len()).expect("short")).await.expect("sent");
                stream.write_all(&answer).await.expect("sent");
            }
        });
        let world = Self { directory: TempDir::new().expect("a directory"), port, asked };
        world.servers("nameserver 127.0.0.1\n");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn servers(&self, text: &str) {
        std::fs::write(self.path("resolv.conf"), text).expect("written");
    }

    fn hosts(&self, text: &str) {
        std::fs::write(self.path("hosts"), text).expect("written");
    }

    async fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let (hosts, servers) = (self.path("hosts"), self.path("resolv.conf"));
        Files { hosts: &hosts, servers: &servers, port: self.port }.lookup(host).await
    }

    /// The names that were asked for IPv4 addresses, in order.
    fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().expect("whole");
        asked.iter().filter_map(|line| line.strip_suffix(" A")).map(str::to_owned).collect()
    }
}

fn answer(zone: &HashMap<String, Says>, query: &Message, udp: bool) -> Message {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.recursion_available = true;
    let question = query.queries.first().expect("one question");
    answer.add_query(question.clone());
    match zone.get(&question.name().to_string().to_lowercase()) {
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(Says::Code(code)) => answer.metadata.response_code = *code,
        Some(Says::Long(_)) if udp => answer.metadata.truncation = true,
        Some(Says::Addresses(ips) | Says::Long(ips)) => {
            for ip in ips {
                let data = RData::from(*ip);
                if data.record_type() == question.query_type() {
                    answer.add_answer(Record::from_rdata(question.name().clone(), 60, data));
                }
            }
        }
    }
    answer
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

fn says(texts: &[&str]) -> Says {
    Says::Addresses(ips(texts))
}

#[tokio::test]
async fn an_address_is_its_own_name() {
    let world = World::new(&[]).await;
    assert_eq!(world.lookup("10.0.0.7").await.unwrap(), ips(&["10.0.0.7"]));
    assert_eq!(world.lookup("[fd00::7]").await.unwrap(), ips(&["fd00::7"]));
    assert_eq!(world.lookup("fd00::7").await.unwrap(), ips(&["fd00::7"]));
    assert!(world.asked().is_empty());
}

#[tokio::test]
async fn ipv4_comes_first_in_the_servers_order() {
    let world = World::new(&[("a.example.", says(&["fd00::2", "10.0.0.2", "fd00::1", "10.0.0.1"]))]).await;
    let found = world.lookup("a.example").await.unwrap();
    assert_eq!(found, ips(&["10.0.0.2", "10.0.0.1", "fd00::2", "fd00::1"]));
}

#[tokio::test]
async fn a_name_may_have_only_ipv6_addresses() {
    let world = World::new(&[("six.example.", says(&["fd00::2"]))]).await;
    assert_eq!(world.lookup("six.example").await.unwrap(), ips(&["fd00::2"]));
}

#[tokio::test]
async fn no_more_addresses_than_are_of_use() {
    let many: Vec<IpAddr> = (1..=20).map(|last| Ipv4Addr::new(10, 0, 0, last).into()).collect();
    let world = World::new(&[("many.example.", Says::Addresses(many))]).await;
    assert_eq!(world.lookup("many.example").await.unwrap().len(), ADDRESSES_MAX);
}

#[tokio::test]
async fn a_pods_search_domains_come_before_the_name_itself() {
    let world = World::new(&[("orders.shop.svc.cluster.local.", says(&["10.96.0.10"]))]).await;
    world.servers(
        "search web.svc.cluster.local svc.cluster.local cluster.local\nnameserver 127.0.0.1\noptions ndots:5\n",
    );
    assert_eq!(world.lookup("orders.shop").await.unwrap(), ips(&["10.96.0.10"]));
    assert_eq!(
        world.asked(),
        ["orders.shop.web.svc.cluster.local.", "orders.shop.svc.cluster.local."],
        "and no further"
    );
}

#[tokio::test]
async fn a_name_with_enough_dots_or_one_at_its_end_is_asked_for_as_it_is() {
    let world = World::new(&[("api.example.com.", says(&["203.0.113.7"]))]).await;
    world.servers("search shop.example\nnameserver 127.0.0.1\noptions ndots:2\n");
    for host in ["api.example.com", "api.example.com."] {
        assert_eq!(world.lookup(host).await.unwrap(), ips(&["203.0.113.7"]));
    }
    assert_eq!(world.asked(), ["api.example.com.", "api.example.com."]);
    assert!(world.lookup("orders.").await.is_err());
    assert_eq!(world.asked()[2..], ["orders."], "no search for an absolute name");
}

#[tokio::test]
async fn answers_of_two_candidates_are_not_mixed() {
    let world =
        World::new(&[("db.one.example.", says(&["10.0.0.1"])), ("db.two.example.", says(&["fd00::2"]))])
            .await;
    world.servers("search one.example two.example\nnameserver 127.0.0.1\n");
    assert_eq!(world.lookup("db").await.unwrap(), ips(&["10.0.0.1"]));
}

#[tokio::test]
async fn the_hosts_file_comes_first_whatever_the_search_domains() {
    let world = World::new(&[("db.shop.example.", says(&["10.0.0.1"]))]).await;
    world.servers("search shop.example\nnameserver 127.0.0.1\noptions ndots:5\n");
    world.hosts("127.0.0.1 localhost\nfd00::9 DB\n10.0.0.9 db # written by the kubelet\n");
    assert_eq!(world.lookup("db").await.unwrap(), ips(&["10.0.0.9", "fd00::9"]));
    assert!(world.asked().is_empty());
}

#[tokio::test]
async fn both_files_may_change() {
    let world = World::new(&[("db.shop.example.", says(&["10.0.0.1"]))]).await;
    assert_eq!(world.lookup("db").await.unwrap_err().kind(), io::ErrorKind::NotFound);
    world.servers("search shop.example\nnameserver 127.0.0.1\n");
    assert_eq!(world.lookup("db").await.unwrap(), ips(&["10.0.0.1"]));
    world.hosts("10.0.0.9 db\n");
    assert_eq!(world.lookup("db").await.unwrap(), ips(&["10.0.0.9"]));
}

#[tokio::test]
async fn names_of_services_may_have_underscores() {
    let world = World::new(&[("my_db.shop.", says(&["10.0.0.1"]))]).await;
    assert_eq!(world.lookup("my_db.shop").await.unwrap(), ips(&["10.0.0.1"]));
}

#[tokio::test]
async fn what_is_too_long_for_udp_is_asked_for_over_tcp() {
    let world = World::new(&[("long.example.", Says::Long(ips(&["10.0.0.1"])))]).await;
    assert_eq!(world.lookup("long.example").await.unwrap(), ips(&["10.0.0.1"]));
}

#[tokio::test]
async fn this_host_needs_no_server() {
    let world = World::new(&[]).await;
    assert_eq!(world.lookup("localhost").await.unwrap(), ips(&["127.0.0.1", "::1"]));
    assert!(world.asked().is_empty());
}

#[tokio::test]
async fn a_name_that_is_not_there_and_a_server_that_fails_are_told_apart() {
    let world = World::new(&[("broken.example.", Says::Code(ResponseCode::ServFail))]).await;
    let missing = world.lookup("missing.example").await.unwrap_err();
    assert_eq!(missing.to_string(), "\"missing.example\" has no address");
    let broken = world.lookup("broken.example").await.unwrap_err();
    assert!(
        broken.to_string().starts_with("no name server could say what \"broken.example\" is"),
        "{broken}"
    );
    assert_ne!(broken.kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn a_candidate_whose_server_fails_does_not_end_the_search() {
    let world = World::new(&[
        ("db.one.example.", Says::Code(ResponseCode::ServFail)),
        ("db.two.example.", says(&["10.0.0.2"])),
    ])
    .await;
    world.servers("search one.example two.example\nnameserver 127.0.0.1\n");
    assert_eq!(world.lookup("db").await.unwrap(), ips(&["10.0.0.2"]));
}

#[tokio::test]
async fn without_a_file_the_name_server_is_this_host() {
    let world = World::new(&[("a.example.", says(&["10.0.0.1"]))]).await;
    for text in ["", "options ndots:2\n"] {
        world.servers(text);
        assert_eq!(world.lookup("a.example").await.unwrap(), ips(&["10.0.0.1"]), "{text:?}");
    }
    std::fs::remove_file(world.path("resolv.conf")).expect("removed");
    assert_eq!(world.lookup("a.example").await.unwrap(), ips(&["10.0.0.1"]));
}

#[tokio::test]
async fn what_is_no_name_is_refused() {
    let world = World::new(&[]).await;
    for host in ["", ".", "a..b", &"x".repeat(64), &"x.".repeat(130)] {
        let refused = world.lookup(host).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{host:?}: {refused}");
    }
    assert!(world.asked().is_empty());
}
