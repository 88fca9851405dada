//! The ids of the special tokens, and their spellings.
//!
//! Source: `o200k_harmony` of tiktoken and of openai-harmony; the Hub's `tokenizer.json` lists the first 21.

use std::borrow::Cow;

/// `<|startoftext|>`, the bos token of the Hub's tokenizer; harmony never emits it.
pub const START_OF_TEXT: u32 = 199_998;
/// `<|endoftext|>`: padding, and the end of a plain text.
pub const END_OF_TEXT: u32 = 199_999;
/// `<|return|>`: the assistant's last message is done.
pub const RETURN: u32 = 200_002;
/// `<|constrain|>`: names the format of a tool call's arguments.
pub const CONSTRAIN: u32 = 200_003;
/// `<|channel|>`: the channel's name follows.
pub const CHANNEL: u32 = 200_005;
/// `<|start|>`: a message begins.
pub const START: u32 = 200_006;
/// `<|end|>`: a message is done.
pub const END: u32 = 200_007;
/// `<|message|>`: the header is done, the text follows.
pub const MESSAGE: u32 = 200_008;
/// `<|call|>`: a tool call is done.
pub const CALL: u32 = 200_012;
/// `<|endofprompt|>`, unused by harmony.
pub const END_OF_PROMPT: u32 = 200_018;

/// The tokens after which a model's answer stops: `<|return|>`, `<|call|>` and `<|endoftext|>`.
pub const STOPS: [u32; 3] = [RETURN, CALL, END_OF_TEXT];

/// Last id that the Hub's `tokenizer.json` lists among its added tokens.
pub(super) const LAST_LISTED: u32 = END_OF_PROMPT;

/// Whether `id` is special, that is in `199_998..201_088`.
pub fn is_special(id: u32) -> bool {
    (super::ORDINARY_TOKENS..super::VOCABULARY_SIZE).contains(&(id as usize))
}

/// The spelling of a special token; `None` for any other id.
pub fn name(id: u32) -> Option<Cow<'static, str>> {
    Some(Cow::Borrowed(match id {
        START_OF_TEXT => "<|startoftext|>",
        END_OF_TEXT => "<|endoftext|>",
        RETURN => "<|return|>",
        CONSTRAIN => "<|constrain|>",
        CHANNEL => "<|channel|>",
        START => "<|start|>",
        END => "<|end|>",
        MESSAGE => "<|message|>",
        CALL => "<|call|>",
        END_OF_PROMPT => "<|endofprompt|>",
        _ if is_special(id) => return Some(Cow::Owned(format!("<|reserved_{id}|>"))),
        _ => return None,
    }))
}
