"""Storybook: a small world of images with captions, and a text-to-image model of it that is part of the package."""

from pathlib import Path


def storybook_folder() -> Path:
    """Returns the pipeline folder of the shipped model; its super-resolution stage is a folder inside."""
    return Path(__file__).parent / 'pretrained'
