"""A folder as one zip file, made while it is sent, so that it needs neither memory nor disk."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

_PIECE = 2**20  # bytes


class _Outlet(io.RawIOBase):
    """Takes what zipfile writes until it is fetched; it cannot be sought in, as a file that is sent."""

    def __init__(self):
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self._held += data
        return len(data)

    def taken(self) -> bytes:
        data = bytes(self._held)
        self._held.clear()
        return data


def pieces(files: Mapping[str, Path]) -> Iterator[bytes]:
    """Returns the pieces of a zip file, uncompressed, since weights cannot be compressed.

    Args:
      files: name in the archive -> file.

    Raises:
      OSError: if a file cannot be read.
    """
    outlet = _Outlet()
    with zipfile.ZipFile(outlet, 'w', zipfile.ZIP_STORED) as archive:
        for name, path in files.items():
            with path.open('rb') as source, archive.open(name, 'w', force_zip64=True) as entry:
                while piece := source.read(_PIECE):
                    entry.write(piece)
                    yield outlet.taken()
    yield outlet.taken()
