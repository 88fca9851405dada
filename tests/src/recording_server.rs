//! An HTTP server that answers as Weights & Biases does, keeps what it is sent, and has trouble when it is told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// How the server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It answers.
    Well,
    /// It answers every request with this status.
    Status(u16),
    /// It takes requests and never answers.
    Hangs,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its path.
    pub path: String,
    /// Its `Authorization`.
    pub authorization: String,
    /// Its body.
    pub body: Value,
}

/// The server, until the test ends.
#[derive(Debug)]
pub struct RecordingServer {
    /// Its address, `http://127.0.0.1:PORT`.
    pub address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl RecordingServer {
    /// Starts a server.
    ///
    /// # Panics
    /// When no port can be had.
    #[must_use]
    pub fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || answer(stream, manner, &kept));
            }
        });
        Self { address, requests }
    }

    /// What came so far.
    ///
    /// # Panics
    /// When a thread of the server did.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no thread panicked").clone()
    }
}

/// One request of a connection, which is closed then.
fn answer(stream: TcpStream, manner: Manner, kept: &Mutex<Vec<Request>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let (mut length, mut authorization) = (0, String::new());
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => authorization = value.to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let lines = {
        let mut kept = kept.lock().ok()?;
        kept.push(Request { path: path.clone(), authorization, body });
        history(&kept).len()
    };
    let (status, text) = match manner {
        Manner::Hangs => {
            std::thread::sleep(Duration::from_secs(600));
            return None;
        }
        Manner::Status(status) => (status, "{\"error\": \"told to\"}".to_owned()),
        Manner::Well if path == "/graphql" => {
            let project = json!({"id": "1", "name": "coding", "entity": {"id": "1", "name": "team"}});
            let bucket = json!({"id": "1", "name": "run", "displayName": "run", "historyLineCount": lines, "project": project});
            (200, json!({"data": {"upsertBucket": {"bucket": bucket, "inserted": true}}}).to_string())
        }
        Manner::Well => (200, "{\"exitcode\": null, \"limits\": {}}".to_owned()),
    };
    let head =
        format!("HTTP/1.1 {status} Told\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", text.len());
    (&stream).write_all(format!("{head}{text}").as_bytes()).ok()
}

/// The lines of the history, each at its offset, as the requests have left them.
#[must_use]
pub fn history(requests: &[Request]) -> Vec<Value> {
    let mut lines: Vec<Value> = Vec::new();
    for sent in requests.iter().filter_map(|request| request.body.pointer("/files/wandb-history.jsonl")) {
        let offset = sent["offset"].as_u64().map_or(0, |offset| usize::try_from(offset).unwrap_or(usize::MAX));
        assert!(offset <= lines.len(), "lines before {offset} were never sent");
        lines.truncate(offset);
        let content = sent["content"].as_array().cloned().unwrap_or_default();
        lines.extend(content.iter().filter_map(Value::as_str).filter_map(|line| serde_json::from_str(line).ok()));
    }
    lines
}
