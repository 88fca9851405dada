//! Reading conversations, as it is shown to whoever waits.

use ft_trainer::data::Reading;

use crate::progress::ByteProgress;
use crate::terminal::Terminal;
use crate::units::{counted, whole};

/// Conversations from which on it is worth a line that their tokens were at hand.
const MANY: usize = 1000;

/// Shows a bar while files are tokenized, and says what came from the cache.
#[derive(Debug)]
pub(crate) struct ReadingWatcher<'a> {
    terminal: &'a Terminal,
    progress: Option<ByteProgress>,
}

impl<'a> ReadingWatcher<'a> {
    pub(crate) fn new(terminal: &'a Terminal) -> Self {
        Self { terminal, progress: None }
    }

    pub(crate) fn tell(&mut self, event: &Reading) {
        match event {
            Reading::Progress { read_bytes, total_bytes } => {
                let begin = || ByteProgress::new("reading conversations".to_owned(), self.terminal);
                self.progress.get_or_insert_with(begin).set(*read_bytes, *total_bytes);
                if read_bytes >= total_bytes {
                    self.progress = None;
                }
            }
            Reading::Cached { conversations, tokens } if *conversations >= MANY => {
                let tokens = whole(*tokens as u64);
                self.terminal.note(&format!("{} from the token cache, {tokens} tokens", counted(*conversations, "conversation")));
            }
            Reading::Cached { .. } => {}
            Reading::Warning(words) => {
                self.progress = None;
                self.terminal.warn(words);
            }
        }
    }
}
