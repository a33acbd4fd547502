"""Storybook: a small world of images with captions, and text-to-image models of it that are part of the package."""

from pathlib import Path

# Name of a shipped model -> its folder.
FOLDERS = {'storybook': 'pretrained', 'storybook-flow': 'pretrained_flow'}


def storybook_folder(name: str = 'storybook') -> Path:
    """Returns the pipeline folder of a shipped model; a super-resolution stage is a folder inside."""
    return Path(__file__).parent / FOLDERS[name]
