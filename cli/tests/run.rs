//! `weft run` as a user meets it: the program's own exit code, signals and output, and nothing left behind.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

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
