//! Protocols that are not plain HTTP/1.1: who speaks first, what is opaque, what is encrypted.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;
use weft_tests::{mesh, package, poll};

const APPEARS: Duration = Duration::from_secs(5);

#[test]
#[expect(clippy::print_stderr, reason = "the delay is measured for people, not asserted by the wall clock")]
fn a_server_that_speaks_first_answers_without_a_detection_stall() -> anyhow::Result<()> {
    let Some(mut mesh) = mesh::mesh() else { return Ok(()) };
    mesh.start_control_plane()?;
    mesh.meshed_pod("client")?;
    mesh.meshed_pod("mail")?;
    mesh.pod("stranger")?;
    // The port's protocol is not declared: detection has to find out.
    mesh.service("mail", 2525, None, &["mail"])?;
    let greeter = mesh.file(
        "greeter.py",
        "import socketserver\n\
         class Greeter(socketserver.StreamRequestHandler):\n    \
             def handle(self):\n        \
                 self.wfile.write(b'220 mail.shop ESMTP\\r\\n')\n        \
                 self.wfile.write(b'221 heard ' + self.rfile.readline())\n\
         socketserver.ThreadingTCPServer.request_queue_size = 64\n\
         socketserver.ThreadingTCPServer(('0.0.0.0', 2525), Greeter).serve_forever()\n",
    )?;
    mesh.app("mail", &["python3", &greeter.display().to_string()])?;
    mesh.listening("mail", 2525)?;
    // Prints the milliseconds from connect to greeting, five times.
    let caller = mesh
        .file(
            "caller.py",
            "import socket, sys, time\n\
             for _ in range(5):\n    \
                 start = time.monotonic()\n    \
                 s = socket.create_connection((sys.argv[1], 2525), timeout=10)\n    \
                 f = s.makefile('rwb')\n    \
                 greeting = f.readline()\n    \
                 took = time.monotonic() - start\n    \
                 assert greeting.startswith(b'220 '), greeting\n    \
                 f.write(b'hello\\r\\n'); f.flush()\n    \
                 assert f.read() == b'221 heard hello\\r\\n'\n    \
                 print(took * 1000)\n",
        )?
        .display()
        .to_string();
    let direct = mesh.address("mail")?.to_string();
    let median = |text: String| -> anyhow::Result<f64> {
        let mut times = text.lines().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    };
    let meshed = median(mesh.succeed("client", &["python3", &caller, "mail"])?)?;
    let half = median(mesh.succeed("stranger", &["python3", &caller, &direct])?)?;
    let bare = median(mesh.succeed("mail", &["python3", &caller, "127.0.0.1"])?)?;
    eprintln!(
        "server-first greeting: {meshed:.1} ms through two sidecars, {half:.1} ms through one, {bare:.1} ms without"
    );
    // Every verdict came from the server's first bytes; no deadline had to pass.
    for pod in ["client", "mail"] {
        let metrics = mesh.metrics(pod)?;
        let detected = |result: &str| -> f64 {
            let prefix = format!("weft_detect_duration_seconds_count{{result=\"{result}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok()).unwrap_or_default()
        };
        ensure!(detected("server_first") >= 5.0 && detected("timeout") == 0.0, "{metrics}");
    }

    let edge =
        poll::until_blocking("tcp edge", APPEARS, || mesh.edge("workload:shop/client", "workload:shop/mail"))
            .with_context(|| mesh.log("client"))?;
    assert_eq!(edge["protocol"], "tcp");
    Ok(())
}

#[test]
fn postgres_and_redis_work_unmodified() -> anyhow::Result<()> {
    let Some(mut mesh) = mesh::mesh() else { return Ok(()) };
    package::debian("redis-cli", "redis-tools")?;
    mesh.start_control_plane()?;
    for pod in ["client", "db", "cache"] {
        mesh.meshed_pod(pod)?;
    }
    mesh.service("db", 5432, None, &["db"])?;
    mesh.service("cache", 6379, Some("redis"), &["cache"])?;
    mesh.app("cache", &["redis-server", "--port", "6379", "--protected-mode", "no", "--save", ""])?;
    mesh.listening("cache", 6379)?;
    start_postgres(&mut mesh)?;

    assert_eq!(mesh.succeed("client", &["redis-cli", "-h", "cache", "set", "k", "v"])?.trim(), "OK");
    assert_eq!(mesh.succeed("client", &["redis-cli", "-h", "cache", "get", "k"])?.trim(), "v");
    let started = Instant::now();
    let answer = mesh.succeed(
        "client",
        &["psql", "-h", "db", "-U", "weft", "-d", "postgres", "-At", "-c", "select 6 * 7"],
    )?;
    assert_eq!(answer.trim(), "42");
    ensure!(started.elapsed() < Duration::from_secs(5), "psql took {:?}", started.elapsed());
    for target in ["workload:shop/cache", "workload:shop/db"] {
        let edge = poll::until_blocking("edge", APPEARS, || mesh.edge("workload:shop/client", target))
            .with_context(|| mesh.log("client"))?;
        assert_eq!(edge["protocol"], "tcp", "{target}");
    }
    Ok(())
}

fn start_postgres(mesh: &mut mesh::Mesh) -> anyhow::Result<()> {
    let installed =
        std::fs::read_dir("/usr/lib/postgresql").context("Debian's postgresql is not installed")?;
    let home = installed.filter_map(Result::ok).map(|entry| entry.path().join("bin")).max();
    let home = home.context("no PostgreSQL below /usr/lib/postgresql")?;
    let data = mesh.app_directory("postgres")?.display().to_string();
    let program = |name: &str| home.join(name).display().to_string();
    mesh.succeed("db", &[&program("initdb"), "-D", &data, "-U", "weft", "--auth=trust", "--no-sync"])?;
    let access = format!("{data}/pg_hba.conf");
    mesh.succeed("db", &["sh", "-c", &format!("echo 'host all all all trust' >> {access}")])?;
    mesh.app("db", &[&program("postgres"), "-D", &data, "-h", "0.0.0.0", "-k", &data, "-c", "fsync=off"])?;
    mesh.listening("db", 5432)
}

#[test]
fn tls_passes_through_and_is_named_by_its_sni() -> anyhow::Result<()> {
    let Some(mut mesh) = mesh::mesh() else { return Ok(()) };
    mesh.start_control_plane()?;
    mesh.meshed_pod("client")?;
    mesh.outsider("internet")?;
    let key = mesh.app_directory("tls")?.join("key.pem").display().to_string();
    let certificate = key.replace("key.pem", "certificate.pem");
    mesh.succeed(
        "internet",
        &[
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=api.bank.example",
            "-addext",
            "subjectAltName=DNS:api.bank.example",
            "-keyout",
            &key,
            "-out",
            &certificate,
        ],
    )?;
    mesh.app(
        "internet",
        &["openssl", "s_server", "-quiet", "-accept", "8443", "-key", &key, "-cert", &certificate, "-www"],
    )?;
    mesh.listening("internet", 8443)?;
    let resolve = format!("api.bank.example:8443:{}", mesh.address("internet")?);
    let page = mesh.succeed(
        "client",
        &[
            "curl",
            "-sS",
            "--max-time",
            "10",
            "--resolve",
            &resolve,
            "--cacert",
            &certificate,
            "https://api.bank.example:8443/",
        ],
    )?;
    ensure!(page.contains("HTML"), "{page}");
    let edge = poll::until_blocking("edge named by SNI", APPEARS, || {
        mesh.edge("workload:shop/client", "external:api.bank.example:8443")
    })
    .with_context(|| mesh.log("client"))?;
    assert_eq!(edge["protocol"], "tls");
    Ok(())
}

#[test]
fn grpc_streams_both_ways_and_fails_by_its_own_status() -> anyhow::Result<()> {
    let Some(mut mesh) = mesh::mesh() else { return Ok(()) };
    mesh.start_control_plane()?;
    mesh.meshed_pod("client")?;
    mesh.meshed_pod("numbers")?;
    // Not declared: HTTP/2 is found by its preface, gRPC by its content type.
    mesh.service("numbers", 50051, None, &["numbers"])?;
    let peer = mesh.program(env!("CARGO_BIN_EXE_grpc-peer"))?;
    mesh.app("numbers", &[&peer, "serve", "50051"])?;
    mesh.listening("numbers", 50051)?;

    // Checks every message, status and trailer itself.
    mesh.succeed("client", &[&peer, "call", "http://numbers:50051"])
        .with_context(|| format!("{}\n{}", mesh.log("client"), mesh.log("numbers")))?;

    let edge = poll::until_blocking("all calls are on the edge", APPEARS, || {
        let edge = mesh.edge_in("grpc", "workload:shop/client", "workload:shop/numbers")?;
        ensure!(edge["requests_total"] == 5, "{edge:#}");
        Ok(edge)
    })
    .with_context(|| mesh.log("client"))?;
    // HTTP said 200 five times. A stream that broke with INTERNAL has failed; NOT_FOUND is an answer.
    assert_eq!(edge["success_rate"], 0.8, "{edge:#}");
    assert_eq!(edge["failures"], json!([{"reason": "internal", "count": 1}]));
    let routes = edge["routes"].as_array().context("no routes")?;
    let statuses = |method: &str| {
        let name = format!("/weft.test.Numbers/{method}");
        routes.iter().find(|route| route["route"] == *name).map(|route| route["statuses"].to_string())
    };
    for (method, expected) in [
        ("Double", vec!["grpc ok", "grpc not_found"]),
        ("Count", vec!["grpc ok", "grpc internal"]),
        ("Sum", vec!["grpc ok"]),
    ] {
        let seen = statuses(method).with_context(|| format!("no {method} among {routes:#?}"))?;
        ensure!(expected.iter().all(|status| seen.contains(status)), "{method}: {seen}");
    }
    Ok(())
}

/// Both ends of a WebSocket by hand: the handshake of RFC 6455 §1.3 and masked frames of up to 125 bytes.
const WEBSOCKET: &str = r#"
import base64, hashlib, os, socket, socketserver, sys

def accept_key(key):
    return base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())

