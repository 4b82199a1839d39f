"""The configs of this repository, which are part of the installed package (`distbranch/configs`): found by their names."""

from pathlib import Path

PACKAGED = Path(__file__).parents[1] / "configs"


def list_packaged() -> list[str]:
    """The names of the configs of runs and of sweeps, without `.yaml`."""
    return sorted(file.stem for file in PACKAGED.glob("*.yaml"))


def find_config(file: Path) -> Path:
    """A config file; for a name without a folder that is no file here, the config of the package that is named so.

    Examples:
        >>> find_config(Path("quickstart")).name
        'quickstart.yaml'
    """
    packaged = PACKAGED / f"{file.name.removesuffix('.yaml')}.yaml"
    if file.parent == Path() and not file.is_file() and packaged.is_file():
        return packaged
    return file
