//! Command lines are kept with a run; what opens a door is not.

/// What stands in the place of a secret.
const HIDDEN: &str = "(hidden)";

/// Ends of names whose values are secret.
const SECRET_ENDS: [&str; 8] = ["api_key", "api-key", "apikey", "_token", "-token", "secret", "password", "passwd"];

/// The arguments, with the values of secret options and settings, and passwords in addresses, hidden.
pub(super) fn without_secrets(arguments: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut is_value_secret = false;
    let hide = |argument: String| {
        if std::mem::take(&mut is_value_secret) {
            return HIDDEN.to_owned();
        }
        if let Some((name, _)) = argument.split_once('=').filter(|(name, _)| is_secret(name)) {
            return format!("{name}={HIDDEN}");
        }
        is_value_secret = argument.starts_with("--") && is_secret(&argument);
        without_password(&argument)
    };
    arguments.into_iter().map(hide).collect()
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_ENDS.iter().any(|end| name.ends_with(end)) || ["token", "--token"].contains(&name.rsplit('.').next().unwrap_or_default())
}

/// `https://user:password@host` without what stands before the host.
fn without_password(argument: &str) -> String {
    let Some((scheme, rest)) = argument.split_once("://") else { return argument.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rfind('@') {
        Some(at) => format!("{scheme}://{HIDDEN}{}", &rest[at..]),
        None => argument.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_nothing_else() {
        let arguments = [
            "ft",
            "train",
            "r.toml",
            "--set",
            "tracking.wandb.api_key=abc",
            "--set",
            "dataset.max_tokens=2048",
            "--hub-token",
            "hf_abc",
            "--set",
            "model.token=hf_def",
            "--set",
            "hub.endpoint=https://me:pass@hub.example/x@y",
        ];
        let expected = [
            "ft",
            "train",
            "r.toml",
            "--set",
            "tracking.wandb.api_key=(hidden)",
            "--set",
            "dataset.max_tokens=2048",
            "--hub-token",
            "(hidden)",
            "--set",
            "model.token=(hidden)",
            "--set",
            "hub.endpoint=https://(hidden)@hub.example/x@y",
        ];
        assert_eq!(without_secrets(arguments.map(str::to_owned)), expected);
    }
}
