//! What reading a dataset tells whoever waits for it.

/// How far reading is, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// Files are being read and tokenized.
    Progress {
        /// Bytes of the files read so far.
        read_bytes: u64,
        /// Bytes of all files.
        total_bytes: u64,
    },
    /// The tokens were in the cache.
    Cached {
        /// Conversations.
        conversations: usize,
        /// Tokens of their samples.
        tokens: usize,
    },
    /// Something that the user should know, though reading goes on.
    Warning(String),
}
