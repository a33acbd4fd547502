"""Datasets of TensorFlow Datasets (TFDS), without tensorflow; this room alone needs the package tensorflow-datasets.

dreambench.py    the thirty subjects of the paper as a TFDS dataset
data_source.py   the photos of any TFDS dataset, as the rest of the project reads photos
"""
