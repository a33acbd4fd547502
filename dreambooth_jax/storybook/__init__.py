"""Storybook: a small world of images and captions, and a text-to-image model of it that ships with the package."""

from pathlib import Path


def storybook_folder() -> Path:
    """The shipped model's pipeline folder, in diffusers' layout; its super-resolution stage is a folder inside."""
    return Path(__file__).parent / 'pretrained'
