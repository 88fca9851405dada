"""Parses a page as a browser would be told to, and prints what it holds as JSON: page.py PAGE.

Fails when an element is not closed, an id stands twice, or something is fetched from elsewhere.
"""

import json
import sys
from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.problems = [], set(), []
        self.headings, self.figures, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if "id" in attributes:
            if attributes["id"] in self.ids:
                self.problems.append(f"two elements have the id {attributes['id']}")
            self.ids.add(attributes["id"])
        for name, value in attributes.items():
            if name in ("src", "href", "action", "data", "srcset", "poster") or name.startswith("on"):
                self.problems.append(f"<{tag} {name}={value}>")
        if tag in ("link", "iframe", "object", "embed", "base", "img"):
            self.problems.append(f"<{tag}>")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing at {self.getpos()}")

    def handle_data(self, text):
        inside = self.open[-1] if self.open else ""
        if inside == "h2":
            self.headings.append(text)
        elif inside == "strong":
            self.figures.append(text)
        elif inside == "style" and ("url(" in text or "@import" in text):
            self.problems.append("the style fetches something")
        if inside not in ("style", "script") and text.strip():
            self.words.append(text)


page = Page()
with open(sys.argv[1], encoding="utf-8") as file:
    page.feed(file.read())
page.close()
page.problems += [f"<{tag}> is not closed" for tag in page.open]
if page.problems:
    sys.exit("\n".join(page.problems))
json.dump({"headings": page.headings, "figures": page.figures, "words": page.words}, sys.stdout)
