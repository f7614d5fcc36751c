//! Puts the dashboard where the API embeds it from.

fn main() {
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo")).join("dashboard");
    std::fs::create_dir_all(&out).expect("OUT_DIR is writable");
    std::fs::write(
        out.join("index.html"),
        "<!doctype html><title>Weft</title><p>Built without the dashboard.\n",
    )
    .expect("OUT_DIR is writable");
    println!("cargo::rerun-if-changed=build.rs");
}
