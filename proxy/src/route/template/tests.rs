use proptest::prelude::*;

use super::*;

fn name(learner: &Arc<Learner>, path: &str) -> String {
    let id = Cache::new(Arc::clone(learner)).find(path, Kind::Http);
    learner.route(id).name().to_string()
}

fn once(path: &str) -> String {
    name(&Arc::new(Learner::new(200)), path)
}

#[test]
fn data_is_told_by_its_shape() {
    for (path, expected) in [
        ("/", "/"),
        ("", "/"),
        ("/users", "/users"),
        ("/users/", "/users"),
        ("//users///42/", "/users/{id}"),
        ("/users/42/orders/7", "/users/{id}/orders/{id}"),
        ("/users/-5", "/users/{id}"),
        ("/point/1.5,2.5", "/point/{id}"),
        ("/v1/things", "/v1/things"),
        ("/oauth2/token", "/oauth2/token"),
        ("/img/42.png", "/img/{id}.png"),
        ("/img/logo.png", "/img/logo.png"),
        ("/r/1.2.3", "/r/{id}"),
        ("/o/3f2504e0-4f89-11d3-9a0c-0305e82c3301", "/o/{uuid}"),
        ("/o/3F2504E0-4F89-11D3-9A0C-0305E82C3301.json", "/o/{uuid}.json"),
        ("/c/3f2a1b9", "/c/{hash}"),
        ("/c/e83c5163316f89bfbde7d9ab23ca2e25604af290", "/c/{hash}"),
        ("/c/507f1f77bcf86cd799439011", "/c/{hash}"),
        ("/c/facade", "/c/facade"),
        ("/c/defaced", "/c/defaced"),
        ("/d/2024-01-31", "/d/{date}"),
        ("/d/2024-01", "/d/{date}"),
        ("/d/2024-01-31T10:00:00Z", "/d/{date}"),
        ("/d/2024-01-31T10:00:00.000Z", "/d/{date}"),
        ("/d/20240131", "/d/{id}"),
        ("/t/dQw4w9WgXcQ0fT2aL7", "/t/{token}"),
        ("/t/01ARZ3NDEKTSV4RRFFQ69G5FAV", "/t/{token}"),
        ("/t/cus_9s6XKzkNRiz8i3", "/t/{token}"),
        ("/t/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "/t/{token}"),
        ("/t/getUserAccountSettings", "/t/getUserAccountSettings"),
        ("/t/how-to-build-a-house-in-10-days", "/t/how-to-build-a-house-in-10-days"),
        ("/m/ann@example.org", "/m/{email}"),
        ("/m/ann%40example.org", "/m/{email}"),
        ("/m/ann.b@example.co.uk", "/m/{email}"),
        ("/m/@ann", "/m/@ann"),
        ("/q/hello%20world", "/q/{param}"),
        ("/q/a%2Fb/c", "/q/{param}/c"),
        ("/q/größe", "/q/{param}"),
        ("/q/{id}", "/q/{id}"),
        ("/q/{what}", "/q/{param}"),
        ("/a/b/c/d/e/f/g/h/i/j/k/l", "/a/b/c/d/e/f/g/h/i/j/k/l"),
        ("/a/b/c/d/e/f/g/h/i/j/k/l/m/n", "/a/b/c/d/e/f/g/h/i/j/k/l/{rest}"),
    ] {
        assert_eq!(once(path), expected, "{path}");
    }
    assert_eq!(once(&format!("/x/{}", "z".repeat(SEGMENT_MAX + 1))), "/x/{param}");
}

#[test]
fn grpc_methods_are_vocabulary() {
    let learner = Arc::new(Learner::new(200));
    let mut cache = Cache::new(Arc::clone(&learner));
    for i in 0..100 {
        let path = format!("/shop.v1.Orders/Method{i}");
        let id = cache.find(&path, Kind::Grpc);
        assert_eq!(**learner.route(id).name(), *path);
    }
    assert_eq!(learner.len(), 100);
}

#[test]
fn many_words_in_one_place_are_data() {
    let learner = Arc::new(Learner::new(200));
    let mut cache = Cache::new(Arc::clone(&learner));
    let word = |i: usize| format!("/users/{}/orders", random_word(i));
    let first = cache.find(&word(0), Kind::Http);
    let held = learner.route(first);
    assert_eq!(**held.name(), *word(0));
    for i in 1..=COLLAPSE_ABOVE {
        cache.find(&word(i), Kind::Http);
    }
    assert_eq!(learner.len(), 1);
    assert_eq!(name(&learner, &word(0)), "/users/{param}/orders");
    // Who holds a folded route finds its successor, by reference and by id.
    assert_eq!(&**held.current().name(), "/users/{param}/orders");
    assert_eq!(&**learner.route(first).name(), "/users/{param}/orders");
    // Data of a known shape keeps its own name.
    assert_eq!(name(&learner, "/users/42/orders"), "/users/{id}/orders");
}

#[test]
fn what_nobody_records_any_more_makes_room() {
    let learner = Arc::new(Learner::new(4));
    let mut cache = Cache::new(Arc::clone(&learner));
    let kept = cache.find("/kept/a", Kind::Http);
    let held = learner.route(kept);
    for path in ["/b", "/c", "/d"] {
        cache.find(path, Kind::Http);
    }
    assert_eq!(cache.find("/real", Kind::Http), RouteId::OTHER);
    learner.forget_idle();
    assert_eq!(cache.find("/real", Kind::Http), RouteId::OTHER, "in doubt the first time");
    learner.forget_idle();
    assert_eq!(learner.len(), 1);
    assert_ne!(cache.find("/real", Kind::Http), RouteId::OTHER);
    assert_eq!(cache.find("/kept/a", Kind::Http), kept);
    assert_eq!(&**held.current().name(), "/kept/a");
}

#[test]
fn a_cap_of_nothing_learns_nothing() {
    let learner = Arc::new(Learner::new(0));
    assert_eq!(name(&learner, "/a"), "__other__");
    assert!(learner.is_empty());
}

/// A word without any shape that gives it away.
fn random_word(mut i: usize) -> String {
    let mut word = String::new();
    for _ in 0..5 {
        word.push(char::from(b'a' + (i % 26) as u8));
        i = i / 26 + i % 7;
    }
    word
}

#[test]
fn a_hundred_thousand_paths_stay_within_the_cap_and_in_memory() {
    let mut seed = fastrand::Rng::with_seed(7);
    let shapes: [&mut dyn FnMut(usize) -> String; 4] = [
        &mut |i| format!("/{}/{}", random_word(i), random_word(i / 3)),
        &mut |i| format!("/orders/{i}/items/{:x}", i * 7_919_999),
        // Wide at every level, but never wide enough to collapse.
        &mut |i| format!("/a{}/b{}/c{}/d{}", i % 20, i / 20 % 20, i / 400 % 20, i / 8000),
        &mut |_| {
            let depth = seed.usize(0..20);
            (0..depth).map(|_| format!("/{}", random_word(seed.usize(0..60)))).collect()
        },
    ];
    for (shape, paths) in shapes.into_iter().enumerate() {
        let learner = Arc::new(Learner::new(200));
        let mut cache = Cache::new(Arc::clone(&learner));
        let mut other = 0;
        for i in 0..100_000 {
            other += usize::from(cache.find(&paths(i), Kind::Http) == RouteId::OTHER);
        }
        let growth = learner.growth();
        assert!(growth.routes.len() <= 200, "shape {shape}");
        assert!(growth.tree.nodes() <= 200 * (DEPTH_MAX + 1), "shape {shape}: {} nodes", growth.tree.nodes());
        assert!(growth.folded.len() <= FOLDED_MAX);
        assert_eq!(other > 0, learner.is_full(), "shape {shape}: folded exactly when full");
    }
}

#[test]
fn all_workers_agree() {
    let learner = Arc::new(Learner::new(50));
    let (mut one, mut two) = (Cache::new(Arc::clone(&learner)), Cache::new(Arc::clone(&learner)));
    for i in 0..1000 {
        let path = format!("/x/{}/y/{}", random_word(i % 90), random_word(i % 11));
        assert_eq!(one.find(&path, Kind::Http), two.find(&path, Kind::Http));
    }
}

fn paths() -> impl Strategy<Value = Vec<String>> {
    let segment = prop_oneof![
        "[a-c]{1,2}",
        "[a-z]{3}",
        "[0-9]{1,4}",
        "[0-9a-f]{7,12}",
        "\\{(id|uuid|param|rest|token)\\}",
        "[ -~]{0,20}",
        ".{0,6}",
        "[a-c]\\.(png|js|x1)",
        "[0-9]{2}\\.(png|js|x1)",
    ];
    let path =
        proptest::collection::vec(segment, 0..16).prop_map(|segments| format!("/{}", segments.join("/")));
    proptest::collection::vec(path, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_cap_holds_and_a_template_is_its_own(paths in paths(), cap in 1_usize..60) {
        let learner = Arc::new(Learner::new(cap));
        let mut cache = Cache::new(Arc::clone(&learner));
        for path in &paths {
            let id = cache.find(path, Kind::Http);
            prop_assert!(learner.len() <= cap);
            let template = learner.route(id);
            if id != RouteId::OTHER {
                prop_assert_eq!(cache.find(template.name(), Kind::Http), id, "{} -> {}", path, template.name());
            }
        }
        let mut names: Vec<_> = learner.growth().routes.values().map(|route| Arc::clone(route.name())).collect();
        names.sort();
        let distinct = names.len();
        names.dedup();
        prop_assert_eq!(names.len(), distinct, "no two routes share a name");
    }

    #[test]
    fn the_same_paths_give_the_same_templates(paths in paths()) {
        let run = || {
            let learner = Arc::new(Learner::new(30));
            let mut cache = Cache::new(Arc::clone(&learner));
            let ids: Vec<_> = paths.iter().map(|path| cache.find(path, Kind::Http)).collect();
            ids.into_iter().map(|id| learner.route(id).name().to_string()).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn a_placeholder_is_classified_as_itself(segment in "[ -~]{1,40}") {
        let placeholder = segment::placeholder_of(&segment);
        prop_assert_eq!(segment::placeholder_of(&placeholder), placeholder);
    }
}
