//! curl and Python's own HTTP server, each alone with its sidecar in a network namespace, and a raw socket on the wire between
//! them: nothing is configured, and it is TLS 1.3 from the first byte on.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use weft_tests::{mesh, poll};

const DEADLINE: Duration = Duration::from_secs(30);
const PORT: u16 = 8080;
const CALLS: u64 = 20;

const ASKED: &str = "swordfish-in-the-request";
const TOLD: &str = "marlin-in-the-answer";
const FORGED: &str = "spiffe://cluster.local/ns/shop/sa/admin";

/// Writes every frame that passes, as a pcap file: what does not look right can be opened with Wireshark.
const SNIFFER: &str = r#"
import socket, struct, sys, time
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
with open(sys.argv[1], "wb", buffering=0) as file:
    file.write(struct.pack("<IHHIIII", 0xa1b2c3d4, 2, 4, 0, 0, 262144, 1))
    while True:
        frame = wire.recv(262144)
        now = time.time()
        head = struct.pack("<IIII", int(now), int(now % 1 * 1e6), len(frame), len(frame))
        file.write(head + frame)
"#;

/// Who sends to whom.
type Way = (SocketAddrV4, SocketAddrV4);

/// One TCP segment.
struct Segment<'a> {
    way: Way,
    sequence: u32,
    opens: bool,
    payload: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The frames of a pcap file that is still being written.
fn frames(mut file: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    file = file.get(24..).unwrap_or_default();
    while let Some(length) = file.get(8..12).and_then(|length| length.try_into().ok()) {
        let end = 16 + u32::from_le_bytes(length) as usize;
        let Some(frame) = file.get(16..end) else { break };
        frames.push(frame);
        file = &file[end..];
    }
    frames
}

/// A TCP segment over IPv4, if the Ethernet frame holds one.
fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    const IPV4: u16 = 0x0800;
    const TCP: u8 = 6;
    let packet = frame.get(14..).filter(|_| half(frame, 12) == Some(IPV4))?;
    let header = usize::from(packet.first()? & 15) * 4;
    let packet = packet.get(..usize::from(half(packet, 2)?)).filter(|packet| packet.get(9) == Some(&TCP))?;
    let (from, to) = (Ipv4Addr::from(word(packet, 12)?), Ipv4Addr::from(word(packet, 16)?));
    let tcp = packet.get(header..)?;
    let way = (SocketAddrV4::new(from, half(tcp, 0)?), SocketAddrV4::new(to, half(tcp, 2)?));
    let payload = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?;
    Some(Segment { way, sequence: word(tcp, 4)?, opens: tcp.get(13)? & 2 != 0, payload })
}

/// What was sent each way, in order. A frame that is seen on several interfaces counts once.
fn streams(segments: &[Segment<'_>]) -> BTreeMap<Way, Vec<u8>> {
    let opened = segments.iter().filter(|segment| segment.opens);
    let opened = opened.map(|segment| (segment.way, segment.sequence.wrapping_add(1)));
    let whole = |(way, start): (Way, u32)| {
        let of = segments.iter().filter(|segment| segment.way == way && !segment.payload.is_empty());
        let pieces: BTreeMap<usize, &[u8]> =
            of.map(|segment| (segment.sequence.wrapping_sub(start) as usize, segment.payload)).collect();
        let mut stream = Vec::new();
        for (at, piece) in pieces {
            // What overlaps was sent again; where something is missing the records after it make no sense, and it shows.
            stream.extend_from_slice(piece.get(stream.len().saturating_sub(at)..).unwrap_or_default());
        }
        (way, stream)
    };
    opened.map(whole).collect()
}

/// The records of one way of a TLS connection, by type; nothing else may be there.
fn records(mut stream: &[u8]) -> anyhow::Result<Vec<(u8, &[u8])>> {
    let mut records = Vec::new();
    while !stream.is_empty() {
        let header = stream.get(..5).context("half a header")?;
        ensure!(
            (20..=23).contains(&header[0]) && header[1] == 3,
            "no TLS record after {}: {header:?}",
            records.len()
        );
        let end = 5 + usize::from(u16::from_be_bytes([header[3], header[4]]));
        records.push((header[0], stream.get(5..end).context("half a record")?));
        stream = &stream[end..];
    }
    Ok(records)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// What went between two pods.
fn between(file: &[u8], one: IpAddr, other: IpAddr) -> Vec<Segment<'_>> {
    let theirs = |segment: &Segment<'_>| {
        let ends = (IpAddr::from(*segment.way.0.ip()), IpAddr::from(*segment.way.1.ip()));
        ends == (one, other) || ends == (other, one)
    };
    frames(file).into_iter().filter_map(segment).filter(theirs).collect()
}

/// Whether the wire shows what `client` says to `back`.
fn overheard(capture: &Path, client: IpAddr, back: IpAddr) -> anyhow::Result<()> {
    let file = std::fs::read(capture)?;
    let segments = between(&file, client, back);
    for text in [ASKED, TOLD] {
        ensure!(segments.iter().any(|segment| contains(segment.payload, text.as_bytes())), "no {text:?}");
    }
    Ok(())
}

