//! What lets ft into the Hub and Weights & Biases. Secrets are looked at, and never printed.

use std::env;
use std::fs;
use std::path::PathBuf;

use super::check::Check;

pub(super) fn checks() -> Vec<Check> {
    vec![hub_token(token()), hub_settings(variable("HF_ENDPOINT").as_deref(), variable("HF_HUB_OFFLINE").as_deref()), wandb(wandb_key())]
}

/// A variable that says something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn home(below: &str) -> Option<PathBuf> {
    variable("HOME").map(|home| PathBuf::from(home).join(below))
}

/// The folder of everything of the Hub. Source: huggingface_hub, `HF_HOME` and `XDG_CACHE_HOME`.
fn hub_home() -> Option<PathBuf> {
    variable("HF_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| PathBuf::from(cache).join("huggingface")))
        .or_else(|| home(".cache/huggingface"))
}

/// Where models of the Hub are kept. Source: huggingface_hub, `HF_HUB_CACHE`.
pub(super) fn hub_cache() -> Option<PathBuf> {
    variable("HF_HUB_CACHE").map(PathBuf::from).or_else(|| hub_home().map(|home| home.join("hub")))
}

/// The token, and where it is. Source: huggingface_hub, `HF_TOKEN`, `HF_TOKEN_PATH`.
fn token() -> Option<(String, String)> {
    if let Some(token) = variable("HF_TOKEN") {
        return Some((token, "HF_TOKEN".to_owned()));
    }
    let path = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| hub_home().map(|home| home.join("token")))?;
    let token = fs::read_to_string(&path).ok()?;
    Some((token, path.display().to_string()))
}

fn hub_token(found: Option<(String, String)>) -> Check {
    const NAME: &str = "Hub token";
    const FIX: &str = "make one at https://huggingface.co/settings/tokens and set HF_TOKEN to it";
    let Some((token, place)) = found else {
        return Check::skip(NAME, "none: public models need none, private ones and uploads do");
    };
    let token = token.trim();
    // Source: huggingface_hub; every token of a person begins so.
    if !token.starts_with("hf_") || token.contains(char::is_whitespace) {
        return Check::warn(NAME, format!("what {place} holds is no token: those begin with `hf_`"), FIX);
    }
    Check::pass(NAME, format!("in {place}"))
}

fn hub_settings(endpoint: Option<&str>, offline: Option<&str>) -> Check {
    const NAME: &str = "Hub";
    let endpoint = endpoint.unwrap_or("https://huggingface.co");
    if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
        return Check::warn(
            NAME,
            format!("HF_ENDPOINT is `{endpoint}`, which is no address"),
            "set it to an address that begins with https://, or not at all",
        );
    }
    let is_offline = offline.is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str()));
    if is_offline {
        return Check::warn(
            NAME,
            "HF_HUB_OFFLINE is set: nothing is fetched, only what is in the cache is used",
            "unset HF_HUB_OFFLINE to fetch",
        );
    }
    Check::pass(NAME, endpoint)
}

/// Where there is a key of Weights & Biases, for the API that runs would go to.
fn wandb_key() -> Option<String> {
    let base = variable("WANDB_BASE_URL").unwrap_or_else(|| "https://api.wandb.ai".to_owned());
    Some(ft_trainer::tracking::api_key(&base)?.place)
}

fn wandb(place: Option<String>) -> Check {
    const NAME: &str = "Weights & Biases";
    place.map_or_else(
        || Check::skip(NAME, "no key: only runs that report there need one"),
        |place| Check::pass(NAME, format!("a key in {place}")),
    )
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    #[test]
    fn a_token_is_judged_and_not_printed() {
        let check = |token: &str| hub_token(Some((token.to_owned(), "HF_TOKEN".to_owned())));
        assert_eq!(check("hf_secret\n"), Check::pass("Hub token", "in HF_TOKEN"));
        for wrong in ["secret", "hf_se cret", ""] {
            let check = check(wrong);
            assert_eq!(check.status, Status::Warn);
            assert!(!format!("{check:?}").contains("secret"), "{check:?}");
        }
        assert_eq!(hub_token(None).status, Status::Skip);
    }

    #[test]
    fn settings_of_the_hub_are_judged() {
        assert_eq!(hub_settings(None, None), Check::pass("Hub", "https://huggingface.co"));
        assert_eq!(hub_settings(Some("hub.example.org"), None).status, Status::Warn);
        assert_eq!([hub_settings(None, Some("1")).status, hub_settings(None, Some("0")).status], [Status::Warn, Status::Pass]);
    }
}
