"""Answers the real `wandb` client as its servers do, and keeps what it sends.

    wandb_server.py PORT_FILE RECORD_FILE

Writes its port to PORT_FILE once it listens, and each request to RECORD_FILE as a line of JSON: method, path and body.
"""

import gzip
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

LOCK = Lock()
PROJECT = {"id": "UHJvamVjdA==", "name": "p", "entity": {"id": "RW50aXR5", "name": "team"}}


def answer(query: str, variables: dict) -> dict:
    """Data for a query of GraphQL, by the names that stand in it."""
    if "upsertBucket" in query or "UpsertBucket" in query:
        bucket = {
            "id": "UnVu", "name": variables.get("name"), "displayName": variables.get("displayName"), "description": None,
            "config": variables.get("config") or "{}", "sweepName": None, "historyLineCount": 0,
            "project": PROJECT | {"name": variables.get("project") or "p"},
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}
    if "createRunFiles" in query:
        files = [{"name": name, "uploadUrl": f"http://{HOST}/storage/{name}"} for name in variables.get("files", [])]
        return {"createRunFiles": {"runID": "UnVu", "uploadHeaders": [], "files": files}}
    return {
        "viewer": {"id": "1", "entity": "team", "username": "user", "admin": False, "flags": "{}", "teams": {"edges": []}},
        "serverInfo": {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": None, "features": [],
                       "codeSaving": False, "streamingEnabled": True},
        "model": {"bucket": None},
        "project": None,
        "organization": None,
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        try:
            body = json.loads(body)
        except ValueError:
            body = body.decode(errors="replace")
        with LOCK, open(sys.argv[2], "a", encoding="utf-8") as record:
            record.write(json.dumps({"method": self.command, "path": self.path, "body": body}) + "\n")
        if self.path == "/graphql":
            said = {"data": answer(body.get("query", ""), body.get("variables") or {})}
        else:
            said = {"exitcode": None, "limits": {}}
        text = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_PUT = do_GET = do_HEAD = reply

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that goes away is no error."""


server = Server(("127.0.0.1", 0), Handler)
HOST = f"127.0.0.1:{server.server_port}"
partial = Path(sys.argv[1] + ".partial")
partial.write_text(str(server.server_port))
partial.rename(sys.argv[1])
server.serve_forever()