def head(file):
    first, fields = file.readline(), {}
    while (line := file.readline()).strip():
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip()
    return first, fields

def frame(text, mask=b""):
    data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(text)) if mask else text
    return bytes([0x81, len(text) | (0x80 if mask else 0)]) + mask + data

def unframe(file):
    kind, length = file.read(2)
    assert kind == 0x81, kind
    mask = file.read(4) if length & 0x80 else bytes(4)
    return bytes(byte ^ mask[at % 4] for at, byte in enumerate(file.read(length & 0x7F)))

class Chat(socketserver.StreamRequestHandler):
    def handle(self):
        first, fields = head(self.rfile)
        assert fields[b"upgrade"].lower() == b"websocket", fields
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_key(fields[b"sec-websocket-key"]) + b"\r\n\r\n" + frame(b"welcome"))
        while (heard := unframe(self.rfile)) != b"bye":
            self.wfile.write(frame(b"heard " + heard))

def talk(host):
    connection = socket.create_connection((host, 8080), timeout=10)
    file = connection.makefile("rwb")
    key = base64.b64encode(os.urandom(16))
    file.write(b"GET /chat HTTP/1.1\r\nHost: chat\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n")
    file.flush()
    first, fields = head(file)
    assert first.startswith(b"HTTP/1.1 101 "), first
    assert fields[b"sec-websocket-accept"] == accept_key(key), fields
    assert unframe(file) == b"welcome"
    for number in range(100):
        word = b"word %d" % number
        file.write(frame(word, os.urandom(4)))
        file.flush()
        assert unframe(file) == b"heard " + word
    file.write(frame(b"bye", os.urandom(4)))
    file.flush()
    assert file.read() == b""

