"""Shell completion of commands and options, from the table of commands."""

from __future__ import annotations

from jax_rele.cli.parser import COMMANDS, argument, command

_BASH = """_jax_rele() {
  local words="${COMP_WORDS[*]:1:COMP_CWORD-1}" current="${COMP_WORDS[COMP_CWORD]}" options="$commands"
  case "$words" in
$cases
  esac
  COMPREPLY=($(compgen -W "$options" -- "$current"))
  [[ $current == -* ]] || COMPREPLY+=($(compgen -f -- "$current"))
}
complete -o filenames -F _jax_rele jax-rele"""


def completion_script(shell: str) -> str:
    """A script for bash, zsh or fish that completes commands, options and files."""
    options = {name: _options(name) for name in COMMANDS}
    if shell == "fish":
        lines = []
        for name, words in options.items():
            first, *rest = name.split()
            seen = " ".join(f"; and __fish_seen_subcommand_from {word}" for word in rest)
            if not rest:
                lines.append(f"complete -c jax-rele -n __fish_use_subcommand -a {first}")
            for word in _next_words(name):
                lines.append(f"complete -c jax-rele -n '__fish_seen_subcommand_from {first}{seen}' -a {word}")
            for word in words:
                long = word.removeprefix("--")
                lines.append(f"complete -c jax-rele -n '__fish_seen_subcommand_from {first}{seen}' -l {long}")
        return "\n".join(lines)
    # The longest names first, as a case takes the first pattern that fits.
    cases = [
        f'    "{name}"*) options="{" ".join([*_next_words(name), *words])}" ;;'
        for name, words in sorted(options.items(), key=lambda item: -len(item[0]))
    ]
    commands = " ".join(dict.fromkeys(name.split()[0] for name in COMMANDS))
    script = _BASH.replace("$cases", "\n".join(cases)).replace("$commands", commands)
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if shell == "zsh" else script


def _options(name: str) -> list[str]:
    return [option for names, _ in COMMANDS[name].arguments for option in names if option.startswith("--")]


def _next_words(name: str) -> list[str]:
    """Words that continue a command's name to that of another."""
    return list(dict.fromkeys(other[len(name) :].split()[0] for other in COMMANDS if other.startswith(f"{name} ")))


@command(argument("shell", choices=("bash", "zsh", "fish"), help="which shell"))
def completion(shell: str) -> None:
    """Print a completion script: `eval "$(jax-rele completion bash)"`."""
    print(completion_script(shell))
