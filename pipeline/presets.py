"""The recipes that come with the project."""

from dataclasses import replace

from curation.backbone import BackboneConfig
from pipeline.recipes import DataConfig, Recipe

PRESETS: dict[str, Recipe] = {}
