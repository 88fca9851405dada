//! From each shape to harmony.

mod builder;
mod messages;
mod pairs;
mod share_gpt;
mod tools;

use super::conversation::Body;
use super::error::DataError;
use super::field::Field;
use super::shape::Shape;
use builder::Builder;

/// What `line` says, read as `shape`.
pub(super) fn read(shape: Shape, line: &Field<'_>) -> Result<Body, DataError> {
    if shape == Shape::Text {
        return Ok(Body::Text(line.require("text")?.string()?.to_owned()));
    }
    let mut builder = Builder::new();
    builder.read_settings(line)?;
    match shape {
        Shape::Messages => messages::read(&mut builder, &line.require("messages")?)?,
        Shape::ShareGpt => share_gpt::read(&mut builder, &line.require("conversations")?)?,
        Shape::PromptCompletion => pairs::read_prompt_completion(&mut builder, line)?,
        Shape::Instruction | Shape::Text => pairs::read_instruction(&mut builder, line)?,
    }
    Ok(builder.finish())
}
