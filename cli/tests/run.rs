//! `weft run` as a user meets it: the program's own exit code, signals and output, and nothing left behind.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A `weft run` whose control plane does not exist: everything passes through.
fn weft_run(arguments: &[&str], program: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command
        .args(["run", "--name", "test", "--control-plane", "http://127.0.0.1:9"])
        .args(arguments)
        .arg("--");
    command.args(program).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts a program that says when it is ready for a signal and then waits for it.
fn start_waiting() -> (Child, BufReader<std::process::ChildStdout>) {
    let script = "trap 'echo told; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let mut weft = weft_run(&[], &["sh", "-c", script]).spawn().expect("weft starts");
    let mut output = BufReader::new(weft.stdout.take().expect("piped"));
    let mut line = String::new();
    output.read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    (weft, output)
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("small"))
}

/// A port that was free a moment ago.
fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port().to_string()
}

/// Runs a program in the mesh of `control_plane`, which is joined by its `api`.
fn meshed((control_plane, api): (&str, &str), arguments: &[&str], program: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command
        .args(["run", "--control-plane", control_plane, "--api", api])
        .args(arguments)
        .arg("--")
        .args(program);
    command
}

/// Ends what it holds, however the test ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn two_programs_meet_by_name_and_the_graph_sees_it() {
    let weft = env!("CARGO_BIN_EXE_weft");
    let directory = tempfile::tempdir().expect("a directory");
    let ready = directory.path().join("ready.json");
    let off = ["--otlp-grpc-listen", "off", "--otlp-http-listen", "off"];
    let control_plane = Command::new(weft)
        .args(["control-plane", "--control-tls-listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0"])
        .args(off)
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .arg("--ready-file")
        .arg(&ready)
        .stderr(Stdio::null())
        .spawn();
    let _control_plane = Ended(control_plane.expect("the control plane starts"));
    let mut bound = serde_json::Value::Null;
    eventually("the control plane is ready", || {
        bound = std::fs::read(&ready)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        bound.is_object()
    });
    let control = format!("https://{}", bound["control_tls"].as_str().expect("an address"));
    let api = bound["api"].as_str().expect("an address").to_owned();
    let mesh = (&*control, &*api);

    let port = free_port();
    let serve = ["python3", "-m", "http.server", "--bind", "127.0.0.1", &port];
    let orders = meshed(mesh, &["--name", "orders", "--port", &port], &serve)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let orders = Ended(orders.expect("weft run starts"));

    let url = format!("http://orders:{port}/");
    let call = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", &url];
    let mut caller = meshed(mesh, &["--name", "caller"], &call);
    eventually("the call arrives", || caller.output().expect("runs").stdout == b"200");
    let mut graph = Command::new(weft);
    graph.args(["stat", "caller", "orders", "-o", "json", "--api", &api]);
    eventually("the graph shows it", || {
        let output = graph.output().expect("runs");
        output.status.success()
            && String::from_utf8_lossy(&output.stdout).contains("\"workload:default/orders\"")
    });

    // The endpoint lives as long as the program.
    drop(orders);
    eventually("the endpoint goes away", || caller.output().expect("runs").stdout != b"200");
}

#[test]
fn the_exit_code_is_the_programs() {
    assert_eq!(weft_run(&[], &["sh", "-c", "exit 7"]).output().expect("runs").status.code(), Some(7));
    let missing = weft_run(&[], &["/no/such/program"]).output().expect("runs");
    assert_eq!(missing.status.code(), Some(127));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("cannot start /no/such/program"));
}

#[test]
fn the_program_is_told_its_port_and_its_proxy() {
    let output = weft_run(&["--port", "9917"], &["sh", "-c", "echo $PORT $http_proxy $https_proxy"]);
    let output = output_of(output);
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(words[0], "9917");
    assert!(words[1].starts_with("http://127.0.0.1:") && words[1] == words[2], "{output}");
}

fn output_of(mut command: Command) -> String {
    String::from_utf8(command.output().expect("runs").stdout).expect("text")
}

#[test]
fn signals_reach_the_program() {
    let (mut weft, mut output) = start_waiting();
    kill(pid(&weft), Signal::SIGTERM).expect("weft runs");
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("text");
    assert_eq!(rest, "told\n");
    assert_eq!(weft.wait().expect("ends").code(), Some(9));
}

#[test]
fn not_even_sigkill_leaves_anything_behind() {
    let (mut weft, mut output) = start_waiting();
    weft.kill().expect("weft runs");
    weft.wait().expect("ends");
    // The pipe ends when its last writer is gone, which is the program (or a `sleep` of it).
    output.read_to_string(&mut String::new()).expect("text");
}
