"""Write stand-ins for programs that documents call. Each records its call and does nothing else."""

from pathlib import Path

NAMES = ("python", "python3", "torchrun", "dask", "conda", "jupyter", "scontrol", "hostname", "sleep", "pip")
# writes its arguments as one line of JSON
NOTE = r"""#!/usr/bin/env bash
note() {
  local word line=
  for word in "$@"; do
    word=${word//\\/\\\\} word=${word//\"/\\\"}
    line+=", \"$word\""
  done
  printf '[%s]\n' "${line:2}" >>"$CALLS"
}
note "${0##*/}" "$@"
"""
ANSWERS = {"hostname": "echo n1", "scontrol": 'if [[ ${2:-} == hostnames ]]; then printf "n1\\nn2\\n"; fi'}
SRUN = r"""
while [[ ${1:-} == --* ]]; do shift; done
exec "$@"
"""


def write_stubs(folder: Path) -> None:
    """Write all stand-ins into a folder."""
    folder.mkdir(parents=True)
    for name in (*NAMES, "srun"):
        (folder / name).write_text(NOTE + (SRUN if name == "srun" else ANSWERS.get(name, "")) + "\n")
        (folder / name).chmod(0o755)
