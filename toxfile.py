"""What tox.ini cannot say: where interpreters are looked for, and which of them are of no use.

tox loads this file by itself.
"""

import os
import pwd
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tox.plugin import impl
from tox.tox_env.api import ToxEnv
from tox.tox_env.errors import Skip
from tox.tox_env.python.api import Python


def pyenv_folders() -> Iterator[Path]:
    """Find the interpreters that pyenv installed, the newest first.

    Its shims on ``PATH`` serve only the versions that are switched on. The last place to look is
    the account's own home, for when ``HOME`` is a scratch folder.
    """
    account = pwd.getpwuid(os.getuid()).pw_dir
    roots = dict.fromkeys(
        [
            Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser(),
            Path("~/.pyenv").expanduser(),
            Path(account, ".pyenv"),
        ]
    )
    for root in roots:
        yield from sorted(root.glob("versions/3.*.*/bin"), key=_numbers, reverse=True)


def _numbers(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", folder.parent.name)]


# At the end of PATH: only what is not found otherwise is found there.
os.environ["PATH"] = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), *map(str, pyenv_folders())]
)


@impl
def tox_on_install(tox_env: ToxEnv, of_type: str) -> None:
    """Skip an environment whose interpreter was built without what an installation needs."""
    if not isinstance(tox_env, Python) or of_type not in {"deps", "dependency-groups"}:
        return
    python = tox_env.env_python()
    check = subprocess.run(  # noqa: S603 - the interpreter that tox has chosen
        [python, "-c", "import ssl, sqlite3, zlib"], check=False, capture_output=True
    )
    if check.returncode != 0:
        reason = check.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise Skip(f"{python.resolve()} is of no use here: {reason}")
