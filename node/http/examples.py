"""How to ask a model, in three languages, for the very address that the caller used. Each runs as it stands."""

from __future__ import annotations

import json
import shlex
from typing import Any
from urllib.parse import quote

from node.model_kinds import CLASSIFIES

Body = dict[str, Any]
_WRITES = {"input": {"text": "The capital of France is", "max_tokens": 16}}
_CLASSIFIES = {"input": {"text": "What a lovely day."}}


def example_usage(base: str, model: str, keyed: bool, category: str | None = None) -> dict[str, str]:
    """curl, python and javascript (Node 18 or later); with `keyed` they take an API key from MF_API_KEY."""
    url = f"{base}/api/v1/models/{quote(model, safe='')}/inference"
    body, result = (_CLASSIFIES, "labels") if category == CLASSIFIES else (_WRITES, "text")
    return {
        "curl": _curl(url, keyed, body),
        "python": _python(url, keyed, body, result),
        "javascript": _javascript(url, keyed, body, result),
    }


def _curl(url: str, keyed: bool, body: Body) -> str:
    key = ' -H "Authorization: Bearer $MF_API_KEY"' if keyed else ""
    return f"curl -sS {shlex.quote(url)}{key} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"


def _python(url: str, keyed: bool, body: Body, result: str) -> str:
    key = ', "Authorization": "Bearer " + os.environ["MF_API_KEY"]' if keyed else ""
    return f"""import json{", os" if keyed else ""}
from urllib.request import Request, urlopen

headers = {{"Content-Type": "application/json"{key}}}
request = Request({url!r}, json.dumps({body!r}).encode(), headers)
print(json.load(urlopen(request))["data"]["result"][{result!r}])
"""


def _javascript(url: str, keyed: bool, body: Body, result: str) -> str:
    key = ', Authorization: "Bearer " + process.env.MF_API_KEY' if keyed else ""
    return f"""fetch({json.dumps(url)}, {{
  method: "POST",
  headers: {{"Content-Type": "application/json"{key}}},
  body: JSON.stringify({json.dumps(body)}),
}}).then(reply => reply.json()).then(body => console.log(body.data.result.{result}));
"""
