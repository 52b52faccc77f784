"""List the plug-ins: ``python -m svcrun.plugins``."""

from __future__ import annotations

import inspect
import logging
import sys
from argparse import ArgumentParser

from svcrun.log import LogFormat, LogLevel, basic_config
from svcrun.plugins import load_plugins, plugins, report_plugins


def main() -> None:
    """Load the plug-ins, print their names, and log the first line of their documentation."""
    parser = ArgumentParser(prog="python -m svcrun.plugins", description=main.__doc__)
    quiet = ("-q", "-s", "--quiet", "--silent")
    parser.add_argument(*quiet, action="store_true", help="log nothing but critical errors")
    parser.add_argument("-n", "--no-output", action="store_true", help="print no names")
    parser.add_argument("-l", "--log-level", choices=LogLevel.choices(), default=LogLevel.default())
    parser.add_argument(
        "-F", "--log-format", choices=LogFormat.choices(), default=LogFormat.default()
    )
    arguments = parser.parse_args()

    level = LogLevel.critical.name if arguments.quiet else arguments.log_level
    with basic_config(level, arguments.log_format):
        load_plugins()
        report_plugins()
        for name, plugin in sorted(plugins.items()):
            line = (inspect.getdoc(plugin) or "").partition("\n")[0]
            logging.getLogger("svcrun.plugins").info("%s: %s", name, line)
            if not arguments.no_output:
                sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
