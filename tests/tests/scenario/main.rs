//! Stories of users in network namespaces: unmodified programs, real kernels, real sidecars.
//!
//! Each needs namespaces with nftables: root, or unprivileged user namespaces. Where the machine allows neither they
//! are skipped aloud; in CI that is a failure.

mod cardinality;
mod control;
mod counting;
mod drain;
mod graph;
mod protocols;

/// An HTTP server that answers what it saw as JSON and, told where, asks another server first. It knows no proxy.
const ECHO: &str = r#"
import http.server, json, socketserver, sys, urllib.request

port, pod, following = int(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self):
        seen = {"pod": pod, "path": self.path, "headers": [[k.lower(), v] for k, v in self.headers.items()]}
        if following:
            with urllib.request.urlopen(following + self.path, timeout=20) as answer:
                seen["following"] = json.load(answer)
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 256

Server(("0.0.0.0", port), Handler).serve_forever()
"#;

/// Starts [`ECHO`] in a pod.
fn echo(mesh: &mut weft_tests::mesh::Mesh, pod: &str, port: u16, following: &str) -> anyhow::Result<()> {
    let script = mesh.file("echo.py", ECHO)?;
    let (script, number) = (script.display().to_string(), port.to_string());
    let mut program = vec!["python3", &script, &number, pod];
    if !following.is_empty() {
        program.push(following);
    }
    mesh.app(pod, &program)?;
    mesh.listening(pod, port)
}
