//! The fabric on the real kernel: pods reach each other by name, programs have users, nothing is left behind.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use weft_cli::fabric::{self, Fabric, Isolation};

/// `None` where this machine allows no such namespaces; CI must.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn fabric(isolation: Isolation) -> Option<Fabric> {
    match Fabric::builder().helper(env!("CARGO_BIN_EXE_weft")).isolation(isolation).build() {
        Err(error @ fabric::Error::Forbidden { .. }) => {
            assert!(std::env::var_os("CI").is_none(), "CI must be able to run this: {error}");
            eprintln!("skipped: {error}");
            None
        }
        fabric => Some(fabric.expect("a fabric")),
    }
}

fn two_pods_talk(isolation: Isolation) {
    let Some(fabric) = fabric(isolation) else { return };
    let server = fabric.pod("server").start().expect("pod");
    let client = fabric.pod("client").host("orders", server.address()).start().expect("pod");
    let external =
        fabric.pod("external").address("203.0.113.10".parse().expect("valid")).start().expect("pod");
    let serve = |pod: &fabric::Pod, address: &str| {
        let mut process = pod
            .command("python3")
            .args(["-u", "-m", "http.server", "--bind", address, "8080"])
            .uid(isolation, 1000)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        assert!(line.contains("8080"), "{line}");
        process
    };
    let _v4 = serve(&server, "0.0.0.0");
    let _external = serve(&external, "0.0.0.0");
    for url in ["http://orders:8080/", "http://203.0.113.10:8080/"] {
        let output =
            client.command("curl").args(["-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", url]);
        let output = output.output().expect("curl runs");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "200",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let uid = client.command("id").arg("-u").uid(isolation, 2102).output().expect("id runs");
    let expected = if isolation.has_users() { "2102\n" } else { "0\n" };
    assert_eq!(String::from_utf8_lossy(&uid.stdout), expected);
}

#[test]
fn two_pods_talk_as_root() {
    two_pods_talk(Isolation::Root);
}

#[test]
fn two_pods_talk_in_a_user_namespace() {
    two_pods_talk(Isolation::User);
}
