//! The part of Go's `text/template` that the Modelfile's template uses, so that the tests can render it: text with trim marks, `if`, `range`,
//! variables, fields and the functions that Ollama knows. Whatever it does not know is an error, also where a run would not come by.
//! Source: pkg.go.dev/text/template.

use serde_json::{Value, json};

type Result<T> = std::result::Result<T, String>;

#[derive(Debug)]
enum Node {
    Text(String),
    Output(Expression),
    /// `:=` declares, `=` assigns.
    Assign {
        name: String,
        declares: bool,
        value: Expression,
    },
    If {
        branches: Vec<(Expression, Vec<Node>)>,
        otherwise: Vec<Node>,
    },
    Range {
        names: Vec<String>,
        over: Expression,
        body: Vec<Node>,
    },
}

#[derive(Debug)]
enum Expression {
    Literal(Value),
    /// Fields of the dot.
    Field(Vec<String>),
    /// Fields of a variable; `$` has no name.
    Variable(String, Vec<String>),
    Call(String, Vec<Expression>),
}

/// Renders `template` with `root`, whose keys are the variables.
pub(super) fn render(template: &str, root: &Value) -> Result<String> {
    let mut parser = Parser { segments: segments(template)?.into_iter().rev().collect(), names: Vec::new() };
    let (nodes, end) = parser.list()?;
    if end != Stop::Text {
        return Err(format!("{end:?} without an opening"));
    }
    let mut run = Run { root, variables: Vec::new(), output: String::new() };
    run.list(&nodes, root)?;
    Ok(run.output)
}

enum Segment {
    Text(String),
    Action(String),
}

fn segments(template: &str) -> Result<Vec<Segment>> {
    let (mut found, mut rest, mut trims_start) = (Vec::new(), template, false);
    while !rest.is_empty() {
        let open = rest.find("{{").unwrap_or(rest.len());
        let (text, after) = rest.split_at(open);
        let trims_end = after.starts_with("{{- ");
        let text = if trims_start { text.trim_start() } else { text };
        found.push(Segment::Text(if trims_end { text.trim_end() } else { text }.to_owned()));
        if after.is_empty() {
            break;
        }
        let inside = &after[if trims_end { 3 } else { 2 }..];
        let close = inside.find("}}").ok_or("an action without an end")?;
        trims_start = inside[..close].ends_with(" -");
        let action = if trims_start { &inside[..close - 1] } else { &inside[..close] }.trim();
        if !(action.starts_with("/*") && action.ends_with("*/")) {
            found.push(Segment::Action(action.to_owned()));
        }
        rest = &inside[close + 2..];
    }
    Ok(found)
}

#[derive(Debug, PartialEq)]
enum Stop {
    Text,
    End,
    Else,
    ElseIf(String),
}

struct Parser {
    /// What is left, the next one last.
    segments: Vec<Segment>,
    /// Variables in scope.
    names: Vec<String>,
}

impl Parser {
    /// Nodes up to what ends them.
    fn list(&mut self) -> Result<(Vec<Node>, Stop)> {
        let mut nodes = Vec::new();
        while let Some(segment) = self.segments.pop() {
            let action = match segment {
                Segment::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Segment::Action(action) => action,
            };
            let (word, rest) = action.split_once(' ').unwrap_or((&action, ""));
            match word {
                "end" => return Ok((nodes, Stop::End)),
                "else" if rest.is_empty() => return Ok((nodes, Stop::Else)),
                "else" => return Ok((nodes, Stop::ElseIf(rest.strip_prefix("if ").ok_or(action.clone())?.to_owned()))),
                "if" => nodes.push(self.branches(rest)?),
                "range" => nodes.push(self.range(rest)?),
                _ => nodes.push(self.plain(&action)?),
            }
        }
        Ok((nodes, Stop::Text))
    }

    fn branches(&mut self, condition: &str) -> Result<Node> {
        let (mut branches, mut condition) = (Vec::new(), condition.to_owned());
        loop {
            let test = self.expression(&condition)?;
            let (body, end) = self.scoped(&[])?;
            branches.push((test, body));
            match end {
                Stop::ElseIf(next) => condition = next,
                Stop::End => return Ok(Node::If { branches, otherwise: Vec::new() }),
                Stop::Else => {
                    let (otherwise, end) = self.scoped(&[])?;
                    return if end == Stop::End { Ok(Node::If { branches, otherwise }) } else { Err(format!("{end:?} after else")) };
                }
                Stop::Text => return Err("an if without an end".to_owned()),
            }
        }
    }

