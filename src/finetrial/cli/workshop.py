"""Single tools: score, select, eval, doctor."""

import importlib.util
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from finetrial.cli.app import AsJson, app, console, emit_json, table
