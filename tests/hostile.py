# SPDX-License-Identifier: 0BSD
"""What somebody may call a layer, a tensor, a model or a class. Whoever takes one for code makes a
file whose name starts with `pwned`, or changes the title of a page to that.
"""

from __future__ import annotations

HOSTILE = (
    "conv1 */ int system(const char*); __attribute__((constructor)) static void BDCC_NAME(pwn)"
    '(void){system("touch pwned_comment");} /*',
    '", 0}; int system(const char*); __attribute__((constructor)) static void pwn2(void)'
    '{system("touch pwned_string");} static int x[] = {0, "',
    "back\\slash",
    "ends with \\",
    "quote \" and ' quote",
    "new\nline",
    "new\n#include </etc/passwd>",
    "carriage\rreturn",
    "tri??/graph",
    "??/",
    "$(touch pwned_make)",
    "$(shell touch pwned_shell)",
    "`touch pwned_tick`",
    "'; touch pwned_quote; '",
    "x; touch pwned_semicolon",
    "%s%n%s%999999d",
    "# hash",
    "${PATH}",
    "@VAR@ $ENV{PATH}",
    "{{ 7 * 7 }}{% raw %}",
    "<script>document.title='pwned'</script>",
    "</style></svg><img src=x onerror=\"document.title='pwned'\">",
    "]]><b>&lt;&amp;",
    "right\u202eleft\u2066\u200f",
    "line\u2028separator\u0085next",
    "ünïcödé 模型 🦊",
    "nul\0byte",
    "\x1b[2J\x1b]0;pwned\x07",
    "L" * 10_000,
    "é" * 10_000,
    "$$",
    "$\\frac{",
    "\\frac{1}{2}",
    "| cell | [x](javascript:alert(1)) | **b**",
    "/* nested",
    "/*/",
    "//",
    "scratch:x",
    "a#4",
    "a b",
    " ",
    "../../../pwned",
    "-rf",
    "@pwned",
)