    fn range(&mut self, action: &str) -> Result<Node> {
        let (names, over) = action.split_once(" := ").unwrap_or(("", action));
        let over = self.expression(over)?;
        let names: Vec<String> = names.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect();
        let (body, end) = self.scoped(&names)?;
        if end == Stop::End { Ok(Node::Range { names, over, body }) } else { Err(format!("{end:?} in a range")) }
    }

    fn plain(&mut self, action: &str) -> Result<Node> {
        let declared = action.split_once(" := ").map(|(name, value)| (name, value, true));
        let Some((name, value, declares)) = declared.or_else(|| action.split_once(" = ").map(|(name, value)| (name, value, false))) else {
            return Ok(Node::Output(self.expression(action)?));
        };
        let value = self.expression(value)?;
        if declares {
            self.names.push(name.to_owned());
        } else if !self.names.iter().any(|known| known == name) {
            return Err(format!("{name} is not declared"));
        }
        Ok(Node::Assign { name: name.to_owned(), declares, value })
    }

    fn scoped(&mut self, names: &[String]) -> Result<(Vec<Node>, Stop)> {
        let before = self.names.len();
        self.names.extend(names.iter().cloned());
        let list = self.list();
        self.names.truncate(before);
        list
    }

    fn expression(&self, text: &str) -> Result<Expression> {
        let mut words: Vec<Expression> = Vec::new();
        let mut function = None;
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (word, after) = next_word(rest)?;
            rest = after.trim_start();
            let first = words.is_empty() && function.is_none();
            match word.chars().next() {
                Some('(') => words.push(self.expression(&word[1..word.len() - 1])?),
                Some('"') => words.push(Expression::Literal(serde_json::from_str(word).map_err(|error| error.to_string())?)),
                Some('`') => words.push(Expression::Literal(json!(word.trim_matches('`')))),
                Some('.') => words.push(Expression::Field(fields(word))),
                Some('$') => {
                    let (name, path) = word.split_once('.').map_or((word, Vec::new()), |(name, _)| (name, fields(&word[name.len()..])));
                    if name != "$" && !self.names.iter().any(|known| known == name) {
                        return Err(format!("{name} is not declared"));
                    }
                    words.push(Expression::Variable(name.to_owned(), path));
                }
                Some('-' | '0'..='9') => words.push(Expression::Literal(json!(word.parse::<i64>().map_err(|error| error.to_string())?))),
                _ if first && FUNCTIONS.contains(&word) => function = Some(word.to_owned()),
                _ => return Err(format!("{word} is no function")),
            }
        }
        match function {
            Some(function) => Ok(Expression::Call(function, words)),
            None if words.len() == 1 => words.pop().ok_or_else(String::new),
            None => Err(format!("{text} is not one value")),
        }
    }
}

const FUNCTIONS: [&str; 10] = ["and", "eq", "gt", "json", "len", "ne", "not", "or", "slice", "toTypeScriptType"];

fn fields(path: &str) -> Vec<String> {
    path.split('.').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The first word: something in parentheses, a quoted text, or all up to a blank.
fn next_word(text: &str) -> Result<(&str, &str)> {
    let unfinished = || format!("{text} is not finished");
    let length = match text.as_bytes()[0] {
        quote @ (b'"' | b'`') => text[1..].find(char::from(quote)).ok_or_else(unfinished)? + 2,
        b'(' => {
            let mut depth = 0;
            let closes = |(_, character): &(usize, char)| {
                depth += i32::from(*character == '(') - i32::from(*character == ')');
                depth == 0
            };
            text.char_indices().find(closes).ok_or_else(unfinished)?.0 + 1
        }
        _ => text.find(' ').unwrap_or(text.len()),
    };
    Ok(text.split_at(length))
}

struct Run<'v> {
    root: &'v Value,
    variables: Vec<(String, Value)>,
    output: String,
}

