"""The ids of DeepFloyd IF's stages in the metadata of files (weights/modelspec.py).

The standard has no ids for these models; ours follow its manner.
"""

ARCHITECTURE = 'deepfloyd-if-i'
SUPER_RESOLUTION_ARCHITECTURE = 'deepfloyd-if-ii'