/// Looks at all that went between `client` and `back`: TLS 1.3 and nothing else, and enough of it for all calls.
fn only_tls(capture: &Path, client: IpAddr, back: IpAddr) -> anyhow::Result<()> {
    const HANDSHAKE: u8 = 22;
    const DATA: u8 = 23;
    /// The extension `supported_versions` of a ServerHello that says 1.3 (RFC 8446 §4.2.1).
    const TLS13: &[u8] = &[0, 43, 0, 2, 3, 4];
    let file = std::fs::read(capture)?;
    let segments = between(&file, client, back);
    for text in [ASKED, TOLD, FORGED, "GET /", "HTTP/1.", "PRI * HTTP", "secret.txt", "x-forwarded"] {
        let seen = segments.iter().any(|segment| contains(segment.payload, text.as_bytes()));
        ensure!(!seen, "{text:?} is on the wire");
    }
    let (mut there, mut back_again) = (0, 0);
    for (way, stream) in streams(&segments) {
        let records = records(&stream).with_context(|| format!("{way:?}"))?;
        let (first, hello) = records.first().with_context(|| format!("nothing was sent {way:?}"))?;
        let data = records.iter().filter(|(kind, _)| *kind == DATA).count();
        if way.1.port() == PORT {
            ensure!(*first == HANDSHAKE && hello.first() == Some(&1), "{way:?}: no ClientHello");
            there += data;
        } else {
            ensure!(*first == HANDSHAKE && hello.first() == Some(&2), "{way:?}: no ServerHello");
            ensure!(contains(hello, TLS13), "{way:?}: not TLS 1.3");
            back_again += data;
        }
    }
    let least = CALLS as usize;
    ensure!(
        there >= least && back_again >= least,
        "{there} records went there and {back_again} back: too few for {least} calls"
    );
    Ok(())
}

#[test]
fn two_unmodified_programs_speak_tls_13_and_a_forged_header_changes_nothing() -> anyhow::Result<()> {
    mesh::mesh().map_or(Ok(()), unmodified_programs)
}

#[test]
fn nobody_needs_to_be_root_for_it() -> anyhow::Result<()> {
    mesh::unprivileged().map_or(Ok(()), unmodified_programs)
}

fn logs(mesh: &mesh::Mesh) -> String {
    ["client", "back", "control-plane"].map(|name| mesh.log(name)).join("\n")
}

fn unmodified_programs(mut mesh: mesh::Mesh) -> anyhow::Result<()> {
    mesh.start_control_plane()?;
    let sniffer = mesh.file("sniffer.py", SNIFFER)?.display().to_string();
    let capture = mesh.file("wire.pcap", "")?;
    mesh.beside_the_wire("sniffer", &["python3", &sniffer, &capture.display().to_string()])?;
    poll::until_blocking("the wire is watched", DEADLINE, || {
        ensure!(std::fs::metadata(&capture)?.len() >= 24, "no capture yet");
        anyhow::Ok(())
    })
    .with_context(|| mesh.log("sniffer"))?;
    // What has not been found out by then passes through in plain text; on a busy machine half a second is soon over.
    mesh.sidecars_have("WEFT_DISCOVERY_TIMEOUT", "20s");
    mesh.meshed_pod("client")?;
    mesh.meshed_pod("back")?;
    mesh.service("back", PORT, None, &["back"])?;
    let site = mesh.app_directory("site")?;
    std::fs::write(site.join("secret.txt"), TOLD)?;
    let (port, site) = (PORT.to_string(), site.display().to_string());
    mesh.app("back", &["python3", "-m", "http.server", &port, "--directory", &site])?;
    mesh.listening("back", PORT)?;

    let headers = [
        format!("x-secret: {ASKED}"),
        format!("x-forwarded-client-cert: By=spiffe://cluster.local/ns/shop/sa/back;URI={FORGED}"),
        format!("x-weft-identity: {FORGED}"),
        "x-weft-workload: shop/admin".to_owned(),
    ];
    let mut curl = vec!["curl", "-sSf", "--max-time", "10"];
    curl.extend(headers.iter().flat_map(|header| ["-H", header]));
    curl.push("http://back:8080/secret.txt");
    for _ in 0..CALLS {
        assert_eq!(mesh.succeed("client", &curl).with_context(|| logs(&mesh))?, TOLD);
    }

    let edge = poll::until_blocking("the edge has its lock", DEADLINE, || {
        let edge = mesh.edge("workload:shop/client", "workload:shop/back")?;
        ensure!(edge["requests_total"] == CALLS && edge["tls"] == "mutual", "{edge:#}");
        anyhow::Ok(edge)
    })
    .with_context(|| logs(&mesh))?;
    assert_eq!(edge["source"], "workload:shop/client", "as its certificate says");
    let graph = mesh.get("/api/graph?window=1m")?;
    let edges = graph["edges"].as_array().context("no edges")?;
    let to_back: Vec<&Value> = edges.iter().filter(|edge| edge["target"] == "workload:shop/back").collect();
    assert_eq!(to_back.len(), 1, "nobody else has called: {to_back:#?}");
    ensure!(!graph.to_string().contains("admin"), "somebody is known by a header: {graph:#}");
    let metrics = mesh.metrics("back")?;
    let requests =
        metrics.lines().filter(|line| line.starts_with("http_server_request_duration_seconds_count"));
    let verified = r#"weft_peer_identity="spiffe://cluster.local/ns/shop/sa/client""#;
    for line in requests {
        ensure!(line.contains(verified) && line.contains(r#"weft_tls="mutual""#), "{line}");
    }
    let (client, back) = (mesh.address("client")?, mesh.address("back")?);
    // What was sent last may not be written down yet.
    poll::until_blocking("the wire shows TLS 1.3 and nothing else", DEADLINE, || {
        only_tls(&capture, client, back).map_err(|error| format!("{error:#}"))
    })?;

    // Were it not so, the wire would show it: somebody without a sidecar, at a port that takes both.
    mesh.pod("stranger")?;
    curl.pop();
    let url = format!("http://{back}:{PORT}/secret.txt");
    curl.push(&url);
    assert_eq!(mesh.succeed("stranger", &curl)?, TOLD);
    let stranger = mesh.address("stranger")?;
    poll::until_blocking("plain text is seen", DEADLINE, || overheard(&capture, stranger, back))
}
