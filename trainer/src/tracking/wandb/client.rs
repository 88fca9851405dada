//! The HTTP API of Weights & Biases, as much as a run takes.
//!
//! Source: wandb 0.31, core `internal/runupserter`, `internal/filestream`.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::blocking::{Client as Http, Response};
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::super::clock;
use super::super::journal::Header;
use super::offline::wrapped;
use super::settings::{Destination, Settings};

/// Until an answer has to be there.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

const UPSERT_BUCKET: &str = "mutation UpsertBucket($name: String, $project: String, $entity: String, $groupName: String, \
$displayName: String, $notes: String, $config: JSONString, $host: String, $program: String, $state: String, $tags: [String!]) { \
upsertBucket(input: {name: $name, modelName: $project, entityName: $entity, groupName: $groupName, displayName: $displayName, \
notes: $notes, config: $config, host: $host, jobProgram: $program, state: $state, tags: $tags}) { \
bucket { id name displayName historyLineCount project { id name entity { id name } } } inserted } }";

/// Why a request came to nothing.
#[derive(Debug, Error)]
pub(super) enum ClientError {
    /// The network, or a server that has trouble: the same request may do later.
    #[error("{0}")]
    Passing(String),
    /// The server will not have it.
    #[error("{0}")]
    Lasting(String),
}

/// A run that the server knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RemoteRun {
    pub(super) entity: String,
    pub(super) project: String,
    /// Lines of history that it has.
    pub(super) lines: usize,
}

#[derive(Debug)]
pub(super) struct Client {
    http: Http,
    destination: Destination,
    id: String,
}

impl Client {
    pub(super) fn new(destination: Destination, id: &str) -> Result<Self, ClientError> {
        let http =
            Http::builder().timeout(ANSWER_LIMIT).connect_timeout(CONNECT_LIMIT).user_agent(concat!("ft/", env!("CARGO_PKG_VERSION")));
        let http = http.build().map_err(|error| ClientError::Lasting(error.to_string()))?;
        Ok(Self { http, destination, id: id.to_owned() })
    }

    /// Makes the run, or finds the one of this id.
    pub(super) fn upsert(&self, header: &Header, settings: &Settings) -> Result<RemoteRun, ClientError> {
        let variables = json!({
            "name": header.id,
            "project": settings.project,
            "entity": settings.entity,
            "groupName": settings.group,
            "displayName": settings.name,
            "notes": settings.notes,
            "config": wrapped(&settings.config).to_string(),
            "host": clock::host(),
            "program": "ft",
            "state": "running",
            "tags": settings.tags,
        });
        let answer = self.post("/graphql", &json!({"query": UPSERT_BUCKET, "variables": variables}))?;
        if let Some(message) = answer.pointer("/errors/0/message").and_then(Value::as_str) {
            return Err(ClientError::Lasting(format!("the server refused the run: {message}")));
        }
        let bucket = answer.pointer("/data/upsertBucket/bucket");
        let text = |path: &str| bucket.and_then(|bucket| bucket.pointer(path)?.as_str().map(str::to_owned));
        let lines = bucket.and_then(|bucket| bucket.get("historyLineCount")?.as_u64()).unwrap_or(0);
        match (text("/project/entity/name"), text("/project/name")) {
            (Some(entity), Some(project)) => Ok(RemoteRun { entity, project, lines: usize::try_from(lines).unwrap_or(0) }),
            _ => Err(ClientError::Lasting("the server's answer names no run".to_owned())),
        }
    }

    /// Sends lines of the history, of which the first is line `offset`, with the newest summary.
    pub(super) fn send(&self, run: &RemoteRun, offset: usize, lines: &[String], summary: &Map<String, Value>) -> Result<(), ClientError> {
        let summary = Value::Object(summary.clone()).to_string();
        let files = json!({
            "wandb-history.jsonl": {"offset": offset, "content": lines},
            "wandb-summary.json": {"offset": 0, "content": [summary]},
        });
        self.stream(run, &json!({"files": files})).map(drop)
    }

    /// Says that the run goes on, though it has nothing new.
    pub(super) fn heartbeat(&self, run: &RemoteRun) -> Result<(), ClientError> {
        self.stream(run, &json!({})).map(drop)
    }

    /// Says that the run is over.
    pub(super) fn complete(&self, run: &RemoteRun, exit_code: u8) -> Result<(), ClientError> {
        self.stream(run, &json!({"complete": true, "exitcode": exit_code})).map(drop)
    }

    fn stream(&self, run: &RemoteRun, body: &Value) -> Result<Value, ClientError> {
        self.post(&format!("/files/{}/{}/{}/file_stream", run.entity, run.project, self.id), body)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let Destination { base, key } = &self.destination;
        let request = self.http.post(format!("{base}{path}")).basic_auth("api", Some(&key.key)).json(body);
        let response = request.send().map_err(|error| ClientError::Passing(reason(&error)))?;
        let status = response.status();
        if status.is_success() {
            return response.json().map_err(|error| ClientError::Passing(reason(&error)));
        }
        Err(refusal(status, response, key.place.as_str()))
    }
}

fn refusal(status: StatusCode, response: Response, key_place: &str) -> ClientError {
    if status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT || status.is_server_error() {
        return ClientError::Passing(format!("the server answered {status}"));
    }
    if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
        return ClientError::Lasting(format!("the server answered {status} to the key of {key_place}"));
    }
    let said = response.text().unwrap_or_default();
    let said: String = said.chars().take(200).collect();
    ClientError::Lasting(format!("the server answered {status}: {said}"))
}

/// The innermost cause: "connection refused" rather than "error sending request".
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "the server does not answer".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
