//! `weft dashboard`: the control plane's web page, in a browser on this machine.
//!
//! In: a cluster, or the address of an API. Out: a port of this machine's loopback, whose connections go through the API server to
//! the pod that leads; its address, printed, and a browser. Invariants: each connection stands for itself, so that a pod that goes
//! takes only its own along, and the next goes to the pod that came after it; their number is bounded.
//!
//! Surprise: a connection that finds no pod is answered here, because a browser shows what it reads and hides why it does not.

use std::io::IsTerminal as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use console::style;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::api::DEFAULT;
use crate::kubernetes::find::ControlPlane;
use crate::kubernetes::forward::Stream;
use crate::kubernetes::{Cluster, chain};
use crate::output;

/// The port, if it is free.
const PORT: u16 = 8080;
/// Connections at a time: a few browsers with their event streams.
const CONNECTIONS_MAX: usize = 64;
/// What opens a page, in the order of preference.
const OPENERS: [&str; 4] = ["xdg-open", "open", "wslview", "gio"];

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft dashboard                   opens a browser
  weft dashboard --print           only says where it is
  weft dashboard --port 9000       on a port of your choice
  weft dashboard --context prod    of another cluster

It stays until Ctrl-C. Nobody on other machines can use it; whoever can use this one can.")]
pub(crate) struct DashboardArgs {
    /// The local port; without it 8080, or any that is free
    #[arg(long)]
    port: Option<u16>,
    /// Open no browser
    #[arg(long)]
    print: bool,
    #[command(flatten)]
    api: crate::args::ApiArgs,
}

pub(crate) async fn run(arguments: DashboardArgs) -> anyhow::Result<ExitCode> {
    let DashboardArgs { port, print, api } = arguments;
    if let Some(url) = api.address() {
        let url = crate::api::Api::new(url)?.base().to_owned();
        announce(&url, None, print);
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = match Cluster::open(api.context.as_deref()).await {
        Ok(cluster) => cluster,
        Err(crate::kubernetes::Error::None) => {
            announce(DEFAULT, None, print);
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(error.into()),
    };
    let words = cluster.words();
    let plane = ControlPlane::find(cluster).await.with_context(|| {
        format!("no control plane in {words}\n  for one on this machine: weft dashboard --api {DEFAULT}")
    })?;
    let listener = listen(port).await?;
    let url = format!("http://{}", listener.local_addr()?);
    announce(&url, Some(&plane.words()), print);
    tokio::select! {
        () = forward(listener, Arc::new(plane)) => {}
        ended = tokio::signal::ctrl_c() => ended.context("cannot wait for Ctrl-C")?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn listen(port: Option<u16>) -> anyhow::Result<TcpListener> {
    let wanted = ("127.0.0.1", port.unwrap_or(PORT));
    match (TcpListener::bind(wanted).await, port) {
        (Ok(listener), _) => Ok(listener),
        (Err(error), Some(port)) => Err(error).with_context(|| format!("cannot listen on port {port}")),
        (Err(_), None) => TcpListener::bind(("127.0.0.1", 0)).await.context("cannot listen on any port"),
    }
}

fn announce(url: &str, through: Option<&str>, print: bool) {
    let through = through.map(|words| format!("  {}", style(format!("through {words}")).dim()));
    output::line(format_args!("{}{}", style(url).cyan().underlined(), through.unwrap_or_default()));
    if !print && std::io::stdout().is_terminal() && !open(url) {
        output::note("no browser could be opened: open the address above");
    }
}

/// Opens a browser; `false` where there is none.
fn open(url: &str) -> bool {
    OPENERS.iter().any(|program| {
        let mut command = Command::new(program);
        if *program == "gio" {
            command.arg("open");
        }
        let quiet = command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.spawn().is_ok()
    })
}

/// Accepts until it is dropped.
async fn forward(listener: TcpListener, plane: Arc<ControlPlane>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Who comes when all places are taken waits in the kernel.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let plane = Arc::clone(&plane);
                tokio::spawn(async move {
                    carry(stream, &plane).await;
                    drop(place);
                });
            }
            // Out of descriptors, as a rule: some will be given back.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// One connection, to its end.
async fn carry(mut stream: TcpStream, plane: &ControlPlane) {
    let why = match plane.connect().await {
        Ok(forwarded) => {
            let (pod, complaint) = forwarded.split();
            match exchange(&mut stream, pod).await {
                // Nothing came back: the kubelet may say why.
                0 => complaint.words().await,
                _ => None,
            }
        }
        Err(error) => Some(chain(&error)),
    };
    if let Some(why) = why {
        refuse(stream, &why).await;
    }
}

/// Carries bytes both ways until the pod has no more; how many came from it.
async fn exchange(stream: &mut TcpStream, pod: Box<dyn Stream>) -> u64 {
    let (mut from_browser, mut to_browser) = stream.split();
    let (mut from_pod, mut to_pod) = tokio::io::split(pod);
    let up = async {
        // Whether that broke off shows in what comes back.
        drop(copy(&mut from_browser, &mut to_pod).await);
        to_pod.shutdown().await.ok();
    };
    let down = async {
        let (mut came, mut buffer) = (0, vec![0; 16 * 1024]);
        while let Ok(length) = from_pod.read(&mut buffer).await {
            came += length as u64;
            if length == 0 || to_browser.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
        came
    };
    let mut down = std::pin::pin!(down);
    tokio::select! {
        came = &mut down => came,
        () = up => down.await,
    }
}

/// Answers in the place of a pod that is not there.
async fn refuse(mut stream: TcpStream, why: &str) {
    let body = format!("The control plane cannot be reached: {why}\nThis page tries again by itself.\n");
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
         refresh: 3\r\ncache-control: no-store\r\nconnection: close\r\n\r\n",
        body.len()
    );
    // Whoever asked may be gone, and then nobody needs to know.
    let answered = async {
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.shutdown().await?;
        // The question may still be unread: closing on it would take the answer along.
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    drop(tokio::time::timeout(Duration::from_secs(2), answered).await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::tests::{Port, Server, echo};

    /// What a browser would get.
    async fn ask(address: std::net::SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream
            .write_all(b"GET /page HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
            .await
            .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        answer
    }

    #[tokio::test]
    async fn connections_go_to_whoever_leads_and_say_when_nobody_does() {
        let server = Server::installed();
        let pod = Port::Open(echo().await);
        server.pod("a", pod, true);
        let plane = ControlPlane::find(server.start().await).await.expect("found");
        let listener = listen(Some(0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(forward(listener, Arc::new(plane)));
        let answer = ask(address).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("/page"), "{answer}");
        server.gone("a");
        let nobody = ask(address).await;
        assert!(nobody.starts_with("HTTP/1.1 503") && nobody.contains("tries again"), "{nobody}");
        server.pod("b", pod, true);
        assert!(ask(address).await.starts_with("HTTP/1.1 200"));
        server.gone("b");
        server.pod("c", Port::Closed, true);
        let closed = ask(address).await;
        assert!(closed.starts_with("HTTP/1.1 503") && closed.contains("connection refused"), "{closed}");
    }
}
