"""A stand-in for Docker Hub: registry, token service and CDN on loopback, with a request log and faults.

Start a `Hub`, add content with `hub.image(...)`, read `hub.log`, add faults with `hub.faults.add(Fault(...))`.
"""

from .content import Image, Synthetic, random_bytes
from .faults import Fault
from .hub import Hub
from .requestlog import Record

__all__ = ["Fault", "Hub", "Image", "Record", "Synthetic", "random_bytes"]