if sys.argv[1] == "serve":
    socketserver.ThreadingTCPServer(("0.0.0.0", 8080), Chat).serve_forever()
else:
    talk(sys.argv[1])
"#;

#[test]
fn a_websocket_is_a_request_and_then_a_connection() -> anyhow::Result<()> {
    let Some(mut mesh) = mesh::mesh() else { return Ok(()) };
    mesh.start_control_plane()?;
    mesh.meshed_pod("client")?;
    mesh.meshed_pod("chat")?;
    mesh.service("chat", 8080, None, &["chat"])?;
    let script = mesh.file("websocket.py", WEBSOCKET)?.display().to_string();
    mesh.app("chat", &["python3", &script, "serve"])?;
    mesh.listening("chat", 8080)?;
    mesh.succeed("client", &["python3", &script, "chat"])
        .with_context(|| format!("{}\n{}", mesh.log("client"), mesh.log("chat")))?;

    let (source, target) = ("workload:shop/client", "workload:shop/chat");
    let (request, connection) = poll::until_blocking("both are seen", APPEARS, || {
        anyhow::Ok((mesh.edge_in("http", source, target)?, mesh.edge_in("tcp", source, target)?))
    })
    .with_context(|| mesh.log("client"))?;
    assert_eq!(request["requests_total"], 1, "{request:#}");
    assert_eq!(request["success_rate"], 1.0, "{request:#}");
    assert_eq!(request["routes"][0]["route"], "/chat");
    ensure!(request["routes"][0]["statuses"].to_string().contains("101"), "{request:#}");
    assert_eq!(connection["connections"]["opened_total"], 1, "{connection:#}");
    Ok(())
}
