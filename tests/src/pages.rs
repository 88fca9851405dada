//! Reading the pages of `docs/` and the README: what stands in fences, in code spans, in links and in headings.

use std::fs;
use std::path::{Path, PathBuf};

/// A page in Markdown.
#[derive(Debug)]
pub struct Page {
    /// Where it is.
    pub path: PathBuf,
    /// Its lines outside of fences, with their numbers from 1.
    pub prose: Vec<(usize, String)>,
    /// What stands in its fences, in their order.
    pub blocks: Vec<Block>,
}

/// What stands between two fences.
#[derive(Debug)]
pub struct Block {
    /// The words after the opening fence: a language, perhaps what it needs.
    pub language: String,
    /// The line of its first line, from 1.
    pub line: usize,
    /// Its lines.
    pub lines: Vec<String>,
}

impl Page {
    /// Reads a page.
    ///
    /// # Panics
    /// When it cannot be read, or a fence is not closed.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (mut prose, mut blocks, mut open) = (Vec::new(), Vec::new(), None::<Block>);
        for (index, line) in text.lines().enumerate() {
            match (line.strip_prefix("```"), open.take()) {
                (Some(""), Some(block)) => blocks.push(block),
                (Some(language), None) => open = Some(Block { language: language.to_owned(), line: index + 2, lines: Vec::new() }),
                (_, Some(mut block)) => {
                    block.lines.push(line.to_owned());
                    open = Some(block);
                }
                (None, None) => prose.push((index + 1, line.to_owned())),
            }
        }
        assert!(open.is_none(), "{}: a fence is not closed", path.display());
        Self { path: path.to_owned(), prose, blocks }
    }

    /// The name by which links and people know it.
    ///
    /// # Panics
    /// When its path does not end in a name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).expect("a page has a name")
    }

    /// The targets of its links, with their lines.
    #[must_use]
    pub fn links(&self) -> Vec<(usize, String)> {
        let mut links = Vec::new();
        for (line, text) in &self.prose {
            let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            links.extend(targets.map(|(target, _)| (*line, target.to_owned())));
        }
        links
    }

    /// The anchors that GitHub gives to its headings.
    #[must_use]
    pub fn anchors(&self) -> Vec<String> {
        let headings = self.prose.iter().filter(|(_, line)| line.starts_with('#'));
        headings.map(|(_, line)| anchor(line.trim_start_matches('#').trim())).collect()
    }

    /// What stands in code spans, with their lines. A span that goes over the end of a line is not seen.
    #[must_use]
    pub fn code_spans(&self) -> Vec<(usize, String)> {
        let mut spans = Vec::new();
        for (line, text) in &self.prose {
            spans.extend(text.split('`').skip(1).step_by(2).map(|span| (*line, span.to_owned())));
        }
        spans
    }
}

impl Block {
    /// Its commands: comments and empty lines left out, lines that end in a backslash joined with the next.
    #[must_use]
    pub fn commands(&self) -> Vec<(usize, String)> {
        let mut commands: Vec<(usize, String)> = Vec::new();
        let mut goes_on = false;
        for (index, line) in self.lines.iter().enumerate() {
            let (content, continued) = line.strip_suffix('\\').map_or((line.as_str(), false), |start| (start, true));
            match commands.last_mut() {
                Some((_, command)) if goes_on => command.push_str(content.trim_start()),
                _ if line.trim().is_empty() || line.starts_with('#') => {}
                _ => commands.push((self.line + index, content.to_owned())),
            }
            goes_on = continued;
        }
        commands
    }
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Page {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.md");
        fs::write(&path, text).unwrap();
        Page::read(&path)
    }

    #[test]
    fn fences_hold_commands_and_the_rest_is_prose() {
        let page = page("# One `ft` page\nsee [there](a.md#b)\n```sh\n# why\nft a \\\n  b   # c\n\nft d\n```\nend\n");
        assert_eq!(page.anchors(), ["one-ft-page"]);
        assert_eq!(page.links(), [(2, "a.md#b".to_owned())]);
        assert_eq!(page.code_spans(), [(1, "ft".to_owned())]);
        assert_eq!(page.blocks[0].language, "sh");
        assert_eq!(page.blocks[0].commands(), [(5, "ft a b   # c".to_owned()), (8, "ft d".to_owned())]);
    }
}
