use std::time::Duration;

use super::*;

fn service(name: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n")
}

fn has(live: &Live, name: &str) -> bool {
    live.directory().has_service(&weft_wire::ServiceId::new("default", name).unwrap())
}

/// Waits for a condition; the deadline is far away because only a failure ever reaches it.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn write_atomically(directory: &Path, name: &str, text: &str) {
    let temporary = directory.join(format!(".{name}.tmp"));
    std::fs::write(&temporary, text).unwrap();
    std::fs::rename(temporary, directory.join(name)).unwrap();
}

#[tokio::test]
async fn files_come_change_break_and_go() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    std::fs::create_dir(path.join("sub")).unwrap();
    std::fs::write(path.join("sub/a.yaml"), service("a")).unwrap();
    let live = Live::default();
    let (files, problems) = open(path.to_owned(), &live).unwrap();
    assert!(has(&live, "a"), "what is there at the start is there before anything runs");
    let task = tokio::spawn(files.run());

    write_atomically(path, "b.yaml", &service("b"));
    eventually("a new file", || has(&live, "b")).await;

    write_atomically(path, "b.yaml", "nonsense: [");
    eventually("a broken file is reported", || problems.borrow().problems.len() == 1).await;
    assert_eq!(problems.borrow().problems[0].file, "b.yaml");
    assert!(has(&live, "b"), "and keeps its last good state");

    write_atomically(path, "b.yaml", &service("c"));
    eventually("a mended file", || has(&live, "c") && !has(&live, "b")).await;
    eventually("no problems", || problems.borrow().problems.is_empty()).await;

    std::fs::remove_file(path.join("sub/a.yaml")).unwrap();
    eventually("a removed file", || !has(&live, "a")).await;
    task.abort();
}

#[test]
fn a_maze_of_links_ends_and_takes_nothing_away() {
    use std::os::unix::fs::symlink;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    symlink(path, path.join("left")).unwrap();
    symlink(path, path.join("right")).unwrap();
    let mut found = Found::default();
    found.list(path, "", 0);
    assert_eq!(found.directories, DIRECTORIES_MAX);
    assert!(!found.root_lost && !found.is_gone("known.yaml"), "what was not looked at is not gone");
}

#[tokio::test]
async fn a_config_map_is_swapped_by_a_link() {
    use std::os::unix::fs::symlink;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    for (version, name) in [("..1", "one"), ("..2", "two")] {
        std::fs::create_dir(path.join(version)).unwrap();
        std::fs::write(path.join(version).join("services.yaml"), service(name)).unwrap();
    }
    symlink("..1", path.join("..data")).unwrap();
    symlink("..data/services.yaml", path.join("services.yaml")).unwrap();
    let live = Live::default();
    let (files, _problems) = open(path.to_owned(), &live).unwrap();
    assert!(has(&live, "one") && !has(&live, "two"), "read once, through the link");
    let task = tokio::spawn(files.run());

    symlink("..2", path.join("..data_tmp")).unwrap();
    std::fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
    eventually("the swap", || has(&live, "two") && !has(&live, "one")).await;
    task.abort();
}

#[test]
fn a_directory_that_vanishes_takes_nothing_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("source");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("a.yaml"), service("a")).unwrap();
    let mut state = State { directory: path.clone(), seen: HashMap::new(), catalog: Catalog::default() };
    assert_eq!(state.scan().events.len(), 1);
    std::fs::rename(&path, directory.path().join("elsewhere")).unwrap();
    let outcome = state.scan();
    assert!(outcome.events.is_empty());
    assert!(outcome.root_replaced);
    assert_eq!(outcome.problems.len(), 1);
}

#[test]
fn a_missing_directory_is_an_error_at_the_start() {
    let error = open("/nonexistent/weft".into(), &Live::default()).err().expect("an error");
    assert_eq!(error.to_string(), "read source directory /nonexistent/weft");
}
