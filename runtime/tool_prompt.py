"""Tools for models whose chat template knows nothing of them: told in words, in the form that most open models were taught (Hermes').

A template without the word `tools` would drop them silently and print `None` for a call. So the tools become a part of the system's
message, a call becomes the text that the model would have written, and a tool's answer is the user's next message.
"""

from __future__ import annotations

import json
from typing import Any

_INTRODUCTION = """You can call functions. Their signatures, as JSON, a line each:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments in <tool_call> tags, and with nothing else:
<tool_call>
{{"name": "...", "arguments": {{...}}}}
</tool_call>"""


def knows_tools(template: Any) -> bool:
    """Whether this template, or one of several by name, does something with tools."""
    return "tools" in str(template)


def in_words(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The same conversation with plain system, user and assistant messages alone."""
    plain = [_plain(message) for message in messages]
    if not tools:
        return plain
    told = _INTRODUCTION.format(tools="\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools))
    if plain and plain[0].get("role") == "system":
        first = f"{plain[0].get('content', '')}\n\n{told}".strip()
        return [{"role": "system", "content": first}, *plain[1:]]
    return [{"role": "system", "content": told}, *plain]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content") or ""
    if message.get("role") == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    parts = [content] if content else []
    parts += [f"<tool_call>\n{json.dumps(call.get('function', call), ensure_ascii=False)}\n</tool_call>" for call in calls]
    return {"role": message.get("role", "assistant"), "content": "\n".join(parts)}
