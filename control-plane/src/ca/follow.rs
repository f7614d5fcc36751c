//! Taking over what other control planes that share the place have written.
//!
//! Invariant: what cannot be read replaces nothing; the authority in use goes on. Surprise: a document that is gone is written
//! again from memory: whoever deleted it would otherwise have cut off every sidecar with the next restart.

use std::sync::Arc;
use std::time::SystemTime;

use tracing::{info, warn};

use super::authority::{Authority, Offer};
use super::store::{Document, Kept, Version};
use super::{CONFLICTS_MAX, Ca, Refusal, brought, kept, token};

impl Ca {
    /// Completes when somebody else may have written.
    pub(super) async fn changed(&self) {
        match &self.0.store {
            Some(store) => store.changed().await,
            None => std::future::pending().await,
        }
    }

    /// Takes over what others have written.
    ///
    /// # Errors
    /// When it cannot be read now.
    pub(super) async fn catch_up(&self) -> Result<(), Refusal> {
        let mut version = self.0.changing.lock().await;
        let authority = self.reread(&mut version).await;
        drop(version);
        // A token that was taken back is so whatever became of the authority.
        let mut version = self.0.changing_tokens.lock().await;
        self.reread_tokens(&mut version).await.and(authority)
    }

    /// Takes over the authority of whoever wrote last.
    pub(super) async fn reread(&self, version: &mut Option<Version>) -> Result<(), Refusal> {
        for _ in 0..CONFLICTS_MAX {
            let found = self.read(Document::Authority).await?;
            let Some(found) = found.as_ref().filter(|found| !found.bytes.is_empty()) else {
                warn!("what the authority keeps is gone from its place: it is written again from memory");
                *version = found.map(|found| found.version);
                let authority = self.authority();
                let document = kept::write(&authority).map_err(|_| Refusal::Internal)?;
                if self.write(Document::Authority, document, Some(authority.bundle()), version).await? {
                    return Ok(());
                }
                continue;
            };
            if version.as_ref() != Some(&found.version) {
                let followed = self.understand(found).await?;
                *version = Some(found.version.clone());
                self.take_over(followed);
            }
            return Ok(());
        }
        Err(Refusal::Internal)
    }

    /// Takes over the tokens of whoever wrote last.
    pub(super) async fn reread_tokens(&self, version: &mut Option<Version>) -> Result<(), Refusal> {
        let found = self.read(Document::Tokens).await?;
        let Some(found) = found.as_ref().filter(|found| !found.bytes.is_empty()) else {
            // No token was ever made, or somebody took all of them back.
            if version.is_some() {
                warn!("the join tokens are gone from their place: none is good any more");
                self.0.tokens.store(Arc::default());
            }
            *version = found.map(|found| found.version);
            return Ok(());
        };
        if version.as_ref() == Some(&found.version) {
            return Ok(());
        }
        let tokens: token::Tokens =
            serde_json::from_slice(&found.bytes).map_err(|error| self.senseless(Document::Tokens, &error))?;
        self.0.tokens.store(Arc::new(tokens));
        *version = Some(found.version.clone());
        Ok(())
    }

    async fn read(&self, document: Document) -> Result<Option<Kept>, Refusal> {
        let Some(store) = &self.0.store else { return Ok(None) };
        store.read(document).await.map_err(|error| {
            warn!(place = store.place(document), error = &*error, "cannot be read; what is known goes on");
            self.0.metrics.store_failed();
            Refusal::Internal
        })
    }

    async fn understand(&self, found: &Kept) -> Result<Authority, Refusal> {
        let current = self.authority();
        let brought = self.brought().await;
        kept::follow(&found.bytes, &current, brought, SystemTime::now())
            .map_err(|error| self.senseless(Document::Authority, &error))
    }

    /// The issuer in `--ca-dir`, if there is one that can be used.
    async fn brought(&self) -> Option<Offer> {
        let directory = self.0.brought.clone()?;
        let now = SystemTime::now();
        tokio::task::spawn_blocking(move || brought::read(&directory, now)).await.ok()?.ok()
    }

    fn take_over(&self, authority: Authority) {
        let before = self.authority();
        let roots = |authority: &Authority| -> Vec<[u8; 32]> {
            authority.roots().iter().map(|root| root.certificate.pin).collect()
        };
        let moved = roots(&before) != roots(&authority)
            || before.issuer().certificate != authority.issuer().certificate;
        self.0.authority.store(Arc::new(authority));
        if moved {
            let authority = self.authority();
            let roots: Vec<String> =
                authority.roots().iter().map(|root| root.certificate.fingerprint()).collect();
            info!(roots = roots.join(","), "took over the authority that another control plane has written");
            self.announce();
            self.refresh_own(SystemTime::now());
        }
    }

    fn senseless(&self, document: Document, error: &dyn std::error::Error) -> Refusal {
        let place = self.0.store.as_ref().map(|store| store.place(document));
        let error = error as &dyn std::fmt::Display;
        tracing::error!(place, %error, "what another control plane has written makes no sense here");
        self.0.metrics.store_failed();
        Refusal::Internal
    }
}
