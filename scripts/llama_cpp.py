"""Puts llama.cpp's converter scripts into third_party/llama.cpp, from the source distribution of llama-cpp-python.

pip would build what it downloads, with CMake. So the archive comes from the package index by itself, checked by its hash, and only the
scripts are unpacked. The index is the one that pip uses here. Needs nothing but Python and its pip.
"""

import hashlib
import html.parser
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

NAME = "llama-cpp-python"
ARCHIVE = "llama_cpp_python-0.3.36.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SCRIPTS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/gguf/", "LICENSE")

TARGET = Path(__file__).resolve().parent.parent / "third_party/llama.cpp"
STAMP = TARGET / ".complete"


def fail(what):
    sys.exit(f"error: llama.cpp's converter could not be fetched: {what}\nhint: pip's index must have {ARCHIVE}")


def pip_setting(name):
    """What pip is told by its environment or its files."""
    value = os.environ.get(f"PIP_{name.upper().replace('-', '_')}")
    if value:
        return value
    for section in ("install", "download", "global"):
        found = subprocess.run([sys.executable, "-m", "pip", "config", "get", f"{section}.{name}"], capture_output=True, text=True)
        if found.returncode == 0:
            return found.stdout.strip()
    return None


def default_index():
    """The index that pip has built in."""
    code = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else fail("pip has no index")


def indexes():
    """The indexes to ask, with a slash at the end, as often as they are named."""
    named = [pip_setting("index-url") or default_index(), *(pip_setting("extra-index-url") or "").split()]
    return [index.rstrip("/") + "/" for index in named]


class Links(html.parser.HTMLParser):
    """The targets of all links of a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        if tag == "a":
            self.found += [value for key, value in attributes if key == "href" and value]


def opener():
    """Opens addresses as pip does: its proxy, its certificates, passwords within an address."""
    import ssl

    context = ssl.create_default_context(cafile=pip_setting("cert"))
    handlers = [urllib.request.HTTPSHandler(context=context)]
    proxy = pip_setting("proxy")
    if proxy:
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    return urllib.request.build_opener(*handlers)


def get(address, accept="*/*"):
    """Content, its type, and the address that it came from in the end."""
    parts = urllib.parse.urlsplit(address)
    headers = {"Accept": accept, "User-Agent": "pip"}
    if parts.username:
        import base64

        account = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(account.encode()).decode()
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    timeout = float(pip_setting("timeout") or 60)
    with opener().open(urllib.request.Request(address, headers=headers), timeout=timeout) as answer:
        return answer.read(), answer.headers.get_content_type(), answer.geturl()


def archive_address(index):
    """Where an index has the archive, or nothing. Source: the simple repository API, PEP 503 and PEP 691."""
    page, kind, base = get(f"{index}{NAME}/", "application/vnd.pypi.simple.v1+json, text/html;q=0.5")
    if kind.endswith("json"):
        links = [file["url"] for file in json.loads(page)["files"]]
    else:
        parser = Links()
        parser.feed(page.decode("utf-8", "replace"))
        links = parser.found
    for link in links:
        if urllib.parse.unquote(urllib.parse.urlsplit(link).path).rpartition("/")[2] == ARCHIVE:
            found = urllib.parse.urljoin(base, link)
            account = urllib.parse.urlsplit(index).netloc.rpartition("@")[0]
            parts = urllib.parse.urlsplit(found)
            same_host = parts.hostname == urllib.parse.urlsplit(index).hostname and not parts.username
            return parts._replace(netloc=f"{account}@{parts.netloc}").geturl() if account and same_host else found
    return None


def local_archive():
    """The archive in a folder that pip looks into (find-links), or nothing."""
    for place in (pip_setting("find-links") or "").split():
        file = Path(place.removeprefix("file://")) / ARCHIVE
        if file.is_file():
            return file.read_bytes()
    return None


def archive():
    content = local_archive()
    problem = "no index has it"
    for index in indexes() if content is None else ():
        try:
            address = archive_address(index)
            content = get(address)[0] if address else None
        except (OSError, ValueError, KeyError) as error:
            problem = error
        if content is not None:
            break
    if content is None:
        fail(problem)
    found = hashlib.sha256(content).hexdigest()
    return content if found == SHA256 else fail(f"its hash is {found}, expected {SHA256}")


def unpack(content):
    """Unpacks beside the final place, and moves it there once all of it is there."""
    partial = TARGET.with_name("llama.cpp.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as files:
        for entry in files:
            _, _, path = entry.name.partition("/vendor/llama.cpp/")
            if not entry.isfile() or not path.startswith(SCRIPTS) or ".." in path.split("/"):
                continue
            target = partial / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(files.extractfile(entry).read())
    if not (partial / SCRIPTS[0]).is_file():
        fail("the archive holds no converter")
    (partial / STAMP.name).write_text(SHA256)
    shutil.rmtree(TARGET, ignore_errors=True)
    os.replace(partial, TARGET)


def main():
    if STAMP.is_file() and STAMP.read_text() == SHA256:
        return
    print(f"fetching llama.cpp's converter ({ARCHIVE}, 77 MB, once)", file=sys.stderr)
    unpack(archive())


if __name__ == "__main__":
    main()