impl Run<'_> {
    fn list(&mut self, nodes: &[Node], dot: &Value) -> Result<()> {
        nodes.iter().try_for_each(|node| self.node(node, dot))
    }

    fn scoped(&mut self, nodes: &[Node], dot: &Value, variables: Vec<(String, Value)>) -> Result<()> {
        let before = self.variables.len();
        self.variables.extend(variables);
        let done = self.list(nodes, dot);
        self.variables.truncate(before);
        done
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<()> {
        match node {
            Node::Text(text) => self.output += text,
            Node::Output(expression) => match self.value(expression, dot)? {
                Value::String(text) => self.output += &text,
                Value::Null => return Err(format!("{expression:?} prints nothing that is there")),
                other => self.output += &other.to_string(),
            },
            Node::Assign { name, declares, value } => {
                let value = self.value(value, dot)?;
                match self.variables.iter_mut().rev().find(|(known, _)| known == name).filter(|_| !declares) {
                    Some((_, variable)) => *variable = value,
                    None => self.variables.push((name.clone(), value)),
                }
            }
            Node::If { branches, otherwise } => {
                for (test, body) in branches {
                    if is_true(&self.value(test, dot)?) {
                        return self.scoped(body, dot, Vec::new());
                    }
                }
                self.scoped(otherwise, dot, Vec::new())?;
            }
            Node::Range { names, over, body } => {
                let items: Vec<(Value, Value)> = match self.value(over, dot)? {
                    Value::Null => Vec::new(),
                    Value::Array(items) => items.into_iter().enumerate().map(|(index, item)| (json!(index), item)).collect(),
                    Value::Object(items) => {
                        let mut items: Vec<(Value, Value)> = items.into_iter().map(|(key, item)| (json!(key), item)).collect();
                        items.sort_by_key(|(key, _)| key.to_string());
                        items
                    }
                    other => return Err(format!("no range over {other}")),
                };
                for (key, item) in items {
                    self.scoped(body, &item, names.iter().cloned().zip([key, item.clone()]).collect())?;
                }
            }
        }
        Ok(())
    }

    fn value(&self, expression: &Expression, dot: &Value) -> Result<Value> {
        let along = |start: &Value, path: &[String]| path.iter().fold(start, |value, name| &value[name.as_str()]).clone();
        Ok(match expression {
            Expression::Literal(value) => value.clone(),
            Expression::Field(path) => along(dot, path),
            Expression::Variable(name, path) if name == "$" => along(self.root, path),
            Expression::Variable(name, path) => {
                let found = self.variables.iter().rev().find(|(known, _)| known == name);
                along(&found.ok_or_else(|| format!("{name} is out of scope"))?.1, path)
            }
            Expression::Call(function, arguments) => {
                let arguments = arguments.iter().map(|each| self.value(each, dot)).collect::<Result<Vec<Value>>>()?;
                call(function, &arguments)?
            }
        })
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
    }
}

fn call(function: &str, arguments: &[Value]) -> Result<Value> {
    let equal = |left: &Value, right: &Value| match (left, right) {
        (Value::String(_), Value::String(_)) | (Value::Number(_), Value::Number(_)) => Ok(left == right),
        _ => Err(format!("{left} and {right} are not comparable")),
    };
    Ok(match (function, arguments) {
        ("and", [.., last]) => arguments.iter().find(|value| !is_true(value)).unwrap_or(last).clone(),
        ("or", [.., last]) => arguments.iter().find(|value| is_true(value)).unwrap_or(last).clone(),
        ("not", [value]) => json!(!is_true(value)),
        ("eq", [left, right]) => json!(equal(left, right)?),
        ("ne", [left, right]) => json!(!equal(left, right)?),
        ("gt", [Value::Number(left), Value::Number(right)]) => json!(left.as_i64() > right.as_i64()),
        ("len", [Value::Array(items)]) => json!(items.len()),
        ("slice", [Value::Array(items), Value::Number(start)]) => {
            let start = start.as_u64().unwrap_or(0) as usize;
            json!(items.get(start..).ok_or_else(|| format!("no slice from {start} of {}", items.len()))?)
        }
        ("json", [value]) => json!(value.to_string()),
        // Source: ollama api/types.go, ToTypeScriptType.
        ("toTypeScriptType", [property]) => json!(match property["Type"].as_str() {
            Some("string") => "string",
            Some("number" | "integer") => "number",
            Some("boolean") => "boolean",
            Some("array") => "any[]",
            Some("object") => "Record<string, any>",
            _ => "any",
        }),
        _ => return Err(format!("{function} does not take {arguments:?}")),
    })
}
