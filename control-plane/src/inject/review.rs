//! AdmissionReview `admission.k8s.io/v1`: the API server's question, and the answer.
//!
//! In: a request's body. Out: what is asked ([`Question`]); and for its pod and namespace, the body of the answer. Pure. A
//! question that cannot be read is the asker's fault (400); one about something else than a new pod is answered with yes. A pod
//! that asks for the impossible is refused with a message that its author sees. Surprise: the patch is base64 within JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Namespace, Reason, Refusal, Settings, Subject, Verdict, inject, patch};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// Warnings at most: the API server drops those that go beyond 4 KiB.
const WARNINGS_MAX: usize = 16;

/// Unprocessable: the pod can be read, and what it asks for cannot be done.
const REFUSED: u16 = 422;

/// What is asked. Not to be cloned: it may be megabytes.
#[derive(Debug, PartialEq)]
pub struct Question {
    /// Names the question in its answer.
    uid: String,
    /// The namespace of the pod.
    pub namespace: String,
    /// The pod; `None` if something else is asked about.
    pub pod: Option<Value>,
}

/// The body is no question.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// It is no JSON, or another object.
    #[error("the body is no AdmissionReview")]
    Json(#[from] serde_json::Error),
    /// It is of another version, or has no request.
    #[error("the body is {0}, and not an AdmissionReview of admission.k8s.io/v1 with a request")]
    Other(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

#[derive(Deserialize)]
struct Request {
    uid: String,
    kind: GroupKind,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize)]
struct GroupKind {
    #[serde(default)]
    group: String,
    kind: String,
}

impl Question {
    /// Reads a body.
    ///
    /// # Errors
    /// When it is no question.
    pub fn read(body: &[u8]) -> Result<Self, Malformed> {
        let Review { api_version, kind, request } = serde_json::from_slice(body)?;
        let request = request.filter(|_| api_version == API_VERSION && kind == KIND);
        let Some(Request { uid, kind: GroupKind { group, kind: of }, namespace, operation, object }) =
            request
        else {
            return Err(Malformed::Other(format!("{api_version} {kind}").chars().take(100).collect()));
        };
        let is_new_pod = group.is_empty() && of == "Pod" && operation == "CREATE";
        Ok(Self { uid, namespace, pod: is_new_pod.then_some(object) })
    }

    /// Decides; the outcome's word is for metrics.
    #[must_use]
    pub fn decide(&self, namespace: &Namespace, settings: &Settings) -> Decision {
        let Some(pod) = &self.pod else { return self.leave("not_a_pod", Vec::new()) };
        match inject(Subject { pod, namespace, owner: None, asked: false }, settings) {
            Ok(Answer { verdict: Verdict::Injected { pod: injected, .. }, warnings }) => {
                let patch = patch::diff(pod, &injected);
                match serde_json::to_vec(&patch) {
                    Ok(patch) => self.answer("injected", warnings, |response| {
                        response["patchType"] = json!("JSONPatch");
                        response["patch"] = json!(STANDARD.encode(patch));
                    }),
                    // Cannot happen to JSON that was read; a pod without a sidecar is better than none.
                    Err(error) => self.leave("failed", vec![format!("no sidecar: {error}")]),
                }
            }
            Ok(Answer { verdict: Verdict::Unchanged, warnings }) => self.leave("unchanged", warnings),
            Ok(Answer { verdict: Verdict::LeftAlone(reason), warnings }) => {
                self.leave(reason.word(), warnings)
            }
            Err(refusal) => self.refuse(&refusal),
        }
    }

    /// The answer where the namespace cannot be read: the pod starts without, and the reconciler will find it.
    #[must_use]
    pub fn without_namespace(&self) -> Decision {
        let warning =
            format!("no sidecar: namespace {} could not be read; make the pod anew later", self.namespace);
        self.leave("namespace_unknown", vec![warning])
    }

    fn leave(&self, word: &'static str, warnings: Vec<String>) -> Decision {
        self.answer(word, warnings, |_| {})
    }

    fn refuse(&self, refusal: &Refusal) -> Decision {
        self.answer("refused", Vec::new(), |response| {
            response["allowed"] = json!(false);
            response["status"] =
                json!({ "code": REFUSED, "reason": "Invalid", "message": format!("weft cannot inject this pod: {refusal}") });
        })
    }

    fn answer(
        &self,
        word: &'static str,
        mut warnings: Vec<String>,
        edit: impl FnOnce(&mut Value),
    ) -> Decision {
        let mut response = json!({ "uid": self.uid, "allowed": true });
        warnings.truncate(WARNINGS_MAX);
        if !warnings.is_empty() {
            let warnings: Vec<String> = warnings.iter().map(|warning| format!("weft: {warning}")).collect();
            response["warnings"] = json!(warnings);
        }
        edit(&mut response);
        Decision { word, body: json!({ "apiVersion": API_VERSION, "kind": KIND, "response": response }) }
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What became of the pod, in a word.
    pub word: &'static str,
    /// The AdmissionReview with the response.
    pub body: Value,
}

/// Every word that a [`Decision`] may have besides those of [`Reason`].
pub(super) const WORDS: [&str; 6] =
    ["injected", "unchanged", "refused", "not_a_pod", "namespace_unknown", "failed"];

/// All reasons' words, for metrics that exist before they count.
pub(super) fn words() -> impl Iterator<Item = &'static str> {
    let reasons = [
        Reason::Namespace(String::new()),
        Reason::NotAsked,
        Reason::OptedOut("pod"),
        Reason::HostNetwork,
        Reason::Windows,
        Reason::Foreign(""),
        Reason::NameTaken(String::new()),
        Reason::PortTaken { container: String::new(), port: 0 },
    ];
    WORDS.into_iter().chain(reasons.map(|reason| reason.word()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn review(object: &Value) -> Vec<u8> {
        let request = json!({
            "uid": "u1", "kind": { "group": "", "version": "v1", "kind": "Pod" }, "namespace": "shop",
            "operation": "CREATE", "object": object, "dryRun": false, "options": {},
        });
        serde_json::to_vec(&json!({ "apiVersion": API_VERSION, "kind": KIND, "request": request }))
            .expect("JSON")
    }

    fn enabled() -> Namespace {
        let labels = [("weft.dev/inject".to_owned(), "enabled".to_owned())].into();
        Namespace { name: "shop".into(), labels, ..Namespace::default() }
    }

    fn decide(object: &Value, namespace: &Namespace) -> Decision {
        let question = Question::read(&review(object)).expect("a question");
        question.decide(namespace, &Settings::default())
    }

    #[test]
    fn the_patch_makes_the_injected_pod() {
        let pod = json!({ "metadata": { "name": "a" }, "spec": { "containers": [{ "name": "app" }] } });
        let decision = decide(&pod, &enabled());
        assert_eq!(decision.word, "injected");
        let response = &decision.body["response"];
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("u1"), &json!(true)));
        let patch = STANDARD.decode(response["patch"].as_str().expect("a text")).expect("base64");
        let patch: json_patch::Patch = serde_json::from_slice(&patch).expect("a patch");
        let mut patched = pod.clone();
        json_patch::patch(&mut patched, &patch).expect("applies");
        let subject = Subject { pod: &pod, namespace: &enabled(), owner: None, asked: false };
        let answer = inject(subject, &Settings::default()).expect("injected");
        assert_eq!(Some(&patched), answer.pod());
    }

    #[test]
    fn the_impossible_is_refused_with_place_and_fix() {
        let pod = json!({
            "metadata": { "annotations": { "weft.dev/workers": "none" } },
            "spec": { "containers": [{ "name": "app" }] },
        });
        let response = &decide(&pod, &enabled()).body["response"];
        assert_eq!(response["allowed"], json!(false));
        assert_eq!(
            response["status"]["message"],
            json!(
                "weft cannot inject this pod: metadata.annotations[weft.dev/workers]: write a number from 1 to 64"
            )
        );
        // Who is not of the mesh is not bothered.
        assert_eq!(
            decide(&json!({ "spec": { "containers": [{ "name": "app" }] } }), &Namespace::default()).word,
            "not_asked"
        );
    }

    #[test]
    fn a_pod_that_is_left_alone_says_why() {
        let pod =
            json!({ "metadata": {}, "spec": { "hostNetwork": true, "containers": [{ "name": "app" }] } });
        let decision = decide(&pod, &enabled());
        assert_eq!(decision.word, "host_network");
        let warning = decision.body["response"]["warnings"][0].as_str().expect("a warning");
        assert!(warning.starts_with("weft: no sidecar: the pod uses its node's network"), "{warning}");
    }

    #[test]
    fn what_is_no_question_is_told_from_one_about_something_else() {
        assert!(matches!(Question::read(b"{}"), Err(Malformed::Other(_))));
        assert!(matches!(Question::read(b"["), Err(Malformed::Json(_))));
        let other = String::from_utf8(review(&json!(null))).expect("UTF-8").replace("\"Pod\"", "\"Service\"");
        let question = Question::read(other.as_bytes()).expect("a question");
        assert_eq!(question.decide(&enabled(), &Settings::default()).word, "not_a_pod");
    }

    #[test]
    fn every_word_is_known_before_it_is_said() {
        let words: Vec<_> = words().collect();
        let unique: std::collections::BTreeSet<_> = words.iter().collect();
        assert_eq!(unique.len(), words.len());
    }

    proptest! {
        #[test]
        fn no_object_breaks_the_answer(object in "\\PC{0,60}", kind in 0..4_u8) {
            let object = match kind {
                0 => json!(object),
                1 => json!({ "spec": object }),
                2 => json!({ "metadata": object, "spec": { "containers": [object] } }),
                _ => json!({ "metadata": { "annotations": { "weft.dev/status": object } }, "spec": {} }),
            };
            let decision = decide(&object, &enabled());
            prop_assert!(words().any(|word| word == decision.word));
        }

        #[test]
        fn no_bytes_break_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Question::read(&bytes).is_err());
        }
    }
}
