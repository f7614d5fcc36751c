//! The redirect for real: in fresh network namespaces, against the kernel, with `nft` as the second opinion.
//!
//! Needs root or unprivileged user namespaces. Where that is not possible a test prints why it is skipped; with
//! `CI=true` or `WEFT_REQUIRE_NETNS=1` it fails instead, so a skip is never taken for a success.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Runs `story` on a thread that has moved into a new network namespace; what it spawns is there as well.
fn in_namespace(story: fn()) {
    if let Some(tool) = missing_tool() {
        return skip(&format!("{tool} is not installed"));
    }
    let moved = std::thread::spawn(move || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => {
            ip("link set lo up");
            story();
            None
        }
        Err(error) => Some(error),
    });
    match moved.join() {
        Ok(None) => {}
        Ok(Some(error)) => skip(&format!("no new network namespace: {error}")),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The first of the tools used here that this machine does not have.
fn missing_tool() -> Option<&'static str> {
    let missing = |tool: &&str| {
        let version = if *tool == "ip" { "-V" } else { "--version" };
        Command::new(tool).arg(version).output().is_err()
    };
    ["ip", "nft", "unshare", "nsenter", "setpriv", "bash"].into_iter().find(|tool| missing(tool))
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn skip(reason: &str) {
    let required = |name: &str, value: &str| std::env::var(name).is_ok_and(|set| set == value);
    assert!(!required("CI", "true") && !required("WEFT_REQUIRE_NETNS", "1"), "cannot run: {reason}");
    eprintln!("skipped: {reason}");
}

fn run(program: &str, arguments: &str, input: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("read by the child");
    child.wait_with_output().expect("waited for")
}

fn text(output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

fn intercept(arguments: &str) -> Output {
    run(env!("CARGO_BIN_EXE_weft-proxy"), &format!("intercept {arguments}"), "")
}

fn ip(arguments: &str) {
    text(run("ip", arguments, ""));
}

/// An interface that is not `lo`, with addresses of both families.
fn plug() {
    ip("link add eth0 type veth peer name far");
    ip("addr add 10.77.0.1/24 dev eth0");
    ip("addr add fd77::1/64 dev eth0 nodad");
    ip("link set eth0 up");
    ip("link set far up");
}

/// Rules without what the kernel or nft adds: counters, quoting, white space.
fn normal(rules: &str) -> Vec<String> {
    let counted = |word: &str| word.parse::<u64>().is_ok();
    let mut lines = vec![];
    for line in rules.lines() {
        let mut words: Vec<&str> = vec![];
        let mut rest = line.split_whitespace().peekable();
        while let Some(word) = rest.next() {
            if matches!(word, "packets" | "bytes") && rest.peek().is_some_and(|next| counted(next)) {
                rest.next();
            } else {
                words.push(word);
            }
        }
        let line = words.join(" ");
        if !line.is_empty() {
            // How nft writes the priority of a NAT chain depends on its hook and version.
            lines.push(line.replace("priority dstnat", "priority -100"));
        }
    }
    lines
}

const CASES: [&str; 5] = [
    "",
    "--proxy-uid 0 --exclude-uid 7,9 --exclude-mark 0x2102,5 --no-ipv6",
    "--exclude-inbound-port 22 --exclude-outbound-port 25,5432 --inbound-port 25006 --outbound-port 25001
     --exclude-cidr 10.0.0.0/8,169.254.169.254,10.9.0.0/17,0.0.0.0/1,fd00::/8,::1,fd01:2::/33",
    "--include-inbound-port 8080,9090 --include-outbound-port 80 --include-cidr 10.96.0.0/12,fd00:96::/112",
    "--exclude-inbound-cidr 10.1.0.0/16,10.2.3.4,fd01::/16",
];

#[test]
fn the_kernel_holds_what_dry_run_prints() {
    in_namespace(|| {
        for case in CASES {
            let printed = text(intercept(&format!("{case} --dry-run")));
            text(run("nft", "-c -f -", &printed));
            assert_eq!(text(run("nft", "list ruleset", "")), "", "a dry run changes nothing");
            assert_eq!(text(intercept(case)), "table inet weft is in place\n");
            let ours = normal(&text(run("nft", "list table inet weft", "")));
            // The same text loaded by nft must leave the kernel with the same rules.
            text(run("nft", "delete table inet weft", ""));
            text(run("nft", "-f -", &printed));
            let nfts = normal(&text(run("nft", "list table inet weft", "")));
            assert_eq!(ours, nfts, "case {case:?}");
            text(run("nft", "delete table inet weft", ""));
        }
        intercept("");
        assert_eq!(
            normal(&text(run("nft", "list table inet weft", ""))),
            normal(&text(intercept("--dry-run")))
        );
    });
}

#[test]
fn a_second_run_changes_nothing_and_other_arguments_replace_everything() {
    in_namespace(|| {
        plug();
        assert_eq!(text(intercept("--proxy-uid 7")), "table inet weft is in place\n");
        // One refused connection moves the counter of the redirect.
        drop(TcpStream::connect("10.77.0.9:80"));
        let before = text(run("nft", "-a list ruleset", ""));
        assert!(before.contains("counter packets 1 "), "{before}");
        assert_eq!(text(intercept("--proxy-uid 7")), "table inet weft is already in place\n");
        assert_eq!(text(run("nft", "-a list ruleset", "")), before, "handles and counters included");

        assert_eq!(text(intercept("--proxy-uid 8")), "table inet weft is in place\n");
        let after = text(run("nft", "list ruleset", ""));
        assert!(after.contains("skuid 8") && !after.contains("skuid 7"), "{after}");

        text(run("nft", "add rule inet weft outbound tcp dport 99 return", ""));
        assert_eq!(
            text(intercept("--proxy-uid 8")),
            "table inet weft is in place\n",
            "a stranger's rule goes"
        );
        assert!(!text(run("nft", "list ruleset", "")).contains("99"));
    });
}

#[test]
fn clean_removes_exactly_its_own_table() {
    in_namespace(|| {
        text(run("nft", "add table inet theirs", ""));
        assert_eq!(text(intercept("--clean")), "there is no table inet weft\n");
        text(intercept(""));
        assert_eq!(text(intercept("--clean")), "table inet weft is removed\n");
        assert_eq!(normal(&text(run("nft", "list ruleset", ""))), ["table inet theirs {", "}"]);
        assert_eq!(text(intercept("--clean")), "there is no table inet weft\n");
    });
}

/// Accepts one connection and says where it was going.
fn original_destination(listener: &TcpListener) -> SocketAddr {
    let (stream, _) = listener.accept().expect("a connection");
    let socket = SockRef::from(&stream);
    let original = match stream.local_addr().expect("connected").ip().to_canonical() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    original.expect("redirected").as_socket().expect("an address")
}

fn connect(address: &str) -> TcpStream {
    let address: SocketAddr = address.parse().expect("an address");
    TcpStream::connect_timeout(&address, Duration::from_secs(5))
        .unwrap_or_else(|error| panic!("{address}: {error}"))
}

#[test]
fn outbound_connections_arrive_with_their_destination() {
    in_namespace(|| {
        plug();
        let sidecar = TcpListener::bind("[::]:15001").expect("free in a new namespace");
        text(intercept("--exclude-outbound-port 99 --exclude-cidr 10.77.0.128/25"));
        for destination in ["10.77.0.9:80", "[fd77::9]:443"] {
            let client = connect(destination);
            assert_eq!(original_destination(&sidecar).to_string(), destination);
            drop(client);
        }
        let excluded = |address: &str| {
            let address = address.parse().expect("an address");
            TcpStream::connect_timeout(&address, Duration::from_millis(50)).is_err()
        };
        assert!(excluded("10.77.0.9:99"), "the port is excluded, and nobody lives at the address");
        assert!(excluded("10.77.0.200:80"), "the block is excluded");
        // Loopback and the pod's own address are the app's own business.
        let app = TcpListener::bind("0.0.0.0:8080").expect("free in a new namespace");
        for own in ["127.0.0.1:8080", "10.77.0.1:8080"] {
            let client = connect(own);
            let (accepted, _) = app.accept().expect("a connection");
            assert_eq!(accepted.local_addr().ok(), client.peer_addr().ok(), "not redirected");
        }
    });
}

/// Connects with a socket mark, as a sidecar without a uid of its own does.
fn connect_marked(address: &str, mark: u32) -> std::io::Result<TcpStream> {
    let address: SocketAddr = address.parse().expect("an address");
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_mark(mark)?;
    socket.connect_timeout(&address.into(), Duration::from_secs(5))?;
    Ok(socket.into())
}

/// Inbound redirect, hairpin and exclusion by mark: the parts that must also hold in a user namespace.
fn inbound_story() {
    // The pod's side is this namespace; the caller's side is a second one, reached by a veth pair.
    ip("link add eth0 type veth peer name caller");
    let mut caller = Command::new("unshare").args(["-n", "sleep", "60"]).spawn().expect("unshare");
    let outcome = std::panic::catch_unwind(|| {
        let inside = format!("nsenter -n -t {}", caller.id());
        wait_for_namespace(caller.id());
        ip(&format!("link set caller netns {}", caller.id()));
        for command in
            ["addr add 10.88.0.1/24 dev eth0", "addr add fd88::1/64 dev eth0 nodad", "link set eth0 up"]
        {
            ip(command);
        }
        for command in
            ["addr add 10.88.0.2/24 dev caller", "addr add fd88::2/64 dev caller nodad", "link set caller up"]
        {
            let (program, arguments) = inside.split_once(' ').expect("two parts");
            text(run(program, &format!("{arguments} ip {command}"), ""));
        }
        text(intercept("--proxy-uid 4294967290 --exclude-mark 0x2102 --exclude-inbound-port 22"));
        let sidecar = TcpListener::bind("[::]:15006").expect("free in a new namespace");
        let outbound = TcpListener::bind("[::]:15001").expect("free in a new namespace");
        let app = TcpListener::bind("[::]:8080").expect("free in a new namespace");
        let excluded = TcpListener::bind("[::]:22").expect("free in a new namespace");

        for (destination, host) in [("10.88.0.1:8080", "10.88.0.1"), ("[fd88::1]:8080", "fd88::1")] {
            let mut client = call_from(&inside, host, 8080);
            assert_eq!(original_destination(&sidecar).to_string(), destination);
            drop(client.kill());
            drop(client.wait());
        }
        let mut client = call_from(&inside, "10.88.0.1", 22);
        excluded.accept().expect("not redirected");
        drop(client.kill());
        drop(client.wait());

        // The sidecar hands over to the app at the pod's address, by loopback, and calls out: never back to itself.
        for own in ["10.88.0.1:8080", "127.0.0.1:8080", "[fd88::1]:8080", "[::1]:8080"] {
            connect_marked(own, 0x2102).unwrap_or_else(|error| panic!("{own}: {error}"));
            app.accept().expect("straight to the app");
        }
        for listener in [&sidecar, &outbound] {
            listener.set_nonblocking(true).expect("a socket");
            assert!(listener.accept().is_err(), "nothing came back to the sidecar");
        }
        outbound.set_nonblocking(false).expect("a socket");
        let unmarked = connect("10.88.0.2:80");
        assert_eq!(original_destination(&outbound).to_string(), "10.88.0.2:80");
        drop(unmarked);
        let refused = connect_marked("10.88.0.2:80", 0x2102).expect_err("nobody listens there");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "left the namespace unredirected");
    });
    drop(caller.kill());
    drop(caller.wait());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Waits until the child has really left this network namespace.
fn wait_for_namespace(child: u32) {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let own = namespace("thread-self");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while namespace(&child.to_string()) == own {
        assert!(std::time::Instant::now() < deadline, "the child did not get its namespace");
        std::thread::yield_now();
    }
}

/// A caller in the other namespace: connects and holds the connection.
fn call_from(inside: &str, host: &str, port: u16) -> std::process::Child {
    let script = format!("exec 3<>/dev/tcp/{host}/{port}; read -t 30 -u 3 line");
    let mut words = inside.split_whitespace();
    Command::new(words.next().expect("a program"))
        .args(words)
        .args(["bash", "-c", &script])
        .spawn()
        .expect("bash")
}

#[test]
fn inbound_connections_arrive_and_the_sidecar_does_not_loop() {
    in_namespace(inbound_story);
}

/// The same in a user namespace where only uid 0 exists, so that exclusion goes by mark.
#[test]
fn an_unprivileged_user_namespace_is_enough() {
    const INSIDE: &str = "WEFT_TEST_INSIDE_USER_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        ip("link set lo up");
        return inbound_story();
    }
    let possible =
        Command::new("unshare").args(["-rn", "true"]).output().is_ok_and(|output| output.status.success());
    if !possible {
        return skip("no unprivileged user namespaces");
    }
    let mut unshare = Command::new("unshare");
    unshare.args(["-rn"]).arg(std::env::current_exe().expect("this test")).env(INSIDE, "1");
    let output = unshare
        .args(["--exact", "an_unprivileged_user_namespace_is_enough", "--nocapture"])
        .output()
        .expect("unshare was just there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn without_privilege_the_error_names_the_capability() {
    in_namespace(|| {
        // setpriv drops everything; the namespace stays.
        let binary = env!("CARGO_BIN_EXE_weft-proxy");
        let output = run(
            "setpriv",
            &format!("--bounding-set=-all --inh-caps=-all --reuid=65534 {binary} intercept"),
            "",
        );
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        if message.contains("setpriv:") {
            return skip(&message);
        }
        assert!(!output.status.success());
        assert!(message.contains("CAP_NET_ADMIN"), "{message}");
        let mut nothing = String::new();
        (&output.stdout[..]).read_to_string(&mut nothing).expect("text");
        assert_eq!(nothing, "", "no half success");
    });
}
