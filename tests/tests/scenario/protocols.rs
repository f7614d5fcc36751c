//! Protocols that are not plain HTTP/1.1: who speaks first, what is opaque, what is encrypted.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
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
