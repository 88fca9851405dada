//! What of Weights & Biases the recipe says, and what the environment.

use std::fs;
use std::path::PathBuf;

use super::super::error::TrackingError;
use crate::recipe::{Recipe, WandbMode};

/// Where runs go unless the environment says otherwise.
const PUBLIC_API: &str = "https://api.wandb.ai";

/// A key, and where it was found.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The key itself.
    pub key: String,
    /// The variable or the file that holds it.
    pub place: String,
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ApiKey").field("place", &self.place).finish_non_exhaustive()
    }
}

/// The key for the API at `base`: `WANDB_API_KEY`, or the password of its host in `~/.netrc` (or `$NETRC`), as `wandb login` leaves it.
#[must_use]
pub fn api_key(base: &str) -> Option<ApiKey> {
    if let Some(key) = variable("WANDB_API_KEY") {
        return Some(ApiKey { key, place: "WANDB_API_KEY".to_owned() });
    }
    let path = variable("NETRC").map(PathBuf::from).or_else(|| Some(PathBuf::from(variable("HOME")?).join(".netrc")))?;
    let key = password(&fs::read_to_string(&path).ok()?, host(base))?;
    Some(ApiKey { key, place: path.display().to_string() })
}

/// The password of `host` in the text of a `.netrc`.
fn password(text: &str, host: &str) -> Option<String> {
    let mut words = text.split_whitespace();
    let mut is_ours = false;
    while let Some(word) = words.next() {
        match word {
            "machine" => is_ours = words.next() == Some(host),
            "default" => is_ours = false,
            "password" if is_ours => return words.next().map(str::to_owned),
            _ => {}
        }
    }
    None
}

/// The host of a URL, without its port.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', ':']).next().unwrap_or(rest)
}

/// Whereto a run is sent as it goes.
#[derive(Debug, Clone)]
pub(in crate::tracking) struct Destination {
    /// The API, without a slash at the end.
    pub(in crate::tracking) base: String,
    pub(in crate::tracking) key: ApiKey,
}

/// A run as Weights & Biases is to know it.
#[derive(Debug, Clone)]
pub(in crate::tracking) struct Settings {
    pub(in crate::tracking) project: String,
    pub(in crate::tracking) entity: Option<String>,
    pub(in crate::tracking) name: String,
    pub(in crate::tracking) group: Option<String>,
    pub(in crate::tracking) tags: Vec<String>,
    pub(in crate::tracking) notes: Option<String>,
    /// `None` offline.
    pub(in crate::tracking) destination: Option<Destination>,
    /// The resolved recipe.
    pub(in crate::tracking) config: serde_json::Value,
}

impl Settings {
    /// What `recipe` says, else the environment, under the names that the `wandb` package reads. `None` when it asks for no run, or
    /// `WANDB_MODE` is `disabled`.
    ///
    /// # Errors
    /// A run online without a key, or a mode that is none.
    pub(in crate::tracking) fn of(recipe: &Recipe) -> Result<Option<Self>, TrackingError> {
        let Some(section) = &recipe.tracking.wandb else { return Ok(None) };
        let mode = match (section.mode, variable("WANDB_MODE").as_deref()) {
            (_, Some("disabled")) => return Ok(None),
            (Some(mode), _) => mode,
            (None, Some("offline" | "dryrun")) => WandbMode::Offline,
            (None, Some("online" | "run" | "shared") | None) => WandbMode::Online,
            (None, Some(found)) => {
                let (found, expected) = (found.to_owned(), "online, offline or disabled");
                return Err(TrackingError::Environment { name: "WANDB_MODE", found, expected });
            }
        };
        let base = variable("WANDB_BASE_URL").unwrap_or_else(|| PUBLIC_API.to_owned()).trim_end_matches('/').to_owned();
        let destination = match mode {
            WandbMode::Offline => None,
            WandbMode::Online => {
                let key = api_key(&base).ok_or_else(|| TrackingError::NoKey { host: host(&base).to_owned() })?;
                Some(Destination { base, key })
            }
        };
        let or = |said: &Option<String>, name: &str| said.clone().or_else(|| variable(name));
        let tags_of = |text: String| text.split(',').map(|tag| tag.trim().to_owned()).filter(|tag| !tag.is_empty()).collect();
        Ok(Some(Self {
            project: or(&section.project, "WANDB_PROJECT").unwrap_or_else(|| "ft".to_owned()),
            entity: or(&section.entity, "WANDB_ENTITY"),
            name: or(&section.name, "WANDB_NAME").unwrap_or_else(|| recipe.output.name.clone()),
            group: or(&section.group, "WANDB_RUN_GROUP"),
            tags: if section.tags.is_empty() { variable("WANDB_TAGS").map(tags_of).unwrap_or_default() } else { section.tags.clone() },
            notes: or(&section.notes, "WANDB_NOTES"),
            destination,
            config: serde_json::to_value(recipe).unwrap_or_default(),
        }))
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty()).map(|value| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_that_of_its_host() {
        let text =
            "machine github.com login a password b\nmachine api.wandb.ai\n  login user\n  password secret\ndefault login x password y\n";
        assert_eq!(password(text, "api.wandb.ai").as_deref(), Some("secret"));
        assert_eq!(password(text, "wandb.example.org"), None);
        assert_eq!(password("machine api.wandb.ai login user\n", "api.wandb.ai"), None);
    }

    #[test]
    fn hosts_are_found_in_urls() {
        for (url, expected) in [("https://api.wandb.ai", "api.wandb.ai"), ("http://127.0.0.1:8080/x", "127.0.0.1"), ("h", "h")] {
            assert_eq!(host(url), expected);
        }
    }

    #[test]
    fn a_key_is_not_printed() {
        let key = ApiKey { key: "secret".to_owned(), place: "WANDB_API_KEY".to_owned() };
        assert!(!format!("{key:?}").contains("secret"));
    }
}
