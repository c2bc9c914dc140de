"""``efface --print-completion bash|zsh``: what a shell completes, from the commands' options."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from efface.cli.erase import options
from efface.cli.main import ABOUT
from efface.cli.terminal import flags, helped
from efface.methods import METHODS

ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"
"""What makes zsh understand the rest."""

SCRIPT = """# efface: completion for {shell}; made by: efface --print-completion {shell}
_efface() {{
  local line="${{COMP_LINE:0:$COMP_POINT}}" all
  local cur="${{line##* }}"
  case "$line" in
{cases}
    *) all="{commands} --help --version --print-completion" ;;
  esac
  COMPREPLY=($(compgen -W "$all" -- "$cur"))
  case "$cur" in
    *:*) COMPREPLY=("${{COMPREPLY[@]#"${{cur%:*}}":}}") ;;  # bash takes the colon for a space
  esac
}}
complete -o default -F _efface efface
"""


def script(shell: str) -> str:
    """What a shell reads to complete commands, methods and options.

    Args:
        shell: ``bash`` or ``zsh``.
    """
    methods = " ".join(METHODS)
    found = {f"erase {n}": words(options(n, m())) for n, m in METHODS.items()}
    found["erase"] = methods
    for name in ABOUT:
        if name != "erase":
            found[name] = words(import_module(f"efface.cli.{name}").Options)
    cases = "\n".join(f'    "efface {name} "*) all="{some}" ;;' for name, some in found.items())
    text = SCRIPT.format(shell=shell, cases=cases, commands=" ".join(ABOUT))
    return (ZSH if shell == "zsh" else "") + text


def words(cls: Any) -> str:
    """Every option of a command, those of all its kinds, and the kinds."""
    plain = helped(cls, [], "efface")
    kinds = re.findall(r"• ([a-z]+:[a-z0-9-]+)", plain)
    every = [
        f for said in (plain, *(helped(cls, [k], "efface") for k in kinds)) for f in flags(said)
    ]
    return " ".join(dict.fromkeys([*every, *kinds]))
