"""Commands whose options have the defaults of the site's own file."""

import shlex
from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand

from distbranch.cli.terminal import errors

HELP = {"--help", "-h"}


class SiteCommand(TyperCommand):
    """A command of `distbranch submit` whose options have the site's defaults.

    What is typed wins over them; options that may be given again add to those of the site.
    """

    def make_context(
        self, info_name: Any, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Read the site's file before the options, whose defaults it gives."""
        # A help text and a completion are shown whatever is wrong with the file.
        if not HELP & set(args) and not extra.get("resilient_parsing"):
            extra["default_map"] = self._read_defaults()
        return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Say what came from the site's file, and run the command."""
        from distbranch.cli.site_file import find_site_file

        used = {}
        for parameter, value in (ctx.default_map or {}).items():
            typed = ctx.get_parameter_source(parameter).name == "COMMANDLINE"
            if typed and isinstance(value, list):
                ctx.params[parameter] = [*value, *ctx.params[parameter]]
            if not typed or isinstance(value, list):
                used[parameter] = value
        if used:
            # Not on stdout, where a batch script may be printed.
            errors.print(
                f"From {find_site_file()}: {self._write_options(used)}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        return super().invoke(ctx)

    def _read_defaults(self) -> dict[str, Any]:
        """The site's values by the names of this command's parameters."""
        # Imported in functions, as in all commands: a help text that takes seconds is not waited for.
        from distbranch.cli.site_file import SECTIONS, list_options, read_site_file

        command = str(self.name)
        [section] = [name for name, commands in SECTIONS.items() if command in commands]
        values = read_site_file().sections.get(section, {})
        options = list_options(command)
        return {options[key][0]: value for key, value in values.items() if key in options}

    def _write_options(self, used: Mapping[str, Any]) -> str:
        """The options as somebody would type them."""
        from distbranch.cli.site_file import list_options

        names = {parameter: key for key, (parameter, _) in list_options(str(self.name)).items()}
        words = []
        for parameter, value in used.items():
            option = "--" + names[parameter].replace("_", "-")
            if isinstance(value, bool):
                words.append(option if value else option.replace("--", "--no-", 1))
                continue
            for one in value if isinstance(value, list) else [value]:
                words += [option, shlex.quote(str(one))]
        return " ".join(words)
