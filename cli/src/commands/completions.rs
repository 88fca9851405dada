//! `ft completions`: what a shell completes after `ft`.

use clap::Args;
use clap_complete::Shell;

use crate::arguments::command;
use crate::error::Result;
use crate::terminal::Terminal;

/// Print the completion script of a shell
///
/// `make install` puts those of bash, zsh and fish where these shells look for them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ft completions bash > ~/.local/share/bash-completion/completions/ft
  ft completions zsh > ~/.zfunc/_ft              a folder of $fpath
  ft completions fish > ~/.config/fish/completions/ft.fish")]
pub(crate) struct Arguments {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    terminal.write(&script(arguments.shell))
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "ft", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_learns_every_verb() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let script = script(shell);
            for verb in command().get_subcommands() {
                assert!(script.contains(verb.get_name()), "{shell}: {}", verb.get_name());
            }
        }
    }
}
