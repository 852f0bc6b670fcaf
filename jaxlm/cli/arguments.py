"""How --help names what a command takes."""

from pathlib import Path
from typing import Annotated

import tyro

from jaxlm.config import MeshConfig, ProcessConfig

Texts = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="TEXT [TEXT ...]")]
Data = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
RunPath = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
TextOrInput = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="[FILE|-]")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
OptionalPositional = Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[PATH]")]
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
Devices = tyro.conf.OmitArgPrefixes[MeshConfig]
Processes = tyro.conf.OmitArgPrefixes[ProcessConfig]
