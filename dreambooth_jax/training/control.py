"""The names in the folder <run>/control, by which others ask a training (requests.py). They need no JAX."""

FOLDER = 'control'
STOP, SAVE, SAMPLE, PAUSE = KINDS = ('stop', 'save', 'sample', 'pause')
PAUSED = 'paused'
